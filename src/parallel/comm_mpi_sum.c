#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/cpu/cpu_math.h"
#include "parallel/comm_mpi.h"
#include "parallel/flight.h"

enum {
    ALIGN = 16,              /* elements: pieces start on cache lines when the vector does */
    BLOCK = 1024,            /* elements added at a time, in the first-level cache */
    BLOCKS_FOR_THREADS = 64, /* fewer are added by one thread */
    TAGS = 1 << 14           /* sums under way that are told apart, two tags each: all of MPI's guaranteed range */
};

/* A range of elements. */
struct piece {
    int64_t begin, count;
};

/* Elements in each rank's piece of a vector; the last pieces may be shorter or empty. */
static int64_t piece_step(int64_t count, int size)
{
    int64_t step = count / size + (count % size != 0);
    return (step + ALIGN - 1) / ALIGN * ALIGN;
}

static struct piece piece_of(const struct sum *sum, int rank)
{
    int64_t begin = rank * sum->step < sum->count ? rank * sum->step : sum->count;
    int64_t left = sum->count - begin;
    return (struct piece){.begin = begin, .count = left < sum->step ? left : sum->step};
}

/* result[k] = terms[0][k] + terms[1][k] + ..., from left to right, of elements begin ... end - 1. */
VECTOR_FUNCTION void add_block(enum element element, void *result, const void *const *terms, int terms_count,
                               int64_t begin, int64_t end)
{
    for (int64_t k = begin; k < end; k += LANES) {
        vfloat total = vload_next_as(element, terms[0], k, end - k, 0.0f);
        for (int i = 1; i < terms_count; i++)
            total += vload_next_as(element, terms[i], k, end - k, 0.0f);
        vstore_next_as(element, result, k, end - k, total);
    }
}

/* The same of `count` elements; result may be one of the terms. */
static void add_terms(enum element element, void *result, const void *const *terms, int terms_count, int64_t count)
{
    if (terms_count == 1 && terms[0] == result)
        return;
    int64_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (blocks >= BLOCKS_FOR_THREADS)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t begin = block * BLOCK, end = count - begin < BLOCK ? count : begin + BLOCK;
        FOR_ELEMENT(element, add_block, result, terms, terms_count, begin, end);
    }
}

static size_t bytes_of(enum element element, int64_t count)
{
    return (size_t)count * element_bytes(element);
}

/* The address `count` elements behind another. */
static const char *behind(enum element element, const void *elements, int64_t count)
{
    return (const char *)elements + bytes_of(element, count);
}

/* The first of two tags of a new collective transfer, which is counted. */
static int next_tag(struct transfer *transfer)
{
    struct comm_mpi *comm = transfer->comm;
    int number = comm->next_inner;
    comm->next_inner = (number + 1) % TAGS;
    transfer->sequence = flight_group_begin(comm->base.flight, FLIGHT_SUMS);
    return 2 * number;
}

/* Room for the terms; kept by the transfer's place in the pool. */
static const void **reserve_terms(struct sum *sum, int count)
{
    if (sum->room < count) {
        free(sum->terms);
        sum->terms = allocate((size_t)count, sizeof *sum->terms); /* freed with the transfer */
        sum->room = count;
    }
    sum->terms_count = count;
    return sum->terms;
}

/* Second step: all terms of this rank's piece are here. */
static void add_mine(struct transfer *transfer)
{
    const struct sum *sum = &transfer->sum;
    add_terms(sum->element, sum->mine, sum->terms, sum->terms_count, sum->mine_count);
}

/* Second and third step. This rank's parts were sent in the first one, so that where the result is one of them it may
 * be overwritten now. */
static void add_and_gather(struct transfer *transfer)
{
    struct comm_mpi *comm = transfer->comm;
    const struct sum *sum = &transfer->sum;
    int rank = comm->base.rank, size = comm->base.size, tag = sum->tag + 1;
    for (int i = 1; i < size; i++) {
        int from = (rank + size - i) % size;
        struct piece piece = piece_of(sum, from);
        if (piece.count > 0)
            comm_mpi_post_receive(transfer, comm->inner, sum->result + bytes_of(sum->element, piece.begin),
                                  bytes_of(sum->element, piece.count), from, tag);
    }
    add_mine(transfer);
    for (int i = 1; i < size && sum->mine_count > 0; i++)
        comm_mpi_post_send(transfer, comm->inner, sum->mine, bytes_of(sum->element, sum->mine_count), (rank + i) % size,
                           tag);
}

