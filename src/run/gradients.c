#include "run/gradients.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/host_memory.h"
#include "parallel/flight.h"
#include "plan/footprint.h"

/* A tied weight of which this rank holds at least one end. */
struct tie {
    struct communicator *ranks; /* that hold an end */
    struct contributions who;
    int *rank_of;
    const void **parts; /* [share_count] */
    int *shares;        /* indices of this rank's ends, in order of layers */
    int share_count;
    void *scratch[TIES_UNDER_WAY];
};

struct gradients {
    const struct grid *grid;
    const struct device *device;
    struct stream *stream;
    const struct parameters *parameters;
    const struct shards *shards;
    struct bucket_queue *queue;
    bool sequence_parallel;
    float *arena;
    struct tie *ties;
    int tie_count;
    int64_t replicated; /* elements held that every tensor rank holds and sequence parallelism leaves partial */
    float *partial;     /* [replicated] */
    void *partial_scratch;
    double *blocks;       /* sums of squares: [blocks of all shares], where the device copies to */
    int64_t *first_block; /* [shares + 1] of each share */
};

static bool is_replicated(const struct parameter_share *share)
{
    return share->parameter->split < 0;
}

static void create_tie(struct gradients *gradients, int logical, const int *layers, int layer_count,
                       const int *stage_of_layer, const struct schedule *schedule)
{
    int *members = allocate((size_t)layer_count, sizeof *members);
    int member_count = 0;
    for (int p = 0; p < schedule->ranks; p++)
        for (int i = 0; i < layer_count; i++)
            if (schedule_rank_of(schedule, stage_of_layer[layers[i]]) == p) {
                members[member_count++] = p;
                break;
            }
    struct communicator *ranks = grid_pipeline_subset(gradients->grid, members, member_count);
    if (ranks) {
        struct tie *tie = &gradients->ties[gradients->tie_count++];
        *tie = (struct tie){.ranks = ranks};
        tie->rank_of = allocate((size_t)layer_count, sizeof *tie->rank_of);
        tie->shares = allocate((size_t)layer_count, sizeof *tie->shares);
        tie->parts = allocate((size_t)layer_count, sizeof *tie->parts);
        for (int i = 0; i < layer_count; i++) {
            int rank = schedule_rank_of(schedule, stage_of_layer[layers[i]]);
            while (members[tie->rank_of[i]] != rank)
                tie->rank_of[i]++;
        }
        tie->who = (struct contributions){layer_count, tie->rank_of};
        for (int i = 0; i < gradients->parameters->count; i++)
            if (gradients->parameters->shares[i].logical == logical)
                tie->shares[tie->share_count++] = i;
    }
    free(members);
}

/* All ties of the model, in order of their first layer, on all ranks. */
static void create_ties(struct gradients *gradients, const struct model *model, const int *stage_of_layer,
                        const struct schedule *schedule)
{
    int *layers = allocate((size_t)model->layer_count, sizeof *layers);
    for (int first = 0; first < model->layer_count; first++)
        for (int i = 0; i < model->declarations[first].parameter_count; i++) {
            const struct parameter *parameter = &model->declarations[first].parameters[i];
            if (!parameter->tied)
                continue;
            int count = 0;
            bool earlier = false;
            for (int layer = 0; layer < model->layer_count; layer++)
                for (int j = 0; j < model->declarations[layer].parameter_count; j++)
                    if (parameters_same(&model->declarations[layer].parameters[j], parameter)) {
                        earlier = earlier || layer < first;
                        layers[count++] = layer;
                    }
            if (earlier || count < 2)
                continue;
            gradients->ties = realloc(gradients->ties, ((size_t)gradients->tie_count + 1) * sizeof(struct tie));
            if (!gradients->ties)
                fatal("out of host memory");
            create_tie(gradients, parameters_logical(model, first, i), layers, count, stage_of_layer, schedule);
        }
    free(layers);
}

static size_t blocks_bytes(const struct gradients *gradients)
{
    return (size_t)gradients->first_block[gradients->parameters->count] * sizeof *gradients->blocks;
}

