#include "parallel/communicator.h"

#include <limits.h>
#include <sched.h>
#include <stdlib.h>

#include "base/memory.h"
#include "parallel/comm_mpi.h"
#include "parallel/comm_nccl.h"
#include "parallel/flight.h"
#include "parallel/mpi_check.h"

enum {
    POLLS_BEFORE_YIELD = 200, /* some tens of microseconds */
    MAX_BROADCAST = 1 << 30   /* bytes in one MPI call, whose counts are int */
};

MPI_Comm communicator_duplicate(MPI_Comm mpi)
{
    MPI_Comm copy;
    mpi_check(MPI_Comm_dup(mpi, &copy), "MPI_Comm_dup");
    mpi_check(MPI_Comm_set_errhandler(copy, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    return copy;
}

void communicator_list_ranks(struct communicator *comm)
{
    /* The list stands behind its head, which is freed with it. */
    comm->one_each = allocate(1, sizeof *comm->one_each + (size_t)comm->size * sizeof(int));
    int *rank_of = (int *)(comm->one_each + 1);
    for (int i = 0; i < comm->size; i++)
        rank_of[i] = i;
    comm->one_each->count = comm->size;
    comm->one_each->rank_of = rank_of;
}

void communicator_outline_init(struct communicator *outline, const struct device *device, int rank, int size)
{
    *outline = (struct communicator){.ops = device->host_memory ? &comm_mpi_table : &comm_nccl_table,
                                     .mpi = MPI_COMM_NULL,
                                     .rank = rank,
                                     .size = size,
                                     .flight = -1};
    communicator_list_ranks(outline);
}

void communicator_outline_fini(struct communicator *outline)
{
    free(outline->one_each);
    *outline = (struct communicator){0};
}

/* The ranks' numbers in the world, and a place in the flight record under an id that no other communicator has. */
static void enter_in_flight_record(struct communicator *comm)
{
    static uint32_t opened; /* with rank 0 in it, by this process */
    MPI_Group group, world;
    mpi_check(MPI_Comm_group(comm->mpi, &group), "MPI_Comm_group");
    mpi_check(MPI_Comm_group(MPI_COMM_WORLD, &world), "MPI_Comm_group");
    comm->world_ranks = allocate((size_t)comm->size, sizeof *comm->world_ranks);
    mpi_check(
        MPI_Group_translate_ranks(group, comm->size, communicator_one_each(comm)->rank_of, world, comm->world_ranks),
        "MPI_Group_translate_ranks");
    mpi_check(MPI_Group_free(&group), "MPI_Group_free");
    mpi_check(MPI_Group_free(&world), "MPI_Group_free");
    uint64_t id = (uint64_t)(comm->world_ranks[0] + 1) << 32 | ++opened;
    mpi_check(MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, comm->mpi), "MPI_Bcast");
    comm->flight = flight_group_open(id, comm->size);
}

void communicator_init(struct communicator *comm, const struct communicator_ops *ops, MPI_Comm mpi)
{
    comm->ops = ops;
    comm->mpi = communicator_duplicate(mpi);
    mpi_check(MPI_Comm_rank(comm->mpi, &comm->rank), "MPI_Comm_rank");
    mpi_check(MPI_Comm_size(comm->mpi, &comm->size), "MPI_Comm_size");
    communicator_list_ranks(comm);
    enter_in_flight_record(comm);
}

void communicator_release(struct communicator *comm)
{
    mpi_check(MPI_Comm_free(&comm->mpi), "MPI_Comm_free");
    flight_group_close(comm->flight);
    free(comm->world_ranks);
    free(comm->one_each);
    comm->world_ranks = NULL;
    comm->one_each = NULL;
}

const struct contributions *communicator_one_each(const struct communicator *comm)
{
    return comm->one_each;
}

void communicator_close(struct communicator *comm)
{
    if (comm)
        comm->ops->close(comm);
}

void communicator_pause(int *polls)
{
    if (*polls < POLLS_BEFORE_YIELD)
        ++*polls;
    else
        sched_yield();
}

/* Control traffic uses MPI's non-blocking collectives: a rank that stands in one must go on with its share of the sums
 * under way, and must not keep the core from the ranks that it waits for. */
static void finish(struct communicator *comm, int code, MPI_Request *request, const char *what)
{
    mpi_check(code, "%s", what);
    int done = 0, polls = 0;
    flight_begin_wait(FLIGHT_AGREEMENT, -1, comm->flight, FLIGHT_AGREEMENTS,
                      flight_group_begin(comm->flight, FLIGHT_AGREEMENTS));
    for (;;) {
        mpi_check(MPI_Test(request, &done, MPI_STATUS_IGNORE), "%s", what);
        if (done)
            break;
        comm->ops->progress(comm);
        communicator_pause(&polls);
    }
    flight_end();
}

static void reduce(struct communicator *comm, void *values, int64_t count, MPI_Datatype type, MPI_Op op)
{
    if (count < 0 || count > INT_MAX)
        fatal("a control reduction of %lld numbers", (long long)count);
    MPI_Request request;
    int code = MPI_Iallreduce(MPI_IN_PLACE, values, (int)count, type, op, comm->mpi, &request);
    finish(comm, code, &request, "MPI_Iallreduce of control values");
}

void control_sum(struct communicator *comm, double *values, int64_t count)
{
    reduce(comm, values, count, MPI_DOUBLE, MPI_SUM);
}

void control_max(struct communicator *comm, double *values, int64_t count)
{
    reduce(comm, values, count, MPI_DOUBLE, MPI_MAX);
}

void control_min(struct communicator *comm, double *values, int64_t count)
{
    reduce(comm, values, count, MPI_DOUBLE, MPI_MIN);
}

void control_sum_uint64(struct communicator *comm, uint64_t *values, int64_t count)
{
    reduce(comm, values, count, MPI_UINT64_T, MPI_SUM);
}

void control_broadcast(struct communicator *comm, void *buffer, size_t bytes, int root)
{
    char *part = buffer;
    while (bytes > 0) {
        int count = bytes < MAX_BROADCAST ? (int)bytes : MAX_BROADCAST;
        MPI_Request request;
        int code = MPI_Ibcast(part, count, MPI_BYTE, root, comm->mpi, &request);
        finish(comm, code, &request, "MPI_Ibcast of control data");
        part += count;
        bytes -= (size_t)count;
    }
}

void control_gather(struct communicator *comm, void *all, const void *mine, size_t bytes, int root)
{
    if (bytes > INT_MAX)
        fatal("a control gather of %zu bytes from each rank", bytes);
    MPI_Request request;
    int code = MPI_Igather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, root, comm->mpi, &request);
    finish(comm, code, &request, "MPI_Igather of control data");
}

void control_barrier(struct communicator *comm)
{
    MPI_Request request;
    int code = MPI_Ibarrier(comm->mpi, &request);
    finish(comm, code, &request, "MPI_Ibarrier");
}
