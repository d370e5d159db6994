/* In place of src/parallel/comm_nccl.c and comm_nccl_library.c in a build without NCCL. */
#include "parallel/comm_alone.h"
#include "parallel/comm_nccl.h"
#include "parallel/comm_queued.h"
#include "parallel/mpi_check.h"

const struct communicator_ops comm_nccl_table = {
    .name = "none", .sum_scratch = comm_queued_sum_scratch, .scatter_scratch = comm_queued_scatter_scratch};

int comm_nccl_load(struct err *err)
{
    return err_set(err, "this program was built without NCCL, which jobs of several CUDA devices need");
}

struct communicator *comm_nccl_open_group(MPI_Comm mpi, const struct device *device, struct stream *stream)
{
    int size;
    struct err err;
    mpi_check(MPI_Comm_size(mpi, &size), "MPI_Comm_size");
    if (size > 1 && comm_nccl_load(&err) < 0)
        fatal("%s", err.text);
    return comm_alone_open(mpi, device, stream);
}

struct communicator *comm_nccl_open_ring(MPI_Comm mpi, const struct device *device, struct stream *stream)
{
    return comm_nccl_open_group(mpi, device, stream);
}

const char *comm_nccl_error(void)
{
    return NULL;
}
