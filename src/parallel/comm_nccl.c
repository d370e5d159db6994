#include "parallel/comm_nccl.h"

#include <stdint.h>
#include <stdlib.h>

#include "base/memory.h"
#include "kernels/cuda/cuda.h"
#include "parallel/comm_alone.h"
#include "parallel/comm_nccl_library.h"
#include "parallel/comm_queued.h"
#include "parallel/mpi_check.h"

enum {
    /* Multiprocessors that a message keeps busy, also while a receive that was posted ahead waits for its sender. A
     * rank may have four such receives, from both neighbours in two rings: 16 of the 132 of an H100. By NCCL's choice
     * there could be too few left for what the messages wait for. */
    MESSAGE_BLOCKS = 4,
    MOST_LINKS = 4, /* of a ring's rank: to and from two neighbours */
    TAG = 0         /* of the ids in MPI messages */
};

/* An NCCL communicator and the stream where its transfers run behind computations. */
struct link {
    ncclComm_t nccl;
    struct stream *queue;
    int peer; /* the other rank; -1: those of a group */
    bool outgoing;
};

struct comm_nccl {
    struct comm_queued queued; /* the first member */
    struct event *ready;       /* where the computations stood when the latest transfer was begun */
    struct link links[MOST_LINKS];
    int links_count;
};

static struct comm_nccl *of(struct communicator *comm)
{
    return (struct comm_nccl *)comm; /* queued.base is its first member */
}

static ncclDataType_t type_of(enum element element)
{
    return element == ELEMENT_BFLOAT16 ? ncclBfloat16 : ncclFloat32;
}

/* What is queued on the link from here on comes behind what is on the computations' stream now. */
static void follow(struct comm_nccl *comm, const struct link *link)
{
    const struct device *device = comm->queued.device;
    device->event_record(comm->queued.stream, comm->ready);
    device->event_wait(link->queue, comm->ready);
}

/* Messages */

static const struct link *link_to(const struct comm_nccl *comm, int peer, bool outgoing)
{
    for (int i = 0; i < comm->links_count; i++)
        if (comm->links[i].peer == peer && comm->links[i].outgoing == outgoing)
            return &comm->links[i];
    fatal("rank %d of %d has no neighbour %d for messages", comm->queued.base.rank, comm->queued.base.size, peer);
}

static struct transfer *end_message(struct comm_nccl *comm, const struct link *link)
{
    return comm_queued_transfer(&comm->queued, link->queue, comm->queued.base.world_ranks[link->peer], 0);
}

static struct transfer *comm_send(struct communicator *base, const void *buffer, size_t bytes, int to, int tag)
{
    struct comm_nccl *comm = of(base);
    const struct link *link = link_to(comm, to, true);
    (void)tag;
    follow(comm, link);
    if (bytes > 0)
        NCCL_CHECK(ncclSend(buffer, bytes, ncclUint8, 1, link->nccl, link->queue->queue));
    return end_message(comm, link);
}

static struct transfer *comm_receive(struct communicator *base, void *buffer, size_t bytes, int from, int tag)
{
    struct comm_nccl *comm = of(base);
    const struct link *link = link_to(comm, from, false);
    (void)tag;
    follow(comm, link);
    if (bytes > 0)
        NCCL_CHECK(ncclRecv(buffer, bytes, ncclUint8, 0, link->nccl, link->queue->queue));
    return end_message(comm, link);
}

/* Sums and gatherings */

static bool are_equal(const int64_t *counts, int size)
{
    for (int i = 1; i < size; i++)
        if (counts[i] != counts[0])
            return false;
    return true;
}

