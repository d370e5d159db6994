/* One generator for each schedule: what the table in generate.c lists. Each appends the computations of one rank, in
 * order. Gradients of a stage accumulate in ascending order of microbatches in all of them, so that the schedule does
 * not show in the bits of the result. */
#ifndef PIPELINE_GENERATORS_H
#define PIPELINE_GENERATORS_H

#include "pipeline/instruction.h"

/* generate_loop.c: full backwards, stages placed in a loop. */
void generate_breadth_first(struct schedule *schedule, int rank); /* gpipe, looped-bfs */
void generate_1f1b(struct schedule *schedule, int rank);
void generate_eager_1f1b(struct schedule *schedule, int rank);
void generate_interleaved(struct schedule *schedule, int rank);

/* generate_zero_bubble.c: split backwards; zb-h1 with one chunk, zb-v with two in a V. */
void generate_zb_h1(struct schedule *schedule, int rank);
void generate_zb_v(struct schedule *schedule, int rank);

/* generate_v.c: split backwards, two chunks in a V, one block of computations repeated. */
void generate_v_half(struct schedule *schedule, int rank);
void generate_v_min(struct schedule *schedule, int rank);

/* Appends one computation. */
static inline void generate_append(struct schedule *schedule, int rank, enum operation op, int stage, int microbatch)
{
    schedule_append(schedule, rank,
                    (struct instruction){.op = op, .stage = stage, .microbatch = microbatch, .peer = -1});
}

#endif
