/* The one table of transfers between ranks. comm_mpi fills it for host memory, comm_nccl for the memory of CUDA
 * devices. Nothing above src/parallel calls MPI or NCCL.
 *
 * In host memory a transfer starts when it is begun. In memory of a device it is queued: it starts behind all that was
 * queued before on the stream that its communicator was opened with.
 *
 * A communicator is a group of ranks with an order. Traffic of different kinds (activations, gradients, data-parallel
 * sums, tied weights, tensor-parallel sums, control) uses different communicators, so no order between kinds is
 * assumed.
 *
 * Sums are ours, not the library's: every element is c0 + c1 + c2 + ... in the order of the contributions, so its bits
 * do not depend on message sizes, buckets or node layout. Each rank sums one piece and the pieces are gathered: the
 * bytes of a ring (Thakur, Rabenseifner and Gropp, 2005, section 4.2). Terms and result travel in the type of their
 * elements; the sum is made in float32 and rounded once. */
#ifndef PARALLEL_COMMUNICATOR_H
#define PARALLEL_COMMUNICATOR_H

#include <mpi.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "kernels/kernels.h"

struct communicator;
struct transfer; /* a transfer under way; belongs to its communicator, gone after wait() or a successful test() */

/* Who contributes what to a sum: contribution i lives on rank rank_of[i]; a rank may have none, one or several. */
struct contributions {
    int count;
    const int *rank_of;
};

struct communicator_ops {
    const char *name;
    void (*close)(struct communicator *comm);

    /* Point to point, not collective. Buffers belong to the transfer until it is done. Messages from one rank to
     * another with equal tags are matched in order; tags 0 ... 32767. 64-bit lengths. */
    struct transfer *(*send)(struct communicator *comm, const void *buffer, size_t bytes, int to, int tag);
    struct transfer *(*receive)(struct communicator *comm, void *buffer, size_t bytes, int from, int tag);

    /* Starts the sum of all contributions (at least one), collective, same order of calls on all ranks; several may be
     * under way. parts: this rank's contributions [count] each, in ascending order of their index, NULL where it has
     * none; result [count] on every rank, may be one of the parts. parts[] and who are not needed after the call.
     * scratch: sum_scratch() bytes, busy until done. */
    struct transfer *(*sum_begin)(struct communicator *comm, enum element element, void *result,
                                  const void *const *parts, int64_t count, const struct contributions *who,
                                  void *scratch);
    size_t (*sum_scratch)(const struct communicator *comm, enum element element, int64_t count,
                          const struct contributions *who);

    /* Start the two halves of a sum, collective, in the same order of calls as every sum on all ranks; several may be
     * under way. Piece i of a vector belongs to rank i and has counts[i] elements (0 allowed); pieces lie one after
     * another. counts[] is not needed after the call. */
    /* mine [counts[rank]] = this rank's piece of the sum over ranks of whole [sum of counts], in rank order. mine may
     * be its place in whole. scratch: scatter_scratch() bytes, busy until done. */
    struct transfer *(*reduce_scatter_begin)(struct communicator *comm, enum element element, void *mine,
                                             const void *whole, const int64_t *counts, void *scratch);
    size_t (*scatter_scratch)(const struct communicator *comm, enum element element, int64_t mine_count);
    /* whole = all ranks' pieces, of elements of `size` bytes; mine may already stand at its place in whole. */
    struct transfer *(*all_gather_begin)(struct communicator *comm, void *whole, const void *mine,
                                         const int64_t *counts, size_t size);

    /* What is queued on the stream from here on comes behind the transfer, which is still to be tested or waited for;
     * NULL where transfers are not queued. */
    void (*join)(struct transfer *transfer);

    bool (*test)(struct transfer *transfer);     /* true: done, and the handle is gone */
    void (*wait)(struct transfer *transfer);     /* the host waits until it is done */
    void (*progress)(struct communicator *comm); /* advances everything under way; cheap when nothing is */

    /* The same for what comes behind it on the stream: begun and waited for, or queued there; collective. */
    /* buffer [count]: replaced by the sum over ranks in rank order. scratch: sum_scratch(count, one per rank). */
    void (*all_reduce)(struct communicator *comm, enum element element, void *buffer, int64_t count, void *scratch);
    void (*reduce_scatter)(struct communicator *comm, enum element element, void *mine, const void *whole,
                           const int64_t *counts, void *scratch);
    void (*all_gather)(struct communicator *comm, void *whole, const void *mine, const int64_t *counts, size_t size);
};

struct communicator {
    const struct communicator_ops *ops;
    MPI_Comm mpi; /* the same ranks, for control traffic and parallel files */
    int rank, size;
    struct contributions *one_each; /* communicator_one_each() */
    int *world_ranks;               /* [size] ranks in MPI_COMM_WORLD; NULL: exists on paper */
    int flight;                     /* its place in the flight record, or -1 */
};

/* One contribution per rank, in rank order: the usual `who` of a sum over the communicator. Owned by it. */
const struct contributions *communicator_one_each(const struct communicator *comm);

/* A communicator for host memory over the ranks of `mpi` (duplicated, with errors returned). Collective. */
struct communicator *comm_mpi_open(MPI_Comm mpi);

/* The same, advancing together with `beside`, a communicator of comm_mpi_open or this function: progress(), test(),
 * wait() and control traffic on any one of them advance what is under way on all. Two ranks that wait on different
 * communicators can then not keep each other's sums from going on. */
struct communicator *comm_mpi_open_beside(MPI_Comm mpi, struct communicator *beside);

/* Closes any communicator; NULL is allowed. Collective; nothing may be under way. */
void communicator_close(struct communicator *comm);

/* Control traffic in host memory over the ranks of any communicator; collective and blocking. */
void control_broadcast(struct communicator *comm, void *buffer, size_t bytes, int root);
void control_gather(struct communicator *comm, void *all, const void *mine, size_t bytes, int root); /* bytes each */
void control_sum(struct communicator *comm, double *values, int64_t count); /* exact where at most one is not 0 */
void control_max(struct communicator *comm, double *values, int64_t count);
void control_min(struct communicator *comm, double *values, int64_t count);
void control_sum_uint64(struct communicator *comm, uint64_t *values, int64_t count); /* modulo 2^64 */
void control_barrier(struct communicator *comm);

/* A communicator for that device's memory that exists on paper: only what follows from rank and size (sum_scratch(),
 * scatter_scratch(), communicator_one_each(), the members) may be asked of it. For those who plan memory. Local;
 * released by communicator_outline_fini. */
void communicator_outline_init(struct communicator *outline, const struct device *device, int rank, int size);
void communicator_outline_fini(struct communicator *outline);

/* For those who fill the table: the common part, over a duplicate of `mpi` that returns errors; collective, as is its
 * release. */
void communicator_init(struct communicator *comm, const struct communicator_ops *ops, MPI_Comm mpi);
void communicator_release(struct communicator *comm);

/* Makes communicator_one_each()'s list from the size; freed with free(comm->one_each). */
void communicator_list_ranks(struct communicator *comm);

/* A duplicate of `mpi` that returns errors. Collective; free it with MPI_Comm_free. */
MPI_Comm communicator_duplicate(MPI_Comm mpi);

/* Called after each poll that found nothing; *polls counts them, from 0. Lets other processes have the core after some
 * time, because with more ranks than cores the awaited one may be waiting for it. */
void communicator_pause(int *polls);

#endif
