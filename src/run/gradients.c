#include "run/gradients.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/trace.h"

#define BUCKET_ELEMENTS (1 << 20) /* of one sum: large enough for full bandwidth, small enough to start early */
#define BUCKETS_UNDER_WAY 4

/* A piece of the arena to be summed over the data ranks. */
struct bucket {
    int64_t begin, count;
};

struct slot {
    struct transfer *transfer;
    void *scratch;
    double begin;
    int64_t count;
};

/* A tied weight of which this rank holds at least one end. */
struct tie {
    struct communicator *ranks; /* that hold an end */
    struct contributions who;
    int *rank_of;
    const float **parts; /* [share_count] */
    int *shares;         /* indices of this rank's ends, in order of layers */
    int share_count;
    void *scratch;
};

struct gradients {
    const struct grid *grid;
    const struct device *device;
    struct stream *stream;
    const struct parameters *parameters;
    bool sequence_parallel;
    float *arena;
    struct bucket *queue; /* in the order in which layers finish */
    int64_t queue_capacity, queued, started;
    struct slot slots[BUCKETS_UNDER_WAY];
    struct tie *ties;
    int tie_count;
    int64_t replicated; /* elements that every tensor rank holds and sequence parallelism leaves partial */
    float *partial;     /* [replicated] */
    void *partial_scratch;
    double *blocks; /* [largest share / SQUARES_BLOCK] */
};

/* Pieces of a layer: what its parameters occupy, tied later ends apart. */
static int64_t buckets_of(int64_t count)
{
    return (count + BUCKET_ELEMENTS - 1) / BUCKET_ELEMENTS;
}

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
        tie->parts = allocate((size_t)layer_count, sizeof(float *));
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

struct gradients *gradients_create(const struct grid *grid, const struct device *device, struct stream *stream,
                                   const struct parameters *parameters, const struct model *model,
                                   const int *stage_of_layer, const struct schedule *schedule, bool sequence_parallel)
{
    struct gradients *gradients = allocate(1, sizeof *gradients);
    *gradients = (struct gradients){.grid = grid,
                                    .device = device,
                                    .stream = stream,
                                    .parameters = parameters,
                                    .sequence_parallel = sequence_parallel && grid->tensor > 1};
    int64_t largest = 0;
    for (int i = 0; i < parameters->count; i++) {
        const struct parameter_share *share = &parameters->shares[i];
        gradients->queue_capacity += buckets_of(share->count) + 1;
        if (gradients->sequence_parallel && is_replicated(share))
            gradients->replicated += share->count;
        if (share->count > largest)
            largest = share->count;
    }
    gradients->queue = allocate((size_t)gradients->queue_capacity, sizeof *gradients->queue);
    gradients->blocks = allocate((size_t)(largest / SQUARES_BLOCK + 1), sizeof *gradients->blocks);
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
    free(gradients->queue);
    free(gradients->blocks);
    free(gradients);
}

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static size_t bucket_scratch(const struct gradients *gradients)
{
    struct communicator *data = gradients->grid->data_group;
    if (data->size == 1)
        return 0;
    return aligned(data->ops->sum_scratch(data, BUCKET_ELEMENTS, communicator_one_each(data)));
}

static size_t tie_scratch(const struct gradients *gradients, const struct tie *tie)
{
    int64_t count = gradients->parameters->shares[tie->shares[0]].count;
    return aligned(tie->ranks->ops->sum_scratch(tie->ranks, count, &tie->who));
}

static size_t partial_scratch(const struct gradients *gradients)
{
    struct communicator *tensor = gradients->grid->tensor_group;
    if (gradients->replicated == 0)
        return 0;
    return aligned(tensor->ops->sum_scratch(tensor, gradients->replicated, communicator_one_each(tensor)));
}

size_t gradients_bytes(const struct gradients *gradients)
{
    size_t bytes = BUCKETS_UNDER_WAY * bucket_scratch(gradients);
    for (int i = 0; i < gradients->tie_count; i++)
        bytes += tie_scratch(gradients, &gradients->ties[i]);
    return bytes + aligned((size_t)gradients->replicated * sizeof(float)) + partial_scratch(gradients);
}

void gradients_attach(struct gradients *gradients, float *arena, char *scratch)
{
    struct carve carve = {.base = scratch};
    gradients->arena = arena;
    for (int i = 0; i < BUCKETS_UNDER_WAY; i++)
        gradients->slots[i].scratch = carve_bytes(&carve, bucket_scratch(gradients));
    for (int i = 0; i < gradients->tie_count; i++)
        gradients->ties[i].scratch = carve_bytes(&carve, tie_scratch(gradients, &gradients->ties[i]));
    gradients->partial = carve_floats(&carve, gradients->replicated);
    gradients->partial_scratch = carve_bytes(&carve, partial_scratch(gradients));
}

/* Starts as many queued sums as there are free slots; the order is that of the queue on every data rank. */
static void start_queued(struct gradients *gradients)
{
    struct communicator *data = gradients->grid->data_group;
    for (int i = 0; i < BUCKETS_UNDER_WAY && gradients->started < gradients->queued; i++) {
        struct slot *slot = &gradients->slots[i];
        if (slot->transfer)
            continue;
        struct bucket bucket = gradients->queue[gradients->started++];
        float *buffer = gradients->arena + bucket.begin;
        const float *parts[] = {buffer};
        slot->begin = clock_seconds();
        slot->count = bucket.count;
        slot->transfer =
            data->ops->sum_begin(data, buffer, parts, bucket.count, communicator_one_each(data), slot->scratch);
    }
}

