/* Communicators for the memory of CUDA devices: transfers are NCCL's, queued on streams; control traffic stays MPI's.
 * Those of one rank need no NCCL. In a build without NCCL opening one of several ranks ends the job. */
#ifndef PARALLEL_COMM_NCCL_H
#define PARALLEL_COMM_NCCL_H

#include "parallel/communicator.h"

extern const struct communicator_ops comm_nccl_table;

/* Loads NCCL once; 0, or -1 with *err where it is not there. Local. To be called before a communicator of several ranks
 * is opened, which ends the job where NCCL is not there. */
int comm_nccl_load(struct err *err);

/* Over the ranks of `mpi` (duplicated). `stream`, of `device`, is the one that computations run on; it outlives the
 * communicator. Collective, with every rank's device chosen.
 *
 * A group sums and gathers: it has one NCCL communicator and a stream of its own, so that its transfers run behind
 * computations; those of all_reduce, reduce_scatter and all_gather are queued on `stream` itself. Transfers that a
 * group begins and such ones must not be mixed on one communicator. Sums with one contribution of each rank are NCCL's:
 * for two ranks their bits are those of c0 + c1, for more the order of the terms follows from the position in the
 * vector, and bfloat16 is rounded after each. Other sums are in the order of the contributions (comm_queued_add).
 *
 * A ring sends and receives between neighbours in the order of ranks, the last and the first being neighbours too. Each
 * direction between two neighbours has an NCCL communicator and a stream of its own. NCCL knows no tags: the receives
 * from one rank must be posted in the order in which it sends.
 *
 * A receive that was posted ahead is a kernel that runs until its message is there. A kernel of the program or a
 * library that was never launched before is loaded first, behind all that runs on the device: where the sender waits
 * for what it computes, that never ends. So whatever a rank computes between a receive and its join must have run once
 * before the first receive. */
struct communicator *comm_nccl_open_group(MPI_Comm mpi, const struct device *device, struct stream *stream);
struct communicator *comm_nccl_open_ring(MPI_Comm mpi, const struct device *device, struct stream *stream);

/* Looks at all communicators for errors that came after their calls had returned, such as a peer that is gone: NULL, or
 * what NCCL says, until the next call. From any thread, one at a time. */
const char *comm_nccl_error(void);

#endif