/* Contributions that come from other ranks go into the scratch; where there is one alone it is the result. */
static void broadcast_parts(struct comm_nccl *comm, struct stream *queue, enum element element, void *result,
                            const void *const *parts, int64_t count, const struct contributions *who, void *scratch)
{
    int others = 0;
    NCCL_CHECK(ncclGroupStart());
    for (int i = 0; i < who->count; i++) {
        bool is_mine = who->rank_of[i] == comm->queued.base.rank;
        void *to = is_mine ? (void *)(uintptr_t)*parts : comm_queued_slot(scratch, element, count, who, others);
        if (who->count == 1)
            to = result;
        NCCL_CHECK(ncclBroadcast(is_mine ? *parts : NULL, to, (size_t)count, type_of(element), who->rank_of[i],
                                 comm->links[0].nccl, queue->queue));
        parts += is_mine;
        others += !is_mine;
    }
    NCCL_CHECK(ncclGroupEnd());
}

static void queue_all_reduce(struct comm_nccl *comm, struct stream *queue, enum element element, void *to,
                             const void *from, int64_t count)
{
    if (count > 0)
        NCCL_CHECK(
            ncclAllReduce(from, to, (size_t)count, type_of(element), ncclSum, comm->links[0].nccl, queue->queue));
}

static void queue_reduce_scatter(struct comm_nccl *comm, struct stream *queue, enum element element, void *mine,
                                 const void *whole, const int64_t *counts)
{
    ncclComm_t nccl = comm->links[0].nccl;
    int size = comm->queued.base.size;
    const char *piece = whole;
    if (are_equal(counts, size) && counts[0] > 0) {
        NCCL_CHECK(ncclReduceScatter(whole, mine, (size_t)counts[0], type_of(element), ncclSum, nccl, queue->queue));
        return;
    }
    NCCL_CHECK(ncclGroupStart());
    for (int i = 0; i < size; i++) {
        if (counts[i] > 0)
            NCCL_CHECK(ncclReduce(piece, mine, (size_t)counts[i], type_of(element), ncclSum, i, nccl, queue->queue));
        piece += (size_t)counts[i] * element_bytes(element);
    }
    NCCL_CHECK(ncclGroupEnd());
}

static void queue_all_gather(struct comm_nccl *comm, struct stream *queue, void *whole, const void *mine,
                             const int64_t *counts, size_t size)
{
    ncclComm_t nccl = comm->links[0].nccl;
    int ranks = comm->queued.base.size;
    char *piece = whole;
    if (are_equal(counts, ranks) && counts[0] > 0) {
        NCCL_CHECK(ncclAllGather(mine, whole, (size_t)counts[0] * size, ncclUint8, nccl, queue->queue));
        return;
    }
    NCCL_CHECK(ncclGroupStart());
    for (int i = 0; i < ranks; i++) {
        size_t bytes = (size_t)counts[i] * size;
        if (bytes > 0)
            NCCL_CHECK(ncclBroadcast(mine, piece, bytes, ncclUint8, i, nccl, queue->queue));
        piece += bytes;
    }
    NCCL_CHECK(ncclGroupEnd());
}

static struct transfer *end_sum(struct comm_nccl *comm)
{
    return comm_queued_transfer(&comm->queued, comm->links[0].queue, -1, comm_queued_count(&comm->queued));
}

static struct transfer *comm_sum_begin(struct communicator *base, enum element element, void *result,
                                       const void *const *parts, int64_t count, const struct contributions *who,
                                       void *scratch)
{
    struct comm_nccl *comm = of(base);
    struct stream *queue = comm->links[0].queue;
    follow(comm, &comm->links[0]);
    if (comm_queued_is_one_each(base, who)) {
        queue_all_reduce(comm, queue, element, result, parts[0], count);
    } else if (count > 0) {
        broadcast_parts(comm, queue, element, result, parts, count, who, scratch);
        if (who->count > 1)
            comm_queued_add(&comm->queued, queue, element, result, parts, count, who, scratch);
    }
    return end_sum(comm);
}

static struct transfer *comm_reduce_scatter_begin(struct communicator *base, enum element element, void *mine,
                                                  const void *whole, const int64_t *counts, void *scratch)
{
    struct comm_nccl *comm = of(base);
    (void)scratch;
    follow(comm, &comm->links[0]);
    queue_reduce_scatter(comm, comm->links[0].queue, element, mine, whole, counts);
    return end_sum(comm);
}

