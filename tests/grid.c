/* Every grid that the ranks allow: coordinates against MPI's own, and who is in which group in which order. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "parallel/grid.h"
#include "parallel/job.h"
#include "parallel/mpi_check.h"
#include "tests/tap.h"

/* The world ranks of a communicator, in its order; freed by the caller. Collective over it. */
static int *world_ranks(struct communicator *comm, int world_rank)
{
    int *ranks = allocate((size_t)comm->size, sizeof *ranks);
    control_gather(comm, ranks, &world_rank, sizeof world_rank, 0);
    control_broadcast(comm, ranks, (size_t)comm->size * sizeof *ranks, 0);
    return ranks;
}

/* The group has the ranks first, first + stride, ..., size of them. */
static bool is_line(struct communicator *comm, int world_rank, int size, int first, int stride)
{
    int *ranks = world_ranks(comm, world_rank);
    bool holds = comm->size == size;
    for (int i = 0; i < comm->size && holds; i++)
        holds = ranks[i] == first + i * stride && (ranks[i] != world_rank || comm->rank == i);
    free(ranks);
    return holds;
}

static bool coordinates_are_mpi_s(const struct grid *grid)
{
    MPI_Comm cart;
    const int sizes[3] = {grid->pipeline, grid->data, grid->tensor}, periodic[3] = {0, 0, 0};
    mpi_check(MPI_Cart_create(grid->world->mpi, 3, sizes, periodic, 0, &cart), "MPI_Cart_create");
    bool holds = true;
    for (int rank = 0; rank < grid->size; rank++) {
        int place[3];
        mpi_check(MPI_Cart_coords(cart, rank, 3, place), "MPI_Cart_coords");
        holds = holds && grid_rank(grid, place[0], place[1], place[2]) == rank;
        if (rank == grid->rank)
            holds = holds && grid->p == place[0] && grid->d == place[1] && grid->t == place[2];
    }
    mpi_check(MPI_Comm_free(&cart), "MPI_Comm_free");
    return holds;
}

/* All groups sum at once, and different groups are waited for in different orders. */
static bool groups_sum(struct grid *grid)
{
    struct communicator *groups[] = {grid->activations, grid->gradients, grid->data_group, grid->tensor_group};
    float values[4][33];
    struct transfer *transfers[4];
    void *scratch[4];
    int expected[4] = {0};
    for (int i = 0; i < grid->pipeline; i++)
        expected[0] += grid_rank(grid, i, grid->d, grid->t);
    expected[1] = expected[0];
    for (int i = 0; i < grid->data; i++)
        expected[2] += grid_rank(grid, grid->p, i, grid->t);
    for (int i = 0; i < grid->tensor; i++)
        expected[3] += grid_rank(grid, grid->p, grid->d, i);
    for (int g = 0; g < 4; g++) {
        const struct contributions *who = communicator_one_each(groups[g]);
        const void *part = values[g];
        for (int k = 0; k < 33; k++)
            values[g][k] = (float)grid->rank;
        scratch[g] = allocate(1, groups[g]->ops->sum_scratch(groups[g], ELEMENT_FLOAT32, 33, who));
        transfers[g] = groups[g]->ops->sum_begin(groups[g], ELEMENT_FLOAT32, values[g], &part, 33, who, scratch[g]);
        grid_progress(grid);
    }
    bool holds = true;
    for (int i = 0; i < 4; i++) {
        int g = (i + grid->rank) % 4;
        groups[g]->ops->wait(transfers[g]);
        for (int k = 0; k < 33; k++)
            holds = holds && values[g][k] == (float)expected[g];
        free(scratch[g]);
    }
    return holds;
}

/* The first and the last pipeline rank. */
static bool subset_holds(const struct grid *grid)
{
    int last = grid->pipeline - 1;
    const int members[2] = {0, last};
    struct communicator *ends = grid_pipeline_subset(grid, members, last > 0 ? 2 : 1);
    if (grid->p != 0 && grid->p != last)
        return ends == NULL;
    int stride = last * grid->data * grid->tensor;
    bool holds = ends && is_line(ends, grid->rank, last > 0 ? 2 : 1, grid_rank(grid, 0, grid->d, grid->t), stride);
    communicator_close(ends);
    return holds;
}

static void check_grid(struct communicator *world, int pipeline, int data, int tensor)
{
    struct grid grid;
    grid_open(&grid, world, pipeline, data, tensor, device_cpu(1), NULL);
    char place[64];
    snprintf(place, sizeof place, "rank %d (p%d d%d t%d)", world->rank, world->rank / (data * tensor),
             world->rank / tensor % data, world->rank % tensor);
    is_text(error_place(), place, "grid %dx%dx%d: the place in messages", pipeline, data, tensor);
    bool holds = coordinates_are_mpi_s(&grid);
    ok(holds, "grid %dx%dx%d: coordinates are those of MPI_Cart_coords", pipeline, data, tensor);
    int over_p = grid_rank(&grid, 0, grid.d, grid.t), stride = data * tensor;
    holds = is_line(grid.activations, grid.rank, pipeline, over_p, stride);
    holds = is_line(grid.gradients, grid.rank, pipeline, over_p, stride) && holds;
    holds = is_line(grid.data_group, grid.rank, data, grid_rank(&grid, grid.p, 0, grid.t), tensor) && holds;
    holds = is_line(grid.tensor_group, grid.rank, tensor, grid_rank(&grid, grid.p, grid.d, 0), 1) && holds;
    ok(holds, "grid %dx%dx%d: who is in which group", pipeline, data, tensor);
    ok(subset_holds(&grid), "grid %dx%dx%d: the ends of the pipeline", pipeline, data, tensor);
    ok(groups_sum(&grid), "grid %dx%dx%d: sums in all groups at once", pipeline, data, tensor);
    grid_close(&grid);
}

int main(int argc, char **argv)
{
    struct job job;
    job_begin(&argc, &argv, &job);
    int size = job.world->size;
    for (int pipeline = 1; pipeline <= size; pipeline++)
        for (int data = 1; data <= size / pipeline; data++)
            if (size % (pipeline * data) == 0)
                check_grid(job.world, pipeline, data, size / (pipeline * data));
    int status = tap_done();
    job_end(&job);
    return status;
}
