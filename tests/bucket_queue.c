/* Sums of gradients and gathering of weights between data ranks, with delayed ranks: what is waited for is there. */
#include "run/bucket_queue.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/memory.h"
#include "parallel/job.h"
#include "tests/tap.h"

enum {
    LAYERS = 3
};

/* What one pipeline rank holds where the stages run down and up: both ends of the tied weight. */
static const struct slice SLICES[] = {{0, 0, 2}, {3, LAYERS, LAYERS + 2}};

struct trial {
    struct grid grid;
    struct settings settings;
    struct model model;
    struct parameters parameters;
    struct shards shards;
    struct bucket_queue *queue;
    float *weights, *gradients;
    char *scratch;
};

static void begin(struct trial *trial, const struct job *job, bool sharded)
{
    grid_open(&trial->grid, job->world, 1, job->world->size, 1, device_cpu(1), NULL);
    settings_init(&trial->settings);
    trial->settings.model.layers = LAYERS;
    trial->settings.model.hidden = 128;
    trial->settings.model.heads = 4;
    trial->settings.model.sequence = 23;
    trial->settings.model.vocabulary = 9001; /* more than a bucket */
    struct err err;
    if (model_create(&trial->model, &trial->settings, &err) < 0)
        abort();
    parameters_create(&trial->parameters, &trial->model, SLICES, 2, 1, 0);
    shards_create(&trial->shards, &trial->parameters, 1, trial->grid.data, trial->grid.d, sharded);
    trial->queue = bucket_queue_create(&trial->grid, &trial->shards);
    trial->weights = allocate((size_t)trial->parameters.weight_elements, sizeof(float));
    trial->gradients = allocate((size_t)trial->parameters.gradient_elements, sizeof(float));
    trial->scratch = allocate(bucket_queue_bytes(trial->queue), 1);
    bucket_queue_attach(trial->queue, (char *)trial->weights, trial->gradients, trial->scratch);
}

static void end(struct trial *trial)
{
    bucket_queue_destroy(trial->queue);
    shards_destroy(&trial->shards);
    parameters_destroy(&trial->parameters);
    model_destroy(&trial->model);
    settings_fini(&trial->settings);
    free(trial->weights);
    free(trial->gradients);
    free(trial->scratch);
    grid_close(&trial->grid);
}

static float gradient_of(int d, int64_t i)
{
    return (float)((i * 7 + d * 31) % 1001) / 3 * (d % 2 ? 1e-3f : 1);
}

/* Layers are done from the last to the first. */
static void check_sums(const char *name, struct trial *trial)
{
    const struct shards *shards = &trial->shards;
    for (int64_t i = 0; i < trial->parameters.gradient_elements; i++)
        trial->gradients[i] = gradient_of(trial->grid.d, i);
    for (int layer = trial->parameters.local_layers - 1; layer >= 0; layer--)
        for (int b = shards->layer_first[layer]; b < shards->layer_first[layer + 1]; b++) {
            if ((b + trial->grid.d) % 3 == 0)
                usleep(2000);
            bucket_queue_sum(trial->queue, b);
        }
    bucket_queue_drain(trial->queue);
    bool holds = true;
    for (int b = 0; b < shards->bucket_count; b++) {
        int64_t first, count = shards_held(shards, &shards->buckets[b], &first);
        first += shards->buckets[b].gradient;
        for (int64_t i = first; i < first + count; i++) {
            volatile float sum = gradient_of(0, i);
            for (int d = 1; d < trial->grid.data; d++)
                sum = sum + gradient_of(d, i);
            holds = holds && trial->gradients[i] == sum;
        }
    }
    ok(holds, "%s: what is held is the sum in the order of the ranks", name);
}

static float weight_of(int round, int64_t i)
{
    return (float)(round * 100003 + i % 99991);
}

/* All weights that the layer uses, those of ties too, are those of this round. */
static bool layer_is_new(const struct trial *trial, int layer, int round)
{
    const struct parameters *parameters = &trial->parameters;
    for (int i = parameters->layer_first[layer]; i < parameters->layer_first[layer + 1]; i++)
        for (int64_t k = 0; k < parameters->shares[i].count; k++) {
            int64_t at = parameters->shares[i].weight + k;
            if (trial->weights[at] != weight_of(round, at))
                return false;
        }
    return true;
}

/* Every rank renews its pieces, one rank slowly; the others wait for one layer, for which some buckets come last. */
static void gather(struct trial *trial, int round, int slow, bool backwards)
{
    const struct shards *shards = &trial->shards;
    for (int n = 0; n < shards->bucket_count; n++) {
        int b = backwards ? shards->bucket_count - 1 - n : n;
        const struct bucket *bucket = &shards->buckets[b];
        if (bucket->first_end != b)
            continue;
        if (trial->grid.d == slow)
            usleep(8000);
        int64_t first = bucket->weight + bucket->own;
        for (int64_t i = first; i < first + bucket->pieces[shards->d]; i++)
            trial->weights[i] = weight_of(round, i);
        bucket_queue_gather(trial->queue, b);
    }
}

static void check_weights(struct trial *trial)
{
    int round = 0, layers = trial->parameters.local_layers;
    bool one = true, all = true, drained = true;
    for (int slow = 0; slow < trial->grid.data; slow++)
        for (int backwards = 0; backwards < 2; backwards++) {
            for (int layer = 0; layer < layers; layer++) {
                gather(trial, ++round, slow, backwards);
                bucket_queue_wait_weights(trial->queue, layer);
                one = layer_is_new(trial, layer, round) && one;
                bucket_queue_drain(trial->queue);
                for (int other = 0; other < layers; other++)
                    drained = layer_is_new(trial, other, round) && drained;
            }
            gather(trial, ++round, slow, backwards);
            for (int n = 0; n < layers; n++) {
                int layer = backwards ? layers - 1 - n : n;
                bucket_queue_wait_weights(trial->queue, layer);
                all = layer_is_new(trial, layer, round) && all;
            }
            bucket_queue_drain(trial->queue);
        }
    ok(one, "a layer that is waited for alone has its new weights");
    ok(all, "so have all, one after another");
    ok(drained, "a drained queue leaves none behind");
}

int main(int argc, char **argv)
{
    struct job job;
    job_begin(&argc, &argv, &job);
    for (int sharded = 0; sharded < 2; sharded++) {
        struct trial trial = {0};
        begin(&trial, &job, sharded);
        check_sums(sharded ? "sharded" : "whole", &trial);
        if (sharded)
            check_weights(&trial);
        end(&trial);
    }
    int status = tap_done();
    job_end(&job);
    return status;
}