static struct transfer *comm_all_gather_begin(struct communicator *base, void *whole, const void *mine,
                                              const int64_t *counts, size_t size)
{
    struct comm_nccl *comm = of(base);
    follow(comm, &comm->links[0]);
    queue_all_gather(comm, comm->links[0].queue, whole, mine, counts, size);
    return end_sum(comm);
}

static void comm_all_reduce(struct communicator *base, enum element element, void *buffer, int64_t count, void *scratch)
{
    struct comm_nccl *comm = of(base);
    (void)scratch;
    comm_queued_count(&comm->queued);
    queue_all_reduce(comm, comm->queued.stream, element, buffer, buffer, count);
}

static void comm_reduce_scatter(struct communicator *base, enum element element, void *mine, const void *whole,
                                const int64_t *counts, void *scratch)
{
    struct comm_nccl *comm = of(base);
    (void)scratch;
    comm_queued_count(&comm->queued);
    queue_reduce_scatter(comm, comm->queued.stream, element, mine, whole, counts);
}

static void comm_all_gather(struct communicator *base, void *whole, const void *mine, const int64_t *counts,
                            size_t size)
{
    struct comm_nccl *comm = of(base);
    comm_queued_count(&comm->queued);
    queue_all_gather(comm, comm->queued.stream, whole, mine, counts, size);
}

/* The device goes on by itself: errors that it met are looked for. */
static void comm_progress(struct communicator *base)
{
    const struct comm_nccl *comm = of(base);
    for (int i = 0; i < comm->links_count; i++) {
        ncclResult_t status;
        NCCL_CHECK(ncclCommGetAsyncError(comm->links[i].nccl, &status));
        nccl_library_check(status, "a transfer under way", __FILE__, __LINE__);
    }
}

/* Opening and closing. Several ranks' links are opened and closed in an order that is the same for all, so that none
 * waits for a neighbour that waits for it. */

static void comm_close(struct communicator *base)
{
    struct comm_nccl *comm = of(base);
    const struct device *device = comm->queued.device;
    comm_queued_must_be_idle(&comm->queued);
    device->stream_wait(comm->queued.stream); /* all_reduce and the like run there */
    for (int i = 0; i < comm->links_count; i++) {
        device->stream_wait(comm->links[i].queue);
        nccl_library_close(comm->links[i].nccl);
        device->stream_close(comm->links[i].queue);
    }
    device->event_close(comm->ready);
    comm_queued_release(&comm->queued);
    free(comm);
}

const struct communicator_ops comm_nccl_table = {
    .name = "nccl",
    .close = comm_close,
    .send = comm_send,
    .receive = comm_receive,
    .sum_begin = comm_sum_begin,
    .sum_scratch = comm_queued_sum_scratch,
    .scatter_scratch = comm_queued_scatter_scratch,
    .reduce_scatter_begin = comm_reduce_scatter_begin,
    .all_gather_begin = comm_all_gather_begin,
    .join = comm_queued_join,
    .test = comm_queued_test,
    .wait = comm_queued_wait,
    .progress = comm_progress,
    .all_reduce = comm_all_reduce,
    .reduce_scatter = comm_reduce_scatter,
    .all_gather = comm_all_gather,
};

static struct comm_nccl *open_without_links(MPI_Comm mpi, const struct device *device, struct stream *stream)
{
    struct err err;
    if (comm_nccl_load(&err) < 0)
        fatal("%s", err.text);
    struct comm_nccl *comm = allocate(1, sizeof *comm); /* freed by comm_close */
    comm_queued_init(&comm->queued, &comm_nccl_table, mpi, device, stream);
    comm->ready = device->event_open();
    return comm;
}

/* The ends of a new link: NCCL connects ranks at their first transfer, where the host of each waits for the others. So
 * that a receive can be posted ahead later on, and takes no memory then, that transfer is made here. */