struct transfer *comm_mpi_sum_begin(struct communicator *base, enum element element, void *result,
                                    const void *const *parts, int64_t count, const struct contributions *who,
                                    void *scratch)
{
    struct comm_mpi *comm = (struct comm_mpi *)base;
    struct transfer *transfer = comm_mpi_transfer(comm);
    struct sum *sum = &transfer->sum;
    sum->element = element;
    sum->result = result;
    sum->count = count;
    sum->step = piece_step(count, base->size);
    sum->tag = next_tag(transfer);
    struct piece mine = piece_of(sum, base->rank);
    sum->mine = sum->result + bytes_of(element, mine.begin);
    sum->mine_count = mine.count;

    /* First step: every rank gets its piece of every contribution. Messages between two ranks are matched in the order
     * of the contributions. */
    const void **terms = reserve_terms(sum, who->count);
    char *slot = scratch;
    int parts_count = 0;
    for (int i = 0; i < who->count; i++) {
        if (who->rank_of[i] == base->rank) {
            terms[i] = behind(element, parts[parts_count++], mine.begin);
            continue;
        }
        terms[i] = slot;
        if (mine.count > 0)
            comm_mpi_post_receive(transfer, comm->inner, slot, bytes_of(element, mine.count), who->rank_of[i],
                                  sum->tag);
        slot += bytes_of(element, sum->step);
    }
    for (int i = 1; i < base->size; i++) {
        int to = (base->rank + i) % base->size;
        struct piece piece = piece_of(sum, to);
        for (int part = 0; part < parts_count && piece.count > 0; part++)
            comm_mpi_post_send(transfer, comm->inner, behind(element, parts[part], piece.begin),
                               bytes_of(element, piece.count), to, sum->tag);
    }
    transfer->then = add_and_gather;
    comm_mpi_advance(transfer);
    return transfer;
}

size_t comm_mpi_sum_scratch(const struct communicator *base, enum element element, int64_t count,
                            const struct contributions *who)
{
    size_t others = 0;
    for (int i = 0; i < who->count; i++)
        others += who->rank_of[i] != base->rank;
    return others * bytes_of(element, piece_step(count, base->size));
}

void comm_mpi_all_reduce(struct communicator *base, enum element element, void *buffer, int64_t count, void *scratch)
{
    const void *part = buffer;
    comm_mpi_wait(comm_mpi_sum_begin(base, element, buffer, &part, count, communicator_one_each(base), scratch));
}

size_t comm_mpi_scatter_scratch(const struct communicator *base, enum element element, int64_t mine_count)
{
    return (size_t)(base->size - 1) * bytes_of(element, mine_count);
}

struct transfer *comm_mpi_reduce_scatter_begin(struct communicator *base, enum element element, void *mine,
                                               const void *whole, const int64_t *counts, void *scratch)
{
    struct comm_mpi *comm = (struct comm_mpi *)base;
    struct transfer *transfer = comm_mpi_transfer(comm);
    struct sum *sum = &transfer->sum;
    int rank = base->rank, size = base->size, tag = next_tag(transfer);
    sum->element = element;
    sum->mine = mine;
    sum->mine_count = counts[rank];
    const void **terms = reserve_terms(sum, size);
    char *slot = scratch;
    const char *piece = whole;
    for (int i = 0; i < size; i++) {
        terms[i] = i == rank ? piece : slot;
        if (i != rank && counts[rank] > 0)
            comm_mpi_post_receive(transfer, comm->inner, slot, bytes_of(element, counts[rank]), i, tag);
        if (i != rank && counts[i] > 0)
            comm_mpi_post_send(transfer, comm->inner, piece, bytes_of(element, counts[i]), i, tag);
        slot += i != rank ? bytes_of(element, counts[rank]) : 0;
        piece += bytes_of(element, counts[i]);
    }
    transfer->then = add_mine;
    comm_mpi_advance(transfer);
    return transfer;
}

struct transfer *comm_mpi_all_gather_begin(struct communicator *base, void *whole, const void *mine,
                                           const int64_t *counts, size_t size)
{
    struct comm_mpi *comm = (struct comm_mpi *)base;
    struct transfer *transfer = comm_mpi_transfer(comm);
    int rank = base->rank, tag = next_tag(transfer);
    size_t mine_bytes = (size_t)counts[rank] * size;
    char *place = whole;
    for (int i = 0; i < base->size; i++) {
        size_t bytes = (size_t)counts[i] * size;
        if (i != rank && bytes > 0)
            comm_mpi_post_receive(transfer, comm->inner, place, bytes, i, tag);
        if (i != rank && mine_bytes > 0)
            comm_mpi_post_send(transfer, comm->inner, mine, mine_bytes, i, tag);
        if (i == rank && bytes > 0 && mine != place)
            memcpy(place, mine, bytes);
        place += bytes;
    }
    return transfer;
}

void comm_mpi_reduce_scatter(struct communicator *base, enum element element, void *mine, const void *whole,
                             const int64_t *counts, void *scratch)
{
    comm_mpi_wait(comm_mpi_reduce_scatter_begin(base, element, mine, whole, counts, scratch));
}

void comm_mpi_all_gather(struct communicator *base, void *whole, const void *mine, const int64_t *counts, size_t size)
{
    comm_mpi_wait(comm_mpi_all_gather_begin(base, whole, mine, counts, size));
}
