#include "run/bucket_queue.h"

#include <stdlib.h>

#include "base/memory.h"
#include "base/trace.h"
#include "parallel/flight.h"
#include "plan/footprint.h"

struct request {
    int bucket;
    bool gather; /* of weights; else a sum of gradients */
};

struct slot {
    struct transfer *transfer; /* NULL: free */
    struct request request;
    void *scratch;
    double begin;
};

struct bucket_queue {
    const struct shards *shards;
    struct communicator *data;
    char *computed;
    float *gradients;
    struct request *requests; /* those since the queue was last empty: a gathering and a sum of each bucket */
    int capacity, queued, started;
    bool *gathering; /* [buckets] asked for and not done */
    struct slot slots[BUCKETS_UNDER_WAY];
};

struct bucket_queue *bucket_queue_create(const struct grid *grid, const struct shards *shards)
{
    struct bucket_queue *queue = allocate(1, sizeof *queue);
    *queue = (struct bucket_queue){.shards = shards, .data = grid->data_group, .capacity = 2 * shards->bucket_count};
    queue->requests = allocate((size_t)queue->capacity, sizeof *queue->requests);
    queue->gathering = allocate((size_t)shards->bucket_count, sizeof *queue->gathering);
    return queue;
}

void bucket_queue_destroy(struct bucket_queue *queue)
{
    if (!queue)
        return;
    bucket_queue_drain(queue);
    free(queue->requests);
    free(queue->gathering);
    free(queue);
}

static size_t slot_scratch(const struct bucket_queue *queue)
{
    const struct shards *shards = queue->shards;
    struct communicator *data = queue->data;
    size_t most = 0;
    for (int b = 0; b < shards->bucket_count; b++) {
        const struct bucket *bucket = &shards->buckets[b];
        size_t bytes = shards->sharded
                           ? data->ops->scatter_scratch(data, ELEMENT_FLOAT32, bucket->pieces[shards->d])
                           : data->ops->sum_scratch(data, ELEMENT_FLOAT32, bucket->count, communicator_one_each(data));
        if (bytes > most)
            most = bytes;
    }
    return (most + 63) / 64 * 64;
}

size_t bucket_queue_bytes(const struct bucket_queue *queue)
{
    return BUCKETS_UNDER_WAY * slot_scratch(queue);
}

void bucket_queue_attach(struct bucket_queue *queue, char *computed, float *gradients, char *scratch)
{
    struct carve carve = {.base = scratch};
    queue->computed = computed;
    queue->gradients = gradients;
    for (int i = 0; i < BUCKETS_UNDER_WAY; i++)
        queue->slots[i].scratch = carve_bytes(&carve, slot_scratch(queue));
}

static struct transfer *start(const struct bucket_queue *queue, struct request request, void *scratch)
{
    struct communicator *data = queue->data;
    const struct bucket *bucket = &queue->shards->buckets[request.bucket];
    if (request.gather) {
        char *whole = queue->computed + bucket->computed;
        return data->ops->all_gather_begin(data, whole, whole + bucket->computed_own, bucket->computed_pieces, 1);
    }
    float *whole = queue->gradients + bucket->gradient;
    const void *parts[] = {whole};
    return queue->shards->sharded ? data->ops->reduce_scatter_begin(data, ELEMENT_FLOAT32, whole + bucket->own, whole,
                                                                    bucket->pieces, scratch)
                                  : data->ops->sum_begin(data, ELEMENT_FLOAT32, whole, parts, bucket->count,
                                                         communicator_one_each(data), scratch);
}

static void start_queued(struct bucket_queue *queue)
{
    for (int i = 0; i < BUCKETS_UNDER_WAY && queue->started < queue->queued; i++) {
        struct slot *slot = &queue->slots[i];
        if (slot->transfer)
            continue;
        slot->request = queue->requests[queue->started++];
        slot->begin = clock_seconds();
        slot->transfer = start(queue, slot->request, slot->scratch);
    }
}

static int64_t bytes_of(const struct bucket_queue *queue, struct request request)
{
    const struct bucket *bucket = &queue->shards->buckets[request.bucket];
    int64_t bytes = 0;
    for (int d = 0; d < queue->shards->data; d++)
        bytes += request.gather ? bucket->computed_pieces[d] : bucket->pieces[d] * (int64_t)sizeof(float);
    return bytes;
}

/* The slot's transfer has ended. */
static void finish(struct bucket_queue *queue, struct slot *slot)
{
    if (slot->request.gather)
        queue->gathering[slot->request.bucket] = false;
    if (trace_is_open())
        trace_record(&(struct trace_span){.name = slot->request.gather ? "GATHER_WEIGHTS" : "REDUCE_GRADIENTS",
                                          .begin = slot->begin,
                                          .end = clock_seconds(),
                                          .bytes = bytes_of(queue, slot->request),
                                          .step = -1,
                                          .stage = -1,
                                          .microbatch = -1,
                                          .lane = TRACE_REDUCE});
    slot->transfer = NULL;
}

static void ask(struct bucket_queue *queue, struct request request)
{
    if (queue->data->size == 1)
        return;
    if (queue->queued == queue->capacity)
        fatal("more than %d transfers between data ranks in a step", queue->capacity);
    queue->requests[queue->queued++] = request;
    bucket_queue_progress(queue);
}

void bucket_queue_sum(struct bucket_queue *queue, int bucket)
{
    ask(queue, (struct request){.bucket = bucket});
}

void bucket_queue_gather(struct bucket_queue *queue, int bucket)
{
    queue->gathering[bucket] = queue->data->size > 1;
    ask(queue, (struct request){.bucket = bucket, .gather = true});
}

void bucket_queue_progress(struct bucket_queue *queue)
{
    for (int i = 0; i < BUCKETS_UNDER_WAY; i++) {
        struct slot *slot = &queue->slots[i];
        if (slot->transfer && queue->data->ops->test(slot->transfer))
            finish(queue, slot);
    }
    start_queued(queue);
}

void bucket_queue_wait_weights(struct bucket_queue *queue, int layer)
{
    const struct shards *shards = queue->shards;
    for (int b = shards->layer_first[layer]; b < shards->layer_first[layer + 1]; b++) {
        const bool *gathering = &queue->gathering[shards->buckets[b].first_end];
        if (!*gathering)
            continue;
        flight_begin_wait(FLIGHT_GATHER_WEIGHTS, -1, queue->data->flight, FLIGHT_SUMS, 0);
        for (int polls = 0; *gathering; communicator_pause(&polls))
            bucket_queue_progress(queue);
        flight_end();
    }
}

void bucket_queue_drain(struct bucket_queue *queue)
{
    for (;;) {
        start_queued(queue);
        struct slot *oldest = NULL;
        for (int i = 0; i < BUCKETS_UNDER_WAY; i++) {
            struct slot *slot = &queue->slots[i];
            if (slot->transfer && (!oldest || slot->begin < oldest->begin))
                oldest = slot;
        }
        if (!oldest)
            break;
        queue->data->ops->wait(oldest->transfer);
        finish(queue, oldest);
    }
    queue->queued = queue->started = 0;
}
