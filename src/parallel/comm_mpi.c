#include "parallel/comm_mpi.h"

#include <stdlib.h>

#include "base/memory.h"
#include "parallel/mpi_check.h"

enum {
    POLLS_PER_PROGRESS = 8 /* MPI libraries move a large message in parts, for example 512 KiB per poll */
};

static struct comm_mpi *of(struct communicator *comm)
{
    return (struct comm_mpi *)comm; /* base is its first member */
}

static void comm_close(struct communicator *base)
{
    struct comm_mpi *comm = of(base);
    if (comm->under_way > 0)
        fatal("a communicator is closed with %d transfers under way", comm->under_way);
    mpi_check(MPI_Comm_free(&comm->inner), "MPI_Comm_free");
    comm_mpi_engine_close(comm->engine);
    communicator_release(base);
    free(comm);
}

/* The rank in the world, for the flight record; MPI itself refuses a rank that there is not. */
static int peer_of(const struct communicator *base, int rank)
{
    return rank >= 0 && rank < base->size ? base->world_ranks[rank] : -1;
}

static struct transfer *comm_send(struct communicator *base, const void *buffer, size_t bytes, int to, int tag)
{
    struct transfer *transfer = comm_mpi_transfer(of(base));
    transfer->peer = peer_of(base, to);
    comm_mpi_post_send(transfer, base->mpi, buffer, bytes, to, tag);
    return transfer;
}

static struct transfer *comm_receive(struct communicator *base, void *buffer, size_t bytes, int from, int tag)
{
    struct transfer *transfer = comm_mpi_transfer(of(base));
    transfer->peer = peer_of(base, from);
    comm_mpi_post_receive(transfer, base->mpi, buffer, bytes, from, tag);
    return transfer;
}

static void comm_progress(struct communicator *base)
{
    for (int i = 0; i < POLLS_PER_PROGRESS; i++)
        comm_mpi_poll(of(base)->engine);
}

const struct communicator_ops comm_mpi_table = {
    .name = "mpi",
    .close = comm_close,
    .send = comm_send,
    .receive = comm_receive,
    .sum_begin = comm_mpi_sum_begin,
    .sum_scratch = comm_mpi_sum_scratch,
    .scatter_scratch = comm_mpi_scatter_scratch,
    .reduce_scatter_begin = comm_mpi_reduce_scatter_begin,
    .all_gather_begin = comm_mpi_all_gather_begin,
    .test = comm_mpi_test,
    .wait = comm_mpi_wait,
    .progress = comm_progress,
    .all_reduce = comm_mpi_all_reduce,
    .reduce_scatter = comm_mpi_reduce_scatter,
    .all_gather = comm_mpi_all_gather,
};

static struct communicator *open_with(MPI_Comm mpi, struct engine *engine)
{
    struct comm_mpi *comm = allocate(1, sizeof *comm); /* freed by comm_close */
    communicator_init(&comm->base, &comm_mpi_table, mpi);
    comm->inner = communicator_duplicate(mpi);
    comm->engine = engine;
    return &comm->base;
}

struct communicator *comm_mpi_open(MPI_Comm mpi)
{
    return open_with(mpi, comm_mpi_engine_open());
}

struct communicator *comm_mpi_open_beside(MPI_Comm mpi, struct communicator *beside)
{
    if (beside->ops != &comm_mpi_table)
        fatal("a communicator of %s cannot advance beside one of %s", comm_mpi_table.name, beside->ops->name);
    return open_with(mpi, comm_mpi_engine_share(of(beside)->engine));
}
