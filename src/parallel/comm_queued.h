/* What communicators have in common whose transfers are queued on streams of a device: transfers that end at events,
 * and sums of contributions in the device's memory. */
#ifndef PARALLEL_COMM_QUEUED_H
#define PARALLEL_COMM_QUEUED_H

#include "parallel/communicator.h"

struct comm_queued {
    struct communicator base; /* the first member: a pointer to either points to both */
    const struct device *device;
    struct stream *stream; /* that computations run on; not owned */
    struct transfer *free; /* the pool */
    int under_way;         /* transfers */
};

/* Has ended when its event has. */
struct transfer {
    struct comm_queued *comm;
    struct transfer *next; /* in the pool */
    struct event *event;
    int peer;          /* of a message: its rank in the world; else -1 */
    uint64_t sequence; /* of sums and gatherings: which one of the communicator's this is */
};

/* The common part and an empty pool; collective, as is the release. */
void comm_queued_init(struct comm_queued *comm, const struct communicator_ops *ops, MPI_Comm mpi,
                      const struct device *device, struct stream *stream);
void comm_queued_release(struct comm_queued *comm);

/* To be called before anything is closed: fatal while transfers are under way. */
void comm_queued_must_be_idle(const struct comm_queued *comm);

/* The next of the sums and gatherings, which all ranks count: its number. */
uint64_t comm_queued_count(struct comm_queued *comm);

/* A transfer that ends where `stream` stands now: from the pool, which grows only while more are under way than ever
 * before. peer and sequence as in the transfer. */
struct transfer *comm_queued_transfer(struct comm_queued *comm, struct stream *stream, int peer, uint64_t sequence);

/* The table's functions of these names; local. */
void comm_queued_join(struct transfer *transfer);
bool comm_queued_test(struct transfer *transfer);
void comm_queued_wait(struct transfer *transfer); /* calls progress() meanwhile */

/* Whether every rank has one contribution, in rank order. */
bool comm_queued_is_one_each(const struct communicator *comm, const struct contributions *who);

/* The table's sum_scratch(), by rank and size alone. Where contributions are added here, all that lie on other ranks
 * come into the scratch, each at comm_queued_slot(); before them there is room for the sum of the first ones. */
size_t comm_queued_sum_scratch(const struct communicator *comm, enum element element, int64_t count,
                               const struct contributions *who);

/* The table's scatter_scratch(): nothing, the library has its own. */
size_t comm_queued_scatter_scratch(const struct communicator *comm, enum element element, int64_t mine_count);

/* The place in the scratch of the contribution of another rank that `others` such ones come before. */
void *comm_queued_slot(void *scratch, enum element element, int64_t count, const struct contributions *who, int others);

/* Queues result = c0 + c1 + ... behind what is on `stream`, from this rank's parts and the others' in their slots.
 * bfloat16: of three and more terms the sum is rounded after each, as it is stored in elements in between. */
void comm_queued_add(struct comm_queued *comm, struct stream *stream, enum element element, void *result,
                     const void *const *parts, int64_t count, const struct contributions *who, void *scratch);

#endif
