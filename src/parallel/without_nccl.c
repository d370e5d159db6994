/* In place of src/parallel/comm_nccl.c in a build without NCCL. */
#include "parallel/comm_nccl.h"

const struct communicator_ops comm_nccl_table = {.name = "none"};

int comm_nccl_load(struct err *err)
{
    return err_set(err, "this program was built without NCCL, which jobs of several CUDA devices need");
}

struct communicator *comm_nccl_open_group(MPI_Comm mpi, struct stream *stream)
{
    (void)mpi, (void)stream;
    fatal("a group of CUDA devices in a build without NCCL");
}

struct communicator *comm_nccl_open_ring(MPI_Comm mpi, struct stream *stream)
{
    return comm_nccl_open_group(mpi, stream);
}

const char *comm_nccl_error(void)
{
    return NULL;
}
