/* Vectors in the memory of a device, with guards behind them, and a job whose ranks have a device each: for tests of
 * communicators. */
#ifndef TESTS_COMM_VECTORS_H
#define TESTS_COMM_VECTORS_H

#include <sched.h>
#include <stdlib.h>

#include "base/memory.h"
#include "parallel/comm_nccl.h"
#include "parallel/job.h"
#include "tests/comm_values.h"
#include "tests/device_choice.h"

enum {
    GUARDS = 16, /* elements behind every vector */
    MOST_RANKS = 64
};
static const float GUARD = 12352.0f; /* a bfloat16 too */

static const struct device *device;
static struct stream *stream;

/* In memory of the device. */
struct vector {
    enum element element;
    int64_t count; /* without the guards */
    char *memory;
};

static inline size_t bytes_of(const struct vector *v)
{
    return (size_t)(v->count + GUARDS) * element_bytes(v->element);
}

/* Element k of contribution i as the vector stores it. */
static inline float stored(enum element type, int i, int64_t k, unsigned salt)
{
    float x = element(i, k, salt);
    return type == ELEMENT_BFLOAT16 ? from_upper_half(upper_half(x)) : x;
}

static inline void write_vector(const struct vector *v, const float *values)
{
    uint16_t *halves = allocate((size_t)(v->count + GUARDS), sizeof *halves);
    for (int64_t k = 0; k < v->count + GUARDS; k++)
        halves[k] = upper_half(values[k]);
    device->copy(stream, v->memory, v->element == ELEMENT_BFLOAT16 ? (const void *)halves : values, bytes_of(v));
    device->stream_wait(stream);
    free(halves);
}

/* The caller frees them. */
static inline float *read_vector(const struct vector *v)
{
    float *values = allocate((size_t)(v->count + GUARDS), sizeof *values);
    uint16_t *halves = allocate((size_t)(v->count + GUARDS), sizeof *halves);
    device->copy(stream, v->element == ELEMENT_BFLOAT16 ? (void *)halves : values, v->memory, bytes_of(v));
    device->stream_wait(stream);
    for (int64_t k = 0; k < v->count + GUARDS && v->element == ELEMENT_BFLOAT16; k++)
        values[k] = from_upper_half(halves[k]);
    free(halves);
    return values;
}

/* Elements first ... of contribution i; i < 0: the guard everywhere. */
static inline struct vector make(enum element type, int64_t count, int i, int64_t first, unsigned salt)
{
    struct vector v = {.element = type, .count = count};
    v.memory = device->allocate(bytes_of(&v));
    float *values = allocate((size_t)(count + GUARDS), sizeof *values);
    for (int64_t k = 0; k < count + GUARDS; k++)
        values[k] = i < 0 || k >= count ? GUARD : element(i, first + k, salt);
    write_vector(&v, values);
    free(values);
    return v;
}

static inline struct vector make_empty(enum element type, int64_t count)
{
    return make(type, count, -1, 0, 0);
}

static inline void drop(struct vector *v)
{
    device->release(v->memory, bytes_of(v));
    v->memory = NULL;
}

/* Waits for a transfer of the communicator, or polls it. */
static inline void end(struct communicator *comm, struct transfer *transfer, bool by_test)
{
    if (!by_test)
        comm->ops->wait(transfer);
    else
        while (!comm->ops->test(transfer))
            sched_yield();
}

/* Whether two ranks were given the same device. */
static inline bool devices_are_shared(struct communicator *world)
{
    struct device_identity all[MOST_RANKS];
    control_gather(world, all, &cuda_identity, sizeof cuda_identity, 0);
    char shared = 0;
    for (int i = 0; i < world->size && world->rank == 0; i++)
        for (int j = 0; j < i; j++)
            shared |= memcmp(all[i].unique, all[j].unique, sizeof all[i].unique) == 0;
    control_broadcast(world, &shared, 1, 0);
    return shared;
}

/* Checks in a job whose ranks have a device each, by the program's name, with a stream on it; where there are no such
 * devices the test is skipped. Returns the program's status. */
static inline int check_on_devices(int argc, char **argv, void (*check)(const struct job *job))
{
    struct job job;
    struct err err;
    job_begin(&argc, &argv, &job);
    const char *reason = device_choice_open_for(argv[0], job.node_rank, job.node_size);
    if (!reason && cuda && job.world->size > 1 && devices_are_shared(job.world))
        reason = "there is no CUDA device for each rank";
    if (!reason) {
        device = device_of(1);
        stream = device->stream_open();
        if (job.world->size > 1)
            ok(comm_nccl_load(&err) == 0, "NCCL is there");
        check(&job);
        ok(comm_nccl_error() == NULL, "no error has come up");
        device->stream_close(stream);
    }
    int status = reason ? tap_skip_all(reason) : tap_done();
    job_end(&job);
    return status;
}

#endif
