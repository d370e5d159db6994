/* Times a schedule with given costs: every rank runs its list in order, each computation as soon as it can. */
#ifndef PIPELINE_SIMULATE_H
#define PIPELINE_SIMULATE_H

#include <stdio.h>

#include "base/error.h"
#include "base/trace.h"
#include "pipeline/instruction.h"

/* Seconds, none negative; NULL: no time. Recomputation is part of `input`, sums over tensor ranks are part of all
 * three computations, the norm is part of `step`. */
struct simulate_costs {
    const double *forward; /* [stages] FORWARD */
    const double *input;   /* [stages] BACKWARD_INPUT */
    const double *weight;  /* [stages] BACKWARD_WEIGHT; BACKWARD takes input + weight */
    /* Instead of these three, where it is not NULL: [ranks][places in the rank's list] of each computation, as a real
     * run took for it. With free messages it tells what of that run's idle time the messages are to blame for. */
    const double *const *computation;

    /* [stages - 1] one activation or gradient between stage s and s + 1; not used where both are on one rank. */
    const double *message; /* transfer: bytes / bandwidth, during which nothing else goes the same way */
    const double *latency; /* from the transfer's end until the receiver has it; others may follow meanwhile */

    double occupied; /* the part of each transfer that sender and receiver spend on it instead of computing: 0, all
                        overlaps with computations, to 1, both are blocked */
    int send_slots;  /* sends of a stage and direction under way at once (SEND_SLOTS); 0: any number */

    const double *reduce; /* [stages] sum of the stage's gradients over data ranks */
    const double *tied;   /* [ranks] adding the ends of tied weights; 0: the rank has none */
    const double *step;   /* [ranks] optimizer step */
    const double *gather; /* [ranks] all-gather behind the optimizer step, where it is sharded */
};

/* One rank's part of the step. Idle is what the makespan leaves besides `busy`, and has a reason each:
 *   fill + drain + imbalance + communication = makespan - busy
 * A wait between the first backward and the last forward is imbalance while the computation that makes the awaited
 * input has not ended, and communication for the rest: input under way, the rank occupied with transfers, no free slot
 * for a send. It is communication alone that free messages would save at this place. */
struct simulate_rank {
    double start;         /* of its first computation, from the step's start, s */
    double end;           /* of its last computation, s */
    double busy;          /* computing, s */
    double fill;          /* idle before its first backward (forward only: before its first forward), s */
    double drain;         /* idle after its last forward, and not fill, until the makespan, s */
    double imbalance;     /* waiting for another rank that still computes, s */
    double communication; /* waiting for messages, s */
    double reduced;       /* its gradients are summed over the data ranks, at least `end`, s */
};

struct simulation {
    double makespan;             /* from the first start to the last end of a computation over all ranks, s */
    double bubble;               /* 1 - sum of busy / (ranks * makespan); 0 when the makespan is 0 */
    double reduced;              /* all gradients are summed, ends of tied weights too; makespan when forward only, s */
    double step_seconds;         /* the optimizer step is done and gathered on all ranks, s */
    struct simulate_rank *ranks; /* [ranks] */
};

/* Simulates a table, lowered or not (reductions are only in lowered ones):
 *   start  = max(end of the previous computation + what its send occupies the rank + what the receive occupies it,
 *                arrival of the input, a free slot for the output)
 *   arrival = max(end of the producer, the same link is free) + message + latency, or end of the producer if local
 * A link is one direction between two neighbours. Reductions run behind each other and beside computations, from the
 * last backward of their stage on. The ends of tied weights are added as soon as all ranks that have one are there.
 * When all that is done everywhere, for the norm, come the optimizer step and the gather.
 *
 * Receives are always posted in time. The trainer posts them so far ahead (buffers.h) that a message has at least one
 * computation of the receiver to move in; where a receiver lags so much that its senders run out of slots, everyone
 * waits for it anyway. Worked out with receives of that depth, makespans are the same in all schedules but looped-bfs,
 * which takes up to 2% longer on very uneven stages.
 *
 * Takes time in proportion to the table. The caller frees the result with simulate_destroy(); NULL with *err when the
 * ranks' orders do not fit together. */
struct simulation *simulate_schedule(const struct schedule *schedule, const struct simulate_costs *costs,
                                     struct err *err);
void simulate_destroy(struct simulation *simulation); /* accepts NULL */

/* What a rank does when: computations, messages and reductions, named and in lanes as in a real run's trace. Times are
 * from the step's start; computations are in the order of the list. */
struct simulate_spans {
    struct trace_span *items;
    int64_t count, capacity;
};

/* The same with all spans, into spans[ranks], which the caller has allocated, zeroed, and frees with all in it by
 * simulate_spans_destroy(), after a failure too. */
struct simulation *simulate_recorded(const struct schedule *schedule, const struct simulate_costs *costs,
                                     struct simulate_spans *spans, struct err *err);
void simulate_spans_destroy(struct simulate_spans *spans, int ranks);

/* Draws ranks downwards and time to the right, the makespan over `width` columns: F, B, I, W for the computations with
 * the microbatch, and the chunk as a letter where there are several, as far as they fit; - while they go on, . for idle
 * time. Computations too short for a column are left out. For small schedules. Returns -1 with *err when they do not
 * run to the end. */
int simulate_print(const struct schedule *schedule, const struct simulate_costs *costs, int width, FILE *out,
                   struct err *err);

/* Writes a trace file of the simulated step, in the form of a real run's (base/trace.h). Rank r of the pipeline is
 * process first_process + r: with numbers that no real rank has, the events of a real run can stand beside them.
 * Returns -1 with *err when the schedule does not run to the end; errors of writing show in ferror(out). */
int simulate_trace(const struct schedule *schedule, const struct simulate_costs *costs, int first_process, FILE *out,
                   struct err *err);

#endif