static void make_connection(struct comm_nccl *comm, struct link *link)
{
    const struct device *device = comm->queued.device;
    const size_t bytes = sizeof(float);
    void *word = device->allocate(bytes);
    if (!word)
        fatal("out of memory of the device: none is left for NCCL");
    device->zero(link->queue, word, bytes);
    if (link->peer < 0)
        queue_all_reduce(comm, link->queue, ELEMENT_FLOAT32, word, word, 1);
    else if (link->outgoing)
        NCCL_CHECK(ncclSend(word, bytes, ncclUint8, 1, link->nccl, link->queue->queue));
    else
        NCCL_CHECK(ncclRecv(word, bytes, ncclUint8, 0, link->nccl, link->queue->queue));
    device->stream_wait(link->queue);
    device->release(word, bytes);
}

static struct link *add_link(struct comm_nccl *comm, ncclUniqueId id, int size, int rank, int most_blocks)
{
    struct link *link = &comm->links[comm->links_count++];
    link->nccl = nccl_library_open(id, size, rank, most_blocks);
    link->queue = cuda_stream_open_urgent();
    return link;
}

static bool is_alone(MPI_Comm mpi)
{
    int size;
    mpi_check(MPI_Comm_size(mpi, &size), "MPI_Comm_size");
    return size == 1;
}

struct communicator *comm_nccl_open_group(MPI_Comm mpi, const struct device *device, struct stream *stream)
{
    if (is_alone(mpi))
        return comm_alone_open(mpi, device, stream);
    struct comm_nccl *comm = open_without_links(mpi, device, stream);
    struct communicator *base = &comm->queued.base;
    ncclUniqueId id;
    if (base->rank == 0)
        NCCL_CHECK(ncclGetUniqueId(&id));
    mpi_check(MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, base->mpi), "MPI_Bcast");
    struct link *link = add_link(comm, id, base->size, base->rank, 0);
    link->peer = -1;
    make_connection(comm, link);
    return base;
}

/* The link for messages from one rank to another, of which this rank is either. */
static void open_link(struct comm_nccl *comm, int from, int to)
{
    struct communicator *base = &comm->queued.base;
    bool outgoing = base->rank == from;
    ncclUniqueId id;
    if (outgoing) {
        NCCL_CHECK(ncclGetUniqueId(&id));
        mpi_check(MPI_Send(&id, sizeof id, MPI_BYTE, to, TAG, base->mpi), "MPI_Send to rank %d", to);
    } else {
        mpi_check(MPI_Recv(&id, sizeof id, MPI_BYTE, from, TAG, base->mpi, MPI_STATUS_IGNORE), "MPI_Recv from rank %d",
                  from);
    }
    struct link *link = add_link(comm, id, 2, outgoing ? 0 : 1, MESSAGE_BLOCKS);
    link->outgoing = outgoing;
    link->peer = outgoing ? to : from;
    make_connection(comm, link);
}

/* Both links between a rank and the next one. */
static void open_links_behind(struct comm_nccl *comm, int rank)
{
    int next = (rank + 1) % comm->queued.base.size;
    open_link(comm, rank, next);
    open_link(comm, next, rank);
}

struct communicator *comm_nccl_open_ring(MPI_Comm mpi, const struct device *device, struct stream *stream)
{
    if (is_alone(mpi))
        return comm_alone_open(mpi, device, stream);
    struct comm_nccl *comm = open_without_links(mpi, device, stream);
    const struct communicator *base = &comm->queued.base;
    int before = (base->rank + base->size - 1) % base->size;
    if (base->size == 2) {
        open_links_behind(comm, 0);
        return &comm->queued.base;
    }
    /* The ranks' links to the next one in ascending order, those of even ranks first: that way pairs do not wait for
     * each other all around the ring. */
    bool mine_first = base->rank % 2 != before % 2 ? base->rank % 2 == 0 : base->rank < before;
    open_links_behind(comm, mine_first ? base->rank : before);
    open_links_behind(comm, mine_first ? before : base->rank);
    return &comm->queued.base;
}
