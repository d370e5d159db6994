#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "parallel/comm_mpi.h"

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

/* result[k] = terms[0][k] + terms[1][k] + ..., from left to right. result may be one of the terms. */
static void add_terms(float *result, const float *const *terms, int terms_count, int64_t count)
{
    if (terms_count == 1 && terms[0] == result)
        return;
    int64_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (blocks >= BLOCKS_FOR_THREADS)
    for (int64_t block = 0; block < blocks; block++) {
        float total[BLOCK];
        int64_t begin = block * BLOCK;
        int64_t length = count - begin < BLOCK ? count - begin : BLOCK;
        memcpy(total, terms[0] + begin, (size_t)length * sizeof(float));
        for (int i = 1; i < terms_count; i++) {
            const float *term = terms[i] + begin;
#pragma omp simd
            for (int64_t k = 0; k < length; k++)
                total[k] += term[k];
        }
        memcpy(result + begin, total, (size_t)length * sizeof(float));
    }
}

static size_t bytes_of(int64_t count)
{
    return (size_t)count * sizeof(float);
}

/* The first of two tags of a new collective transfer. */
static int next_tag(struct comm_mpi *comm)
{
    int number = comm->next_inner;
    comm->next_inner = (number + 1) % TAGS;
    return 2 * number;
}

/* Room for the terms; kept by the transfer's place in the pool. */
static const float **reserve_terms(struct sum *sum, int count)
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
    add_terms(sum->mine, sum->terms, sum->terms_count, sum->mine_count);
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
            comm_mpi_post_receive(transfer, comm->inner, sum->result + piece.begin, bytes_of(piece.count), from, tag);
    }
    add_mine(transfer);
    for (int i = 1; i < size && sum->mine_count > 0; i++)
        comm_mpi_post_send(transfer, comm->inner, sum->mine, bytes_of(sum->mine_count), (rank + i) % size, tag);
}

struct transfer *comm_mpi_sum_begin(struct communicator *base, float *result, const float *const *parts, int64_t count,
                                    const struct contributions *who, void *scratch)
{
    struct comm_mpi *comm = (struct comm_mpi *)base;
    struct transfer *transfer = comm_mpi_transfer(comm);
    struct sum *sum = &transfer->sum;
    sum->result = result;
    sum->count = count;
    sum->step = piece_step(count, base->size);
    sum->tag = next_tag(comm);
    struct piece mine = piece_of(sum, base->rank);
    sum->mine = result + mine.begin;
    sum->mine_count = mine.count;

    /* First step: every rank gets its piece of every contribution. Messages between two ranks are matched in the order
     * of the contributions. */
    const float **terms = reserve_terms(sum, who->count);
    float *slot = scratch;
    int parts_count = 0;
    for (int i = 0; i < who->count; i++) {
        if (who->rank_of[i] == base->rank) {
            terms[i] = parts[parts_count++] + mine.begin;
            continue;
        }
        terms[i] = slot;
        if (mine.count > 0)
            comm_mpi_post_receive(transfer, comm->inner, slot, bytes_of(mine.count), who->rank_of[i], sum->tag);
        slot += sum->step;
    }
    for (int i = 1; i < base->size; i++) {
        int to = (base->rank + i) % base->size;
        struct piece piece = piece_of(sum, to);
        for (int part = 0; part < parts_count && piece.count > 0; part++)
            comm_mpi_post_send(transfer, comm->inner, parts[part] + piece.begin, bytes_of(piece.count), to, sum->tag);
    }
    transfer->then = add_and_gather;
    comm_mpi_advance(transfer);
    return transfer;
}

size_t comm_mpi_sum_scratch(const struct communicator *base, int64_t count, const struct contributions *who)
{
    size_t others = 0;
    for (int i = 0; i < who->count; i++)
        others += who->rank_of[i] != base->rank;
    return others * bytes_of(piece_step(count, base->size));
}

void comm_mpi_all_reduce(struct communicator *base, float *buffer, int64_t count, void *scratch)
{
    const float *part = buffer;
    comm_mpi_wait(comm_mpi_sum_begin(base, buffer, &part, count, communicator_one_each(base), scratch));
}

struct transfer *comm_mpi_reduce_scatter_begin(struct communicator *base, float *mine, const float *whole,
                                               const int64_t *counts, void *scratch)
{
    struct comm_mpi *comm = (struct comm_mpi *)base;
    struct transfer *transfer = comm_mpi_transfer(comm);
    struct sum *sum = &transfer->sum;
    int rank = base->rank, size = base->size, tag = next_tag(comm);
    sum->mine = mine;
    sum->mine_count = counts[rank];
    const float **terms = reserve_terms(sum, size);
    float *slot = scratch;
    int64_t begin = 0;
    for (int i = 0; i < size; i++) {
        terms[i] = i == rank ? whole + begin : slot;
        if (i != rank && counts[rank] > 0)
            comm_mpi_post_receive(transfer, comm->inner, slot, bytes_of(counts[rank]), i, tag);
        if (i != rank && counts[i] > 0)
            comm_mpi_post_send(transfer, comm->inner, whole + begin, bytes_of(counts[i]), i, tag);
        slot += i != rank ? counts[rank] : 0;
        begin += counts[i];
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
    int rank = base->rank, tag = next_tag(comm);
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

void comm_mpi_reduce_scatter(struct communicator *base, float *mine, const float *whole, const int64_t *counts,
                             void *scratch)
{
    comm_mpi_wait(comm_mpi_reduce_scatter_begin(base, mine, whole, counts, scratch));
}

void comm_mpi_all_gather(struct communicator *base, float *whole, const float *mine, const int64_t *counts)
{
    comm_mpi_wait(comm_mpi_all_gather_begin(base, whole, mine, counts, sizeof *whole));
}
