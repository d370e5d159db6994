#include "parallel/comm_queued.h"

#include <stdlib.h>

#include "base/memory.h"
#include "parallel/flight.h"

enum {
    ALIGN = 64,  /* bytes: slots start where kernels read 16 bytes at a time */
    WIDTH = 4096 /* elements of a row: kernels take long vectors in rows */
};

void comm_queued_init(struct comm_queued *comm, const struct communicator_ops *ops, MPI_Comm mpi,
                      const struct device *device, struct stream *stream)
{
    communicator_init(&comm->base, ops, mpi);
    comm->device = device;
    comm->stream = stream;
    comm->free = NULL;
    comm->under_way = 0;
}

void comm_queued_must_be_idle(const struct comm_queued *comm)
{
    if (comm->under_way > 0)
        fatal("a communicator is closed with %d transfers under way", comm->under_way);
}

void comm_queued_release(struct comm_queued *comm)
{
    while (comm->free) {
        struct transfer *transfer = comm->free;
        comm->free = transfer->next;
        comm->device->event_close(transfer->event);
        free(transfer);
    }
    communicator_release(&comm->base);
}

uint64_t comm_queued_count(struct comm_queued *comm)
{
    return flight_group_begin(comm->base.flight, FLIGHT_SUMS);
}

struct transfer *comm_queued_transfer(struct comm_queued *comm, struct stream *stream, int peer, uint64_t sequence)
{
    struct transfer *transfer = comm->free;
    if (transfer) {
        comm->free = transfer->next;
    } else {
        transfer = allocate(1, sizeof *transfer); /* freed by comm_queued_release */
        transfer->comm = comm;
        transfer->event = comm->device->event_open();
    }
    transfer->next = NULL;
    transfer->peer = peer;
    transfer->sequence = sequence;
    comm->device->event_record(stream, transfer->event);
    comm->under_way++;
    return transfer;
}

static void release(struct transfer *transfer)
{
    struct comm_queued *comm = transfer->comm;
    comm->under_way--;
    transfer->next = comm->free;
    comm->free = transfer;
}

void comm_queued_join(struct transfer *transfer)
{
    struct comm_queued *comm = transfer->comm;
    comm->device->event_wait(comm->stream, transfer->event);
}

bool comm_queued_test(struct transfer *transfer)
{
    if (!transfer->comm->device->event_done(transfer->event))
        return false;
    release(transfer);
    return true;
}

void comm_queued_wait(struct transfer *transfer)
{
    struct comm_queued *comm = transfer->comm;
    if (comm_queued_test(transfer))
        return;
    if (transfer->peer >= 0)
        flight_begin_wait(FLIGHT_MESSAGE, transfer->peer, -1, FLIGHT_SUMS, 0);
    else
        flight_begin_wait(FLIGHT_SUM, -1, comm->base.flight, FLIGHT_SUMS, transfer->sequence);
    int polls = 0;
    while (!comm_queued_test(transfer)) {
        comm->base.ops->progress(&comm->base);
        communicator_pause(&polls);
    }
    flight_end();
}

static size_t slot_bytes(enum element element, int64_t count)
{
    return ((size_t)count * element_bytes(element) + ALIGN - 1) / ALIGN * ALIGN;
}

/* Slots for sums of the first contributions. */
static int partial_slots(const struct contributions *who)
{
    return who->count > 2 ? 1 : 0;
}

bool comm_queued_is_one_each(const struct communicator *comm, const struct contributions *who)
{
    bool holds = who->count == comm->size;
    for (int i = 0; i < who->count && holds; i++)
        holds = who->rank_of[i] == i;
    return holds;
}

size_t comm_queued_sum_scratch(const struct communicator *comm, enum element element, int64_t count,
                               const struct contributions *who)
{
    if (comm_queued_is_one_each(comm, who) || who->count == 1)
        return 0;
    int slots = partial_slots(who);
    for (int i = 0; i < who->count; i++)
        slots += who->rank_of[i] != comm->rank;
    return (size_t)slots * slot_bytes(element, count);
}

size_t comm_queued_scatter_scratch(const struct communicator *comm, enum element element, int64_t mine_count)
{
    (void)comm, (void)element, (void)mine_count;
    return 0;
}

void *comm_queued_slot(void *scratch, enum element element, int64_t count, const struct contributions *who, int others)
{
    return (char *)scratch + (size_t)(partial_slots(who) + others) * slot_bytes(element, count);
}

/* y = x + r; y may be either. In rows, because the kernels' grids are narrower than long vectors. */
static void add(const struct comm_queued *comm, struct stream *stream, enum element element, void *y, const void *x,
                const void *r, int64_t count)
{
    int64_t rows = count / WIDTH, done = rows * WIDTH;
    size_t bytes = (size_t)done * element_bytes(element);
    comm->device->add_residual(stream, element, y, x, r, NULL, rows, WIDTH);
    comm->device->add_residual(stream, element, (char *)y + bytes, (const char *)x + bytes, (const char *)r + bytes,
                               NULL, 1, count - done);
}

void comm_queued_add(struct comm_queued *comm, struct stream *stream, enum element element, void *result,
                     const void *const *parts, int64_t count, const struct contributions *who, void *scratch)
{
    const void *total = NULL;
    int others = 0, last = who->count - 1;
    for (int i = 0; i < who->count; i++) {
        bool is_mine = who->rank_of[i] == comm->base.rank;
        const void *term = is_mine ? *parts++ : comm_queued_slot(scratch, element, count, who, others++);
        if (i == 0) {
            total = term;
            continue;
        }
        void *to = i == last ? result : scratch; /* the result may be a part that is still to be added */
        add(comm, stream, element, to, total, term, count);
        total = to;
    }
    if (last == 0 && total != result)
        comm->device->copy(stream, result, total, (size_t)count * element_bytes(element));
}