static void trace_sum(const struct slot *slot)
{
    if (trace_is_open())
        trace_record(&(struct trace_span){.name = "REDUCE_GRADIENTS",
                                          .begin = slot->begin,
                                          .end = clock_seconds(),
                                          .bytes = slot->count * (int64_t)sizeof(float),
                                          .step = -1,
                                          .stage = -1,
                                          .microbatch = -1,
                                          .lane = TRACE_REDUCE});
}

static void enqueue(struct gradients *gradients, int64_t begin, int64_t count)
{
    for (int64_t done = 0; done < count; done += BUCKET_ELEMENTS)
        gradients->queue[gradients->queued++] =
            (struct bucket){begin + done, count - done < BUCKET_ELEMENTS ? count - done : BUCKET_ELEMENTS};
}

void gradients_layer_done(struct gradients *gradients, int local_layer)
{
    if (gradients->grid->data == 1)
        return;
    const struct parameters *parameters = gradients->parameters;
    int64_t begin = 0, count = 0; /* neighbouring shares go together */
    for (int i = parameters->layer_first[local_layer]; i < parameters->layer_first[local_layer + 1]; i++) {
        const struct parameter_share *share = &parameters->shares[i];
        if (count > 0 && begin + count != share->gradient) {
            enqueue(gradients, begin, count);
            count = 0;
        }
        if (count == 0)
            begin = share->gradient;
        count += share->count;
    }
    enqueue(gradients, begin, count);
    start_queued(gradients);
}

void gradients_progress(struct gradients *gradients)
{
    struct communicator *data = gradients->grid->data_group;
    if (gradients->grid->data == 1)
        return;
    for (int i = 0; i < BUCKETS_UNDER_WAY; i++) {
        struct slot *slot = &gradients->slots[i];
        if (slot->transfer && data->ops->test(slot->transfer)) {
            trace_sum(slot);
            slot->transfer = NULL;
        }
    }
    start_queued(gradients);
}

/* All that has been queued is summed. */
static void drain(struct gradients *gradients)
{
    struct communicator *data = gradients->grid->data_group;
    for (;;) {
        start_queued(gradients);
        struct slot *oldest = NULL;
        for (int i = 0; i < BUCKETS_UNDER_WAY; i++) {
            struct slot *slot = &gradients->slots[i];
            if (slot->transfer && (!oldest || slot->begin < oldest->begin))
                oldest = slot;
        }
        if (!oldest)
            break;
        data->ops->wait(oldest->transfer);
        trace_sum(oldest);
        oldest->transfer = NULL;
    }
    gradients->queued = gradients->started = 0;
}

/* Norms, biases behind row-parallel matmuls and positions worked on a share of the rows: one sum for all of them. */
static void sum_partial(struct gradients *gradients)
{
    if (gradients->replicated == 0)
        return;
    const struct parameters *parameters = gradients->parameters;
    struct communicator *tensor = gradients->grid->tensor_group;
    for (int pack = 1; pack >= 0; pack--) {
        int64_t offset = 0;
        for (int i = 0; i < parameters->count; i++) {
            const struct parameter_share *share = &parameters->shares[i];
            if (!is_replicated(share))
                continue;
            float *place = gradients->arena + share->gradient, *packed = gradients->partial + offset;
            gradients->device->copy(gradients->stream, pack ? packed : place, pack ? place : packed,
                                    (size_t)share->count * sizeof(float));
            offset += share->count;
        }
        if (pack)
            tensor->ops->all_reduce(tensor, gradients->partial, gradients->replicated, gradients->partial_scratch);
    }
}

static void sum_ties(struct gradients *gradients)
{
    for (int i = 0; i < gradients->tie_count; i++) {
        struct tie *tie = &gradients->ties[i];
        const struct parameter_share *shares = gradients->parameters->shares;
        for (int j = 0; j < tie->share_count; j++)
            tie->parts[j] = gradients->arena + shares[tie->shares[j]].gradient;
        const struct parameter_share *first = &shares[tie->shares[0]];
        struct transfer *sum = tie->ranks->ops->sum_begin(tie->ranks, gradients->arena + first->gradient, tie->parts,
                                                          first->count, &tie->who, tie->scratch);
        tie->ranks->ops->wait(sum);
    }
}

void gradients_finish(struct gradients *gradients)
{
    drain(gradients);
    sum_partial(gradients);
    sum_ties(gradients);
}

void gradients_squares(const struct gradients *gradients, double *squares)
{
    const struct parameters *parameters = gradients->parameters;
    const struct grid *grid = gradients->grid;
    memset(squares, 0, (size_t)parameters->logical_count * (size_t)grid->tensor * sizeof *squares);
    for (int i = 0; i < parameters->count; i++) {
        const struct parameter_share *share = &parameters->shares[i];
        /* Data ranks hold the same sums by now and share the work. */
        if (!share->owner || (is_replicated(share) && grid->t != 0) || i % grid->data != grid->d)
            continue;
        gradients->device->squares(gradients->stream, gradients->blocks, gradients->arena + share->gradient,
                                   share->count);
        double sum = 0;
        for (int64_t block = 0; block * SQUARES_BLOCK < share->count; block++)
            sum += gradients->blocks[block];
        squares[share->logical * grid->tensor + grid->t] = sum;
    }
}
