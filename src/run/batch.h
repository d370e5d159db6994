/* The batches of this rank: the next step's is read while the present one is worked on. */
#ifndef RUN_BATCH_H
#define RUN_BATCH_H

#include "io/dataset.h"
#include "io/sample_order.h"
#include "parallel/grid.h"
#include "run/executor.h"

struct batch_shape {
    int microbatches;        /* M */
    int64_t microbatch_size; /* sequences in one */
    int64_t sequence;        /* tokens in a sequence */
    int data, d;             /* data ranks, this one */
    bool reads[EXECUTOR_FIELDS];
    const struct device *device; /* that the fields go to */
};

struct batch {
    struct batch_shape shape;
    int32_t *fields[EXECUTOR_FIELDS]; /* [microbatches, microbatch_size, sequence] in memory of the device's
                                       * host_allocate; NULL where not read */
    int64_t *sequences;               /* [microbatches] */
    int64_t *samples;                 /* [microbatch_size] for reading */
};

/* Ends the job where there is not enough memory. */
void batch_create(struct batch *batch, const struct batch_shape *shape);
void batch_destroy(struct batch *batch);

/* Reads the global batch that starts at `place` of the order: sequence i of microbatch m on data rank d is place
 * `place` + (m*D + d) * microbatch_size + i. Places from `end` on do not exist: a batch may be ragged or empty. Ends
 * the job when the dataset cannot be read. */
void batch_read(struct batch *batch, struct dataset *dataset, const struct sample_order *order, int64_t place,
                int64_t end);

#endif
