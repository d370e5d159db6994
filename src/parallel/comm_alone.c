#include "parallel/comm_alone.h"

#include <stdlib.h>

#include "base/memory.h"
#include "parallel/comm_queued.h"

static struct comm_queued *of(struct communicator *comm)
{
    return (struct comm_queued *)comm; /* base is its first member */
}

static void alone_close(struct communicator *base)
{
    comm_queued_must_be_idle(of(base));
    comm_queued_release(of(base));
    free(of(base));
}

static struct transfer *alone_send(struct communicator *base, const void *buffer, size_t bytes, int to, int tag)
{
    (void)base, (void)buffer;
    fatal("a message of %zu bytes to rank %d under tag %d where there is one rank", bytes, to, tag);
}

static struct transfer *alone_receive(struct communicator *base, void *buffer, size_t bytes, int from, int tag)
{
    (void)base, (void)buffer;
    fatal("a message of %zu bytes from rank %d under tag %d where there is one rank", bytes, from, tag);
}

static struct transfer *end(struct communicator *base)
{
    struct comm_queued *comm = of(base);
    return comm_queued_transfer(comm, comm->stream, -1, comm_queued_count(comm));
}

static void copy(struct communicator *base, void *to, const void *from, size_t bytes)
{
    struct comm_queued *comm = of(base);
    if (to != from)
        comm->device->copy(comm->stream, to, from, bytes);
}

static struct transfer *alone_sum_begin(struct communicator *base, enum element element, void *result,
                                        const void *const *parts, int64_t count, const struct contributions *who,
                                        void *scratch)
{
    comm_queued_add(of(base), of(base)->stream, element, result, parts, count, who, scratch);
    return end(base);
}

static void alone_all_reduce(struct communicator *base, enum element element, void *buffer, int64_t count,
                             void *scratch)
{
    (void)base, (void)element, (void)buffer, (void)count, (void)scratch; /* it is the sum */
}

static void alone_reduce_scatter(struct communicator *base, enum element element, void *mine, const void *whole,
                                 const int64_t *counts, void *scratch)
{
    (void)scratch;
    copy(base, mine, whole, (size_t)counts[0] * element_bytes(element));
}

static void alone_all_gather(struct communicator *base, void *whole, const void *mine, const int64_t *counts,
                             size_t size)
{
    copy(base, whole, mine, (size_t)counts[0] * size);
}

static struct transfer *alone_reduce_scatter_begin(struct communicator *base, enum element element, void *mine,
                                                   const void *whole, const int64_t *counts, void *scratch)
{
    alone_reduce_scatter(base, element, mine, whole, counts, scratch);
    return end(base);
}

static struct transfer *alone_all_gather_begin(struct communicator *base, void *whole, const void *mine,
                                               const int64_t *counts, size_t size)
{
    alone_all_gather(base, whole, mine, counts, size);
    return end(base);
}

static void alone_progress(struct communicator *base)
{
    (void)base; /* the device goes on by itself */
}

static const struct communicator_ops alone_table = {
    .name = "one rank",
    .close = alone_close,
    .send = alone_send,
    .receive = alone_receive,
    .sum_begin = alone_sum_begin,
    .sum_scratch = comm_queued_sum_scratch,
    .scatter_scratch = comm_queued_scatter_scratch,
    .reduce_scatter_begin = alone_reduce_scatter_begin,
    .all_gather_begin = alone_all_gather_begin,
    .join = comm_queued_join,
    .test = comm_queued_test,
    .wait = comm_queued_wait,
    .progress = alone_progress,
    .all_reduce = alone_all_reduce,
    .reduce_scatter = alone_reduce_scatter,
    .all_gather = alone_all_gather,
};

struct communicator *comm_alone_open(MPI_Comm mpi, const struct device *device, struct stream *stream)
{
    struct comm_queued *comm = allocate(1, sizeof *comm); /* freed by alone_close */
    comm_queued_init(comm, &alone_table, mpi, device, stream);
    return &comm->base;
}
