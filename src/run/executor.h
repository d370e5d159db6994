/* The interpreter of one rank's list of instructions. It knows no schedule: it does what the table says, in memory
 * whose amount the table tells beforehand.
 *
 * Receives are posted ahead of the computation that needs them, as many as there are buffers; sends complete behind the
 * computations that follow. */
#ifndef RUN_EXECUTOR_H
#define RUN_EXECUTOR_H

#include "model/stage.h"
#include "parallel/grid.h"
#include "plan/footprint.h"

struct executor;

/* What a step hands to the interpreter and gets back. */
struct executor_step {
    int64_t number;               /* of the step, for the trace; -1: of none */
    const int64_t *sequences;     /* [microbatches] in each microbatch of this data rank, 0 allowed */
    const int32_t *const *fields; /* [EXECUTOR_FIELDS] data in memory of host_allocate, [microbatches, sequences of a
                                   * full one, sequence]; those of executor_reads */
    void (*layer_begin)(void *of, int local_layer); /* a layer's first forward is next; NULL without training */
    void (*layer_done)(void *of, int local_layer);  /* a layer's gradients are final; NULL without training */
    void (*stage_done)(void *of, int stage);        /* REDUCE_GRADIENTS: all layers of the stage are */
    void (*between)(void *of);                      /* once, after the first computation has begun the step */
    void (*progress)(void *of);                     /* advances what else is under way */
    void (*inspect)(void *of, const struct stage_look *look); /* of each computation of a layer; NULL in normal steps */
    void *of;
};

struct executor_result {
    double busy;          /* seconds in computations, recomputation included */
    double last_backward; /* when the last one ended (the last forward without training), clock_seconds() */
};

/* Names of the fields of a batch, and their shift in the stream of tokens: inputs 0, targets 1. */
#define EXECUTOR_FIELDS 2
extern const char *const executor_field_names[EXECUTOR_FIELDS];

/* For this rank of the grid: the lowered and validated schedule and the stages of this rank by chunk. All are the
 * caller's and stay in use. NULL and *err when a stage reads an unknown field. Not collective. */
struct executor *executor_create(const struct grid *grid, const struct schedule *schedule,
                                 const struct validation *validation, struct stage *const *stages,
                                 const struct model *model, const struct context *context, struct err *err);
void executor_destroy(struct executor *executor); /* NULL is allowed */

/* Whether some stage of this rank reads the field. */
bool executor_reads(const struct executor *executor, int field);

/* Bytes of all its buffers; then executor_attach gives it that much memory in one piece, and the workspace and scratch
 * in the context. */
size_t executor_bytes(const struct executor *executor);
void executor_attach(struct executor *executor, char *memory, const struct context *context);

/* Runs every stage's computations once, on a batch of zeros and without messages. Devices load a kernel, and libraries
 * choose theirs, when it is first asked for, and wait meanwhile for all that runs, which a receive that was posted
 * ahead does until its sender comes that far: two ranks would wait for each other in the first step. Buffers and
 * gradients then hold rubbish. Collective over the tensor ranks. */
void executor_warm_up(struct executor *executor);

/* From here on, while a trace is open, recomputations are told apart from the backwards that they are part of. */
void executor_begin_trace(struct executor *executor);

/* Runs the list once, up to the optimizer step. Collective over the pipeline ranks. */
void executor_run(struct executor *executor, const struct executor_step *step, struct executor_result *result);

/* Losses of the microbatch [sequences * sequence] in device memory, of the last run, where this rank has the loss;
 * NULL elsewhere. */
const float *executor_losses(const struct executor *executor, int microbatch);

/* [length of this rank's list] begin and end of each computation of the last run, clock_seconds(); 0 of those that had
 * nothing to compute and of other instructions. */
const double (*executor_times(const struct executor *executor))[2];

/* The most activation sets of any kind that were in use at once in the last run. */
int executor_peak_sets(const struct executor *executor);

#endif
