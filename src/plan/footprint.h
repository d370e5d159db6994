/* What a rank will hold in memory: the numbers of buffers that a proven schedule needs, and their bytes. The trainer
 * allocates exactly this. */
#ifndef PLAN_FOOTPRINT_H
#define PLAN_FOOTPRINT_H

#include "model/stage.h"
#include "pipeline/partition.h"
#include "pipeline/validate.h"

/* Sends of one stage and direction that may be under way at once. */
#define SEND_SLOTS 2

/* Buffers of one stage on its rank. */
struct stage_slots {
    int sets, pending;
    int inputs;        /* activations before the stage: received ahead, then part of the activation set */
    int outputs;       /* activations behind it, to be sent */
    int out_gradients; /* received ahead, then until the end of the backward */
    int in_gradients;  /* to be sent */
};

struct stage_slots footprint_slots(const struct schedule *schedule, const struct validation *validation, int stage);

/* Whether the stage's input and weight gradients run apart. */
bool footprint_splits(const struct schedule *schedule, int stage);

/* Bytes on one rank. */
struct footprint {
    size_t weights;  /* float32, that the optimizer changes */
    size_t computed; /* what computations read of them, 0 where they read them as they are */
    size_t gradients, moments;
    size_t activations; /* activation and pending sets with their inputs */
    size_t buffers;     /* messages, losses, scratch of sums */
    size_t workspace;
};

size_t footprint_total(const struct footprint *memory);

/* Bytes that a buffer takes: whole cache lines, never none, as a stage that keeps nothing has buffers too. */
size_t footprint_buffer(size_t bytes);

/* Adds the sets and messages of one stage. */
void footprint_add_stage(struct footprint *memory, const struct stage_slots *slots, const struct stage_bytes *bytes);

/* What any slices of the model take on a rank under one schedule, worked out as they are asked for. */
struct footprint_sizes;

/* For the tensor rank circumstances->t; `moment_shares` data ranks share the moments (and the float32
 * weights where computations read others), 1: each has all. Holds on to its
 * arguments; freed by footprint_sizes_destroy(), which accepts NULL. Local. */
struct footprint_sizes *footprint_sizes_create(const struct model *model, const struct circumstances *circumstances,
                                               const struct schedule *schedule, const struct validation *validation,
                                               int moment_shares);
void footprint_sizes_destroy(struct footprint_sizes *sizes);

/* What the rank with these slices, in ascending order, holds: all but the scratch memory of sums over ranks, which does
 * not depend on the cut, and what evaluation may need beyond training. */
struct footprint footprint_of_rank(struct footprint_sizes *sizes, const struct partition_slice *slices, int count);

/* The same for pipeline rank `rank` under a cut. */
struct footprint footprint_of_cut(struct footprint_sizes *sizes, const int *first_layer, int rank);

#endif
