/* The proof that a schedule will run to its end and compute the right thing, and what it needs in memory.
 *
 * Every error names rank, place in the rank's list (from 0), instruction and rule, for example
 * "rank 1 instruction 7 (1F2): its activation is not received before it". */
#ifndef PIPELINE_VALIDATE_H
#define PIPELINE_VALIDATE_H

#include "base/error.h"
#include "pipeline/instruction.h"

/* What a valid, lowered schedule needs. */
struct validation {
    /* [stages] most activation sets of the stage alive at once, each from FORWARD to BACKWARD or BACKWARD_WEIGHT of the
     * same microbatch; 1 when forward only. */
    int *peak_sets;

    /* [stages] most pending sets, each from BACKWARD_INPUT to BACKWARD_WEIGHT; a BACKWARD needs one while it runs; 0
     * when forward only. */
    int *peak_pending;

    /* [ranks] most activation sets alive at once over all chunks of the rank; at most the sum of their peak_sets. */
    int *rank_peak_sets;

    /* [ranks][MESSAGE_KINDS] receives to keep posted for each peer (buffers.h): 2 for most schedules, 0 where none
     * comes. */
    int (*receive_depth)[MESSAGE_KINDS];

    /* Every stage runs the input halves of its backwards in ascending order of microbatches, and the weight halves too:
     * gradients, to which both halves add, accumulate in that order. */
    bool ascending;
};

/* Checks a table of computations (before lowering): ranges and placement; each forward exactly once, and either one
 * full backward or its two halves; forward before backward, input before weight, and what is computed on the same rank
 * before its use. Returns 0, or -1 with *err. Whether the ranks' orders fit together shows in lowering. */
int validate_computations(const struct schedule *schedule, struct err *err);

/* Checks a lowered table: all of the above, and
 * - each hand-over between ranks has one send, after its producer, and one receive, before its consumer;
 * - messages of one kind between two ranks are sent, received and consumed in one order;
 * - each stage's gradients are reduced once, after its last backward; one OPTIMIZER_STEP, last, on every rank;
 * - no deadlock (buffers.h) with the receive_depth it returns and `send_slots`.
 * Takes time and memory in proportion to the table. The caller frees the result with validate_destroy(); NULL with *err
 * when a rule is broken. */
struct validation *validate_schedule(const struct schedule *schedule, int send_slots, struct err *err);
void validate_destroy(struct validation *validation); /* accepts NULL */

#endif
