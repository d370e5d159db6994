/* The trainer's own state, shared by its files: trainer.c makes it, trainer_describe.c tells of it, trainer_step.c runs
 * it, replay.c runs a step that failed again, trainer_files.c moves it to and from files, trainer_trace.c shows how it
 * spent its time. */
#ifndef RUN_TRAINER_STATE_H
#define RUN_TRAINER_STATE_H

#include "io/staging.h"
#include "parallel/clock.h"
#include "run/batch.h"
#include "run/executor.h"
#include "run/gradients.h"
#include "run/outliers.h"
#include "run/trainer.h"

/* A schedule, proven, with its interpreter. */
struct program {
    struct schedule *schedule;
    struct validation *validation;
    struct executor *executor;
};

struct trainer {
    const struct settings *settings;
    struct grid grid;
    struct context context;
    struct model model;
    int *first_layer;    /* [stages + 1] */
    int *stage_of_layer; /* [layers] */
    struct parameters parameters;
    struct shards shards;
    struct stage **stages;         /* [chunks] of this rank, for training */
    struct stage **forward_stages; /* [chunks] the same slices, for evaluation */
    struct program train, evaluate;
    struct bucket_queue *queue; /* NULL without training; until it is drained, weights may still be on their way */
    struct gradients *gradients;

    struct footprint memory;
    struct expectation expected;
    size_t resident; /* bytes of the process before it took that memory, with a matrix product already done */
    float *weights, *gradient_arena, *first_moment, *second_moment;
    char *computed; /* what computations read of the weights: an arena of its own, or the weights themselves */
    char *activations, *queue_scratch, *scratch;
    struct staging *staging; /* by which weights and moments pass between the device and files */

    struct batch batches[2]; /* the present step's and the next one's */
    int present;
    struct batch evaluation_batch;
    int64_t *whole; /* [microbatches] sequences that a device runs of it */
    struct dataset *dataset;
    struct sample_order order;
    int64_t step, samples; /* done, consumed */
    double start;          /* of the last step, clock_seconds() */
    struct outliers outliers;
    double *vector; /* what ranks tell each other in a step */
    int64_t vector_count;
    float *losses; /* [microbatches, rows] in host memory */
    size_t losses_bytes;
    struct clock_reading trace_began;
};

/* Makes what computations read from the weights, after these were written by anything but a step. */
void trainer_convert(struct trainer *trainer);

#endif
