/* What a rank will hold in memory: the numbers of buffers that a proven schedule needs, and their bytes. The trainer
 * allocates exactly this. */
#ifndef PLAN_FOOTPRINT_H
#define PLAN_FOOTPRINT_H

#include "model/stage.h"
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

#endif
