/* What the files of the MPI communicator share: comm_mpi.c fills the table, comm_mpi_sum.c makes the sums,
 * comm_mpi_engine.c moves the messages of both. */
#ifndef PARALLEL_COMM_MPI_H
#define PARALLEL_COMM_MPI_H

#include "parallel/communicator.h"

extern const struct communicator_ops comm_mpi_table;

/* The messages under way on all communicators that advance together. */
struct engine;

/* A sum as comm_mpi_sum.c works on it: this rank adds the terms of its piece, then the pieces are gathered. */
struct sum {
    enum element element;
    char *result;          /* [count] */
    int64_t count, step;   /* elements in the result, in every piece but the last ones */
    void *mine;            /* this rank's piece of the result */
    int64_t mine_count;    /* its elements */
    const void **terms;    /* this rank's piece of every contribution, in their order */
    int terms_count, room; /* terms in use, allocated */
    int tag;               /* of the exchange; the gathering has the next one */
};

/* Has `pending` messages under way; what follows them, if anything, posts more or finishes. */
struct transfer {
    struct comm_mpi *comm;
    struct transfer *next; /* in one list at a time: free, or ready to go on */
    int pending;
    int peer;          /* at the other end of send() or receive(): its rank in the world; else -1 */
    uint64_t sequence; /* of sums and gatherings: which one of the communicator's this is */
    void (*then)(struct transfer *transfer); /* NULL: the messages under way are the last */
    struct sum sum;                          /* unused by send() and receive() */
};

struct comm_mpi {
    struct communicator base; /* its `mpi` carries send() and receive() */
    MPI_Comm inner;           /* the messages of sums and gathers, so that their tags are free to choose */
    struct engine *engine;
    int under_way;  /* transfers */
    int next_inner; /* counts the collective transfers: equal on all ranks, makes their tags differ */
};

/* engine: comm_mpi_engine.c. Local. */

struct engine *comm_mpi_engine_open(void);
struct engine *comm_mpi_engine_share(struct engine *engine); /* one more user */
void comm_mpi_engine_close(struct engine *engine);           /* the last user frees it */

/* A transfer without messages, from the pool. */
struct transfer *comm_mpi_transfer(struct comm_mpi *comm);

/* Adds a message to the transfer, or several when it is longer than MPI's counts. `mpi` is one of its communicator's.
 */
void comm_mpi_post_send(struct transfer *transfer, MPI_Comm mpi, const void *buffer, size_t bytes, int to, int tag);
void comm_mpi_post_receive(struct transfer *transfer, MPI_Comm mpi, void *buffer, size_t bytes, int from, int tag);

/* Runs what follows for as long as no message is under way. Call it after posting a first step. */
void comm_mpi_advance(struct transfer *transfer);

/* Looks once for finished messages and advances their transfers; false: there were none. */
bool comm_mpi_poll(struct engine *engine);

/* The table's test() and wait(). */
bool comm_mpi_test(struct transfer *transfer);
void comm_mpi_wait(struct transfer *transfer);

/* sums: comm_mpi_sum.c; the table's functions. Collective. */

struct transfer *comm_mpi_sum_begin(struct communicator *comm, enum element element, void *result,
                                    const void *const *parts, int64_t count, const struct contributions *who,
                                    void *scratch);
size_t comm_mpi_sum_scratch(const struct communicator *comm, enum element element, int64_t count,
                            const struct contributions *who);
size_t comm_mpi_scatter_scratch(const struct communicator *comm, enum element element, int64_t mine_count);
struct transfer *comm_mpi_reduce_scatter_begin(struct communicator *comm, enum element element, void *mine,
                                               const void *whole, const int64_t *counts, void *scratch);
struct transfer *comm_mpi_all_gather_begin(struct communicator *comm, void *whole, const void *mine,
                                           const int64_t *counts, size_t size);
void comm_mpi_all_reduce(struct communicator *comm, enum element element, void *buffer, int64_t count, void *scratch);
void comm_mpi_reduce_scatter(struct communicator *comm, enum element element, void *mine, const void *whole,
                             const int64_t *counts, void *scratch);
void comm_mpi_all_gather(struct communicator *comm, void *whole, const void *mine, const int64_t *counts, size_t size);

#endif
