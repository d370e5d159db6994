/* Lowering: from the computations of a schedule to all instructions of every rank. */
#ifndef PIPELINE_LOWER_H
#define PIPELINE_LOWER_H

#include "base/error.h"
#include "pipeline/instruction.h"

/* Adds to a table of computations:
 * - a send right after each computation whose output another rank takes, and the receive in that rank's list;
 * - REDUCE_GRADIENTS of a stage after its last gradient, and OPTIMIZER_STEP at the end; neither when forward only.
 * Stages on one rank hand over without a message.
 *
 * The sender places the receive, as PyTorch's pipelining does: the computations are run once, one per rank in turn, and
 * a message's receive goes to the end of what the receiver has done by then. That run is a sequential one in which
 * every send and its receive are neighbours, so the result cannot deadlock, not even with synchronous sends; and on
 * each (source, destination) the k-th send meets the k-th receive.
 *
 * A new table, owned by the caller; `computations` is unchanged. NULL with *err when validate_computations() refuses
 * it or its order can never run to the end. */
struct schedule *lower_schedule(const struct schedule *computations, struct err *err);

#endif