struct gradients *gradients_create(const struct grid *grid, const struct device *device, struct stream *stream,
                                   const struct parameters *parameters, const struct shards *shards,
                                   struct bucket_queue *queue, const struct model *model, const int *stage_of_layer,
                                   const struct schedule *schedule, bool sequence_parallel)
{
    struct gradients *gradients = allocate(1, sizeof *gradients);
    *gradients = (struct gradients){.grid = grid,
                                    .device = device,
                                    .stream = stream,
                                    .parameters = parameters,
                                    .shards = shards,
                                    .queue = queue,
                                    .sequence_parallel = sequence_parallel && grid->tensor > 1};
    for (int i = 0; i < shards->range_count; i++)
        if (gradients->sequence_parallel && is_replicated(&parameters->shares[shards->shards[i].share]))
            gradients->replicated += shards->ranges[i].count;
    gradients->first_block = allocate((size_t)parameters->count + 1, sizeof *gradients->first_block);
    for (int i = 0; i < parameters->count; i++)
        gradients->first_block[i + 1] =
            gradients->first_block[i] + (parameters->shares[i].count + SQUARES_BLOCK - 1) / SQUARES_BLOCK;
    gradients->blocks = host_memory(device, blocks_bytes(gradients), "sums of squares");
    create_ties(gradients, model, stage_of_layer, schedule);
    return gradients;
}

void gradients_destroy(struct gradients *gradients)
{
    if (!gradients)
        return;
    for (int i = 0; i < gradients->tie_count; i++) {
        communicator_close(gradients->ties[i].ranks);
        free(gradients->ties[i].rank_of);
        free(gradients->ties[i].shares);
        free(gradients->ties[i].parts);
    }
    free(gradients->ties);
    gradients->device->host_release(gradients->blocks, blocks_bytes(gradients));
    free(gradients->first_block);
    free(gradients);
}

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Bucket k of the end that is share i, or NULL behind the last one. Ends are cut alike. */
static const struct bucket *tie_bucket(const struct gradients *gradients, int i, int k)
{
    const struct shards *shards = gradients->shards;
    int b = shards->share_first[i] + k;
    return b < shards->bucket_count && shards->buckets[b].share == i ? &shards->buckets[b] : NULL;
}

static size_t tie_scratch(const struct gradients *gradients, const struct tie *tie)
{
    size_t most = 0;
    const struct bucket *bucket;
    for (int k = 0; (bucket = tie_bucket(gradients, tie->shares[0], k)); k++) {
        int64_t begin, count = shards_held(gradients->shards, bucket, &begin);
        size_t bytes = tie->ranks->ops->sum_scratch(tie->ranks, ELEMENT_FLOAT32, count, &tie->who);
        if (bytes > most)
            most = bytes;
    }
    return aligned(most);
}

static size_t partial_scratch(const struct gradients *gradients)
{
    struct communicator *tensor = gradients->grid->tensor_group;
    if (gradients->replicated == 0)
        return 0;
    return aligned(
        tensor->ops->sum_scratch(tensor, ELEMENT_FLOAT32, gradients->replicated, communicator_one_each(tensor)));
}

size_t gradients_bytes(const struct gradients *gradients)
{
    size_t bytes = aligned((size_t)gradients->replicated * sizeof(float)) + partial_scratch(gradients);
    for (int i = 0; i < gradients->tie_count; i++)
        bytes += TIES_UNDER_WAY * tie_scratch(gradients, &gradients->ties[i]);
    return bytes;
}

void gradients_attach(struct gradients *gradients, float *arena, char *scratch)
{
    struct carve carve = {.base = scratch};
    gradients->arena = arena;
    for (int i = 0; i < gradients->tie_count; i++)
        for (int k = 0; k < TIES_UNDER_WAY; k++)
            gradients->ties[i].scratch[k] = carve_bytes(&carve, tie_scratch(gradients, &gradients->ties[i]));
    gradients->partial = carve_floats(&carve, gradients->replicated);
    gradients->partial_scratch = carve_bytes(&carve, partial_scratch(gradients));
}

void gradients_layer_done(struct gradients *gradients, int local_layer)
{
    const struct shards *shards = gradients->shards;
    for (int b = shards->layer_first[local_layer]; b < shards->layer_first[local_layer + 1]; b++)
        bucket_queue_sum(gradients->queue, b);
}

/* Norms, biases behind row-parallel matmuls and positions worked on a share of the rows: one sum for all of them. */
static void sum_partial(struct gradients *gradients)
{
    if (gradients->replicated == 0)
        return;
    const struct shards *shards = gradients->shards;
    struct communicator *tensor = gradients->grid->tensor_group;
    for (int pack = 1; pack >= 0; pack--) {
        int64_t offset = 0;
        for (int i = 0; i < shards->range_count; i++) {
            const struct optimizer_range *range = &shards->ranges[i];
            if (!is_replicated(&gradients->parameters->shares[shards->shards[i].share]))
                continue;
            float *place = gradients->arena + range->gradient, *packed = gradients->partial + offset;
            gradients->device->copy(gradients->stream, pack ? packed : place, pack ? place : packed,
                                    (size_t)range->count * sizeof(float));
            offset += range->count;
        }
        if (pack)
            tensor->ops->all_reduce(tensor, ELEMENT_FLOAT32, gradients->partial, gradients->replicated,
                                    gradients->partial_scratch);
    }
}

