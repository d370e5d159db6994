#include "parallel/grid.h"

#include <string.h>

#include "parallel/comm_nccl.h"
#include "parallel/flight.h"
#include "parallel/mpi_check.h"

/* For messages between neighbours, or for sums. */
static struct communicator *open_over(const struct grid *grid, MPI_Comm ranks, bool ring)
{
    if (grid->device->host_memory)
        return comm_mpi_open_beside(ranks, grid->world);
    return ring ? comm_nccl_open_ring(ranks, grid->device, grid->stream)
                : comm_nccl_open_group(ranks, grid->device, grid->stream);
}

/* The ranks that differ from this one only along the axes in `keep`, in order of their coordinates. */
static struct communicator *open_along(const struct grid *grid, MPI_Comm cart, const int keep[3], bool ring)
{
    MPI_Comm group;
    mpi_check(MPI_Cart_sub(cart, keep, &group), "MPI_Cart_sub");
    struct communicator *comm = open_over(grid, group, ring);
    mpi_check(MPI_Comm_free(&group), "MPI_Comm_free");
    return comm;
}

void grid_open(struct grid *grid, struct communicator *world, int pipeline, int data, int tensor,
               const struct device *device, struct stream *stream)
{
    if (pipeline < 1 || data < 1 || tensor < 1 || (int64_t)pipeline * data > world->size ||
        (int64_t)pipeline * data * tensor != world->size)
        fatal("a grid of %d x %d x %d does not fit %d ranks", pipeline, data, tensor, world->size);
    memset(grid, 0, sizeof *grid);
    grid->pipeline = pipeline;
    grid->data = data;
    grid->tensor = tensor;
    grid->rank = world->rank;
    grid->size = world->size;
    grid->world = world;
    grid->device = device;
    grid->stream = stream;

    /* Ranks keep their numbers, so the coordinates do not depend on the MPI library. */
    MPI_Comm cart;
    const int sizes[3] = {pipeline, data, tensor}, periodic[3] = {0, 0, 0}, reorder = 0;
    mpi_check(MPI_Cart_create(world->mpi, 3, sizes, periodic, reorder, &cart), "MPI_Cart_create");
    mpi_check(MPI_Comm_set_errhandler(cart, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    int place[3];
    mpi_check(MPI_Cart_coords(cart, grid->rank, 3, place), "MPI_Cart_coords");
    grid->p = place[0];
    grid->d = place[1];
    grid->t = place[2];
    error_set_place("rank %d (p%d d%d t%d)", grid->rank, grid->p, grid->d, grid->t);
    flight_set_place(grid->p, grid->d, grid->t);

    const int along_pipeline[3] = {1, 0, 0}, along_data[3] = {0, 1, 0}, along_tensor[3] = {0, 0, 1};
    grid->activations = open_along(grid, cart, along_pipeline, true);
    grid->gradients = open_along(grid, cart, along_pipeline, true);
    grid->data_group = open_along(grid, cart, along_data, false);
    grid->tensor_group = open_along(grid, cart, along_tensor, false);
    mpi_check(MPI_Comm_free(&cart), "MPI_Comm_free");
}

void grid_close(struct grid *grid)
{
    communicator_close(grid->tensor_group);
    communicator_close(grid->data_group);
    communicator_close(grid->gradients);
    communicator_close(grid->activations);
    memset(grid, 0, sizeof *grid);
}

struct communicator *grid_ring(const struct grid *grid)
{
    return open_over(grid, grid->world->mpi, true);
}

struct communicator *grid_group(const struct grid *grid)
{
    return open_over(grid, grid->world->mpi, false);
}

int grid_rank(const struct grid *grid, int p, int d, int t)
{
    return (p * grid->data + d) * grid->tensor + t;
}

struct communicator *grid_pipeline_subset(const struct grid *grid, const int *members, int count)
{
    int color = MPI_UNDEFINED;
    for (int i = 0; i < count; i++)
        if (members[i] == grid->p)
            color = 0;
    MPI_Comm group;
    mpi_check(MPI_Comm_split(grid->activations->mpi, color, grid->p, &group), "MPI_Comm_split");
    if (group == MPI_COMM_NULL)
        return NULL;
    struct communicator *comm = open_over(grid, group, false);
    mpi_check(MPI_Comm_free(&group), "MPI_Comm_free");
    return comm;
}

void grid_progress(const struct grid *grid)
{
    grid->world->ops->progress(grid->world); /* the others were opened beside it */
}
