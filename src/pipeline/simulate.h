/* Times a schedule with given costs: every rank runs its list in order, each computation as soon as it can. */
#ifndef PIPELINE_SIMULATE_H
#define PIPELINE_SIMULATE_H

#include <stdio.h>

#include "base/error.h"
#include "pipeline/instruction.h"

/* Seconds, none negative. Whatever recomputation costs is in `input`. */
struct simulate_costs {
    const double *forward; /* [stages] FORWARD */
    const double *input;   /* [stages] BACKWARD_INPUT */
    const double *weight;  /* [stages] BACKWARD_WEIGHT; BACKWARD takes input + weight */
    const double *message; /* [stages - 1] one activation or gradient between stage s and s + 1: latency + bytes /
                              bandwidth; not used where both are on one rank. It overlaps with computations. */
};

/* One rank's part of the step; idle time is what the makespan leaves besides `busy`:
 * fill + steady + drain = makespan - busy. */
struct simulate_rank {
    double start;  /* of its first computation, from the step's start, s */
    double end;    /* of its last computation, s */
    double busy;   /* computing, s */
    double fill;   /* idle before its first backward: the pipeline fills (forward only: before its first forward), s */
    double drain;  /* idle after its last forward, and not fill: the pipeline drains, s */
    double steady; /* all other idle time: waiting for messages and slower stages, s */
};

struct simulation {
    double makespan;             /* from the first start to the last end over all ranks, s */
    double bubble;               /* 1 - sum of busy / (ranks * makespan); 0 when the makespan is 0 */
    struct simulate_rank *ranks; /* [ranks] */
};

/* Simulates a table, lowered or not:
 *   start = max(end of the previous computation on the rank, end of the producer + message if on another rank).
 * Sends and receives take none of the ranks' time, slots are never short, reductions and the step are not in it. Takes
 * time in proportion to the table. The caller frees the result with simulate_destroy(); NULL with *err when the ranks'
 * orders do not fit together. */
struct simulation *simulate_schedule(const struct schedule *schedule, const struct simulate_costs *costs,
                                     struct err *err);
void simulate_destroy(struct simulation *simulation); /* accepts NULL */

/* Draws ranks downwards and time to the right, one column per unit of time, with forward, input and weight of one unit
 * and free messages; for small schedules. Returns -1 with *err when they do not run to the end. */
int simulate_print(const struct schedule *schedule, FILE *out, struct err *err);

#endif
