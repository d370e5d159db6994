/* What ranks hold: counted for whichever data rank it is at least what each one's own shards come to and not much more,
 * and in all so many bytes for each parameter as the optimizer's state needs. */
#include "plan/footprint.h"

#include <stdlib.h>

#include "model/family.h"
#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "tests/tap.h"

enum {
    LAYERS = 4,
    SEQUENCE = 23
};

/* A model under a schedule on a grid. */
struct trial {
    const char *schedule;
    int ranks, chunks, data, tensor;
    int hidden, vocabulary;
    bool sharded, bf16, tied;
};

static struct schedule *lowered(struct schedule *computations, struct proven *proven)
{
    struct err err;
    struct schedule *schedule = lower_schedule(computations, &err);
    schedule_destroy(computations);
    *proven = (struct proven){schedule, validate_schedule(schedule, SEND_SLOTS, &err)};
    return schedule;
}

static bool covers(const struct footprint *most, const struct footprint *own)
{
    return most->weights >= own->weights && most->computed == own->computed && most->gradients == own->gradients &&
           most->moments >= own->moments && most->activations == own->activations && most->buffers >= own->buffers &&
           most->workspace == own->workspace && most->arena == own->arena &&
           most->queue_scratch >= own->queue_scratch && most->sum_scratch >= own->sum_scratch &&
           most->tensor_scratch == own->tensor_scratch;
}

/* The parts add up, and the pieces of memory to activations and buffers. */
static bool adds_up(const struct footprint *own)
{
    return own->activations + own->buffers == own->arena + own->queue_scratch + own->sum_scratch + own->tensor_scratch;
}

/* Bytes of weights, gradients and moments. */
static double state(const struct footprint *own)
{
    return (double)(own->weights + own->computed + own->gradients + own->moments);
}

static void check(const struct trial *x)
{
    struct err err = {""};
    struct settings settings;
    struct model model;
    settings_init(&settings);
    settings.model.layers = LAYERS;
    settings.model.hidden = x->hidden;
    settings.model.heads = 4;
    settings.model.sequence = SEQUENCE;
    settings.model.vocabulary = x->vocabulary;
    settings.model.tied_embeddings = x->tied;
    settings.run.precision = x->bf16 ? PRECISION_BF16 : PRECISION_FP32;
    if (model_create(&model, &settings, &err) < 0)
        tap_note("%s", err.text);
    struct layout layout = {.model = &model,
                            .circumstances = {.sequences = 3,
                                              .tensor = x->tensor,
                                              .sequence_parallel = x->tensor > 1,
                                              .device = device_cpu(1),
                                              .live = 1},
                            .data = x->data,
                            .sharded = x->sharded};
    struct schedule *computations = generate_schedule(x->schedule, x->ranks, x->chunks, 5, &err);
    struct schedule *forward = generate_forward_only(x->ranks, x->chunks, computations->placement, 5, &err);
    struct schedule *schedule = lowered(computations, &layout.train), *evaluate = lowered(forward, &layout.evaluate);
    int first_layer[LAYERS + 3];
    partition_uniform(LAYERS, schedule->stages, first_layer, &err);
    struct footprint_sizes *sizes = footprint_sizes_create(&layout);

    bool enough = true, sums = true, same = true, near = true, right = true;
    bool split = x->sharded && x->data > 1;
    for (int rank = 0; rank < x->ranks; rank++) {
        struct slice slices[LAYERS + 2];
        for (int chunk = 0; chunk < x->chunks; chunk++) {
            int stage = schedule_stage_of(schedule, rank, chunk);
            slices[chunk] = (struct slice){stage, first_layer[stage], first_layer[stage + 1]};
        }
        struct parameters parameters;
        parameters_create(&parameters, &model, slices, x->chunks, x->tensor, 0);
        struct footprint most = footprint_of_rank(sizes, first_layer, rank, NULL, NULL);
        double all = 0;
        size_t largest = 0;
        for (int d = 0; d < x->data; d++) {
            struct shards shards;
            shards_create(&shards, &parameters, x->tensor, x->data, d, x->sharded);
            struct footprint own = footprint_of_rank(sizes, first_layer, rank, &parameters, &shards);
            enough = enough && covers(&most, &own);
            sums = sums && adds_up(&own) && adds_up(&most);
            same = same && (x->sharded || footprint_total(&most) == footprint_total(&own));
            largest = footprint_total(&own) > largest ? footprint_total(&own) : largest;
            all += state(&own);
            shards_destroy(&shards);
        }
        double rounding = 1e6 + 80.0 * SQUARES_BLOCK * BUCKETS_UNDER_WAY * (split ? x->data - 1 : 0);
        near = near && (double)footprint_total(&most) < 1.01 * (double)largest + rounding;
        /* on all data ranks: weights as computations read them, gradients, and what is split or not */
        int copies = split ? 1 : x->data;
        double expected =
            (double)parameters.weight_elements * ((x->bf16 ? 2 * x->data + 4 * copies : 4 * x->data) + 8 * copies) +
            4.0 * (double)parameters.gradient_elements * x->data;
        right = right && all > 0.999 * expected && all < 1.04 * expected;
        parameters_destroy(&parameters);
    }
    char name[128];
    snprintf(name, sizeof name, "%s, %d x %d x %d x %d, hidden %d%s%s%s", x->schedule, x->ranks, x->chunks, x->data,
             x->tensor, x->hidden, x->sharded ? ", sharded" : "", x->bf16 ? ", bf16" : "", x->tied ? ", tied" : "");
    ok(enough, "%s: no data rank holds more in any part", name);
    ok(same && near, "%s: nor much less", name);
    ok(sums, "%s: the parts add up", name);
    ok(right, "%s: bytes for each parameter", name);
    footprint_sizes_destroy(sizes);
    validate_destroy((struct validation *)(uintptr_t)layout.train.validation);
    validate_destroy((struct validation *)(uintptr_t)layout.evaluate.validation);
    schedule_destroy(schedule);
    schedule_destroy(evaluate);
    model_destroy(&model);
    settings_fini(&settings);
}

int main(void)
{
    static const int data[] = {1, 2, 3, 7};
    for (int i = 0; i < 4; i++)
        for (int sharded = 0; sharded < 2; sharded++)
            for (int bf16 = 0; bf16 < 2; bf16++) {
                check(&(struct trial){"1f1b", 3, 1, data[i], 1, 24, 997, sharded, bf16, bf16});
                check(&(struct trial){"zb-v", 2, 2, data[i], 1, 200, 9973, sharded, bf16, true});
                check(&(struct trial){"interleaved", 2, 3, data[i], 3, 200, 9973, sharded, bf16, false});
                check(&(struct trial){"1f1b", 1, 1, data[i], 2, 200, 9973, sharded, bf16, true});
            }
    return tap_done();
}
