/* Generation: pure functions that make the computations of every pipeline rank from (name, P, V, M).
 *
 * What they make holds only FORWARD, BACKWARD, BACKWARD_INPUT and BACKWARD_WEIGHT; lower.h adds the rest. A new
 * schedule is one function (generators.h) and one row of the table in generate.c. */
#ifndef PIPELINE_GENERATE_H
#define PIPELINE_GENERATE_H

#include "base/error.h"
#include "pipeline/instruction.h"

/* Appends the computations of one rank, in order. */
typedef void (*generate_fn)(struct schedule *schedule, int rank);

struct generator {
    const char *name;         /* as in the input: schedule = '<name>' */
    int fewest_chunks;        /* per rank */
    int most_chunks;          /* INT_MAX: any number */
    enum placement placement; /* of the stages on the ranks */
    generate_fn generate;
};

/* All generators, ended by one without a name. */
extern const struct generator generate_table[];

/* 0 when there is a schedule of that name and it allows so many chunks; else -1 with *err naming the keys. */
int generate_check(const char *name, int chunks, struct err *err);

/* The schedule of that name; NULL with *err where generate_check refuses it, for numbers below 1 or a table too large
 * to hold. Any microbatches >= 1 will do, fewer than ranks too. Owned by the caller. */
struct schedule *generate_schedule(const char *name, int ranks, int chunks, int microbatches, struct err *err);

/* A forward-only table for evaluation, with the placement of the training schedule. Without messages' cost, and with
 * microbatches a multiple of ranks in a loop, no rank waits between its first and last computation. NULL with *err as
 * above. Owned by the caller. */
struct schedule *generate_forward_only(int ranks, int chunks, enum placement placement, int microbatches,
                                       struct err *err);

#endif