/* Starts the sum over the ends of bucket k, or of what is held of it. */
static struct transfer *begin_tie(struct gradients *gradients, struct tie *tie, int k)
{
    int64_t begin = 0, count = 0;
    for (int j = 0; j < tie->share_count; j++) {
        const struct bucket *bucket = tie_bucket(gradients, tie->shares[j], k);
        count = shards_held(gradients->shards, bucket, &begin);
        tie->parts[j] = gradients->arena + bucket->gradient + begin;
    }
    float *result = gradients->arena + tie_bucket(gradients, tie->shares[0], k)->gradient + begin;
    return tie->ranks->ops->sum_begin(tie->ranks, ELEMENT_FLOAT32, result, tie->parts, count, &tie->who,
                                      tie->scratch[k % TIES_UNDER_WAY]);
}

static void sum_ties(struct gradients *gradients)
{
    for (int i = 0; i < gradients->tie_count; i++) {
        struct tie *tie = &gradients->ties[i];
        struct transfer *transfers[TIES_UNDER_WAY] = {0};
        int k = 0;
        for (; tie_bucket(gradients, tie->shares[0], k); k++) {
            if (k >= TIES_UNDER_WAY)
                tie->ranks->ops->wait(transfers[k % TIES_UNDER_WAY]);
            transfers[k % TIES_UNDER_WAY] = begin_tie(gradients, tie, k);
        }
        for (int left = k > TIES_UNDER_WAY ? k - TIES_UNDER_WAY : 0; left < k; left++)
            tie->ranks->ops->wait(transfers[left % TIES_UNDER_WAY]);
    }
}

void gradients_finish(struct gradients *gradients)
{
    flight_begin(FLIGHT_SUM_GRADIENTS);
    bucket_queue_drain(gradients->queue);
    sum_partial(gradients);
    sum_ties(gradients);
    flight_end();
}

/* Whether this rank and its data ranks answer for the share's squares. */
static bool is_counted(const struct gradients *gradients, const struct parameter_share *share)
{
    return share->owner && (!is_replicated(share) || gradients->grid->t == 0);
}

/* The blocks of this rank's piece; 0 in those of the other data ranks. */
static void square_blocks(struct gradients *gradients)
{
    const struct shards *shards = gradients->shards;
    memset(gradients->blocks, 0, blocks_bytes(gradients));
    for (int b = 0; b < shards->bucket_count; b++) {
        const struct bucket *bucket = &shards->buckets[b];
        const int64_t own = bucket->gradient + bucket->own, own_end = own + bucket->pieces[shards->d];
        for (int i = bucket->first_range; i < bucket->first_range + bucket->ranges; i++) {
            const struct optimizer_range *range = &shards->ranges[i];
            const int share = shards->shards[i].share;
            int64_t begin = range->gradient > own ? range->gradient : own, end = range->gradient + range->count;
            end = end < own_end ? end : own_end;
            if (begin >= end || !is_counted(gradients, &gradients->parameters->shares[share]))
                continue;
            int64_t first = shards->shards[i].first + begin - range->gradient; /* in the share */
            gradients->device->squares(gradients->stream, ELEMENT_FLOAT32,
                                       gradients->blocks + gradients->first_block[share] + first / SQUARES_BLOCK,
                                       gradients->arena + begin, end - begin);
        }
    }
    gradients->device->stream_wait(gradients->stream);
}

void gradients_squares(struct gradients *gradients, double *squares)
{
    const struct parameters *parameters = gradients->parameters;
    const struct grid *grid = gradients->grid;
    memset(squares, 0, (size_t)parameters->logical_count * (size_t)grid->tensor * sizeof *squares);
    square_blocks(gradients);
    if (grid->data > 1)
        control_sum(grid->data_group, gradients->blocks, gradients->first_block[parameters->count]);
    for (int i = 0; i < parameters->count && grid->d == 0; i++) {
        const struct parameter_share *share = &parameters->shares[i];
        if (!is_counted(gradients, share))
            continue;
        double sum = 0;
        for (int64_t block = gradients->first_block[i]; block < gradients->first_block[i + 1]; block++)
            sum += gradients->blocks[block];
        squares[share->logical * grid->tensor + grid->t] = sum;
    }
}
