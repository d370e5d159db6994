/* Everything that one rank needs to train or evaluate: made once from the settings, all memory allocated before the
 * first step. The modes drive it. */
#ifndef RUN_TRAINER_H
#define RUN_TRAINER_H

#include "base/settings.h"
#include "io/dataset.h"
#include "model/family.h"
#include "parallel/grid.h"
#include "parallel/job.h"
#include "plan/footprint.h"

struct trainer;

/* What a step did; the same on all ranks. */
struct step_result {
    double loss;          /* nats per token, mean over the global batch */
    double gradient_norm; /* before clipping */
    double learning_rate;
    double seconds;
    double last_backward; /* seconds from the step's start to the latest rank's last backward */
    double bubble;        /* measured: 1 - busy time / (ranks * time from the step's start to the last backward) */
    double peak_memory;   /* bytes, of the rank that holds most */
    int stop;             /* the largest of the ranks' requests to stop: enum stop_reason */
    bool finite;          /* false: nothing was updated, `trouble` says where and what was not finite first */
    struct err trouble;
    bool skipped; /* as an outlier: no weight or moment was updated, `reason` says why */
    struct err reason;
    int64_t skips; /* steps skipped so far, those before a resume included */
};

/* For evaluation alone (`training` false) there are no gradients, moments or training schedule. `settings` were
 * checked; stage_layers and balance are filled in as they were decided. What `model` holds becomes the trainer's, after
 * a failure too. Collective over the job: all ranks get the trainer, or all -1 and the same text; either way *trainer
 * is to be destroyed. */
int trainer_create(struct trainer **trainer, const struct job *job, struct settings *settings,
                   const struct model *model, bool training, struct err *err);
void trainer_destroy(struct trainer *trainer); /* collective; NULL is allowed */

/* Says on rank 0 what will run: grid, stages, parameters, memory, batch. */
void trainer_describe(struct trainer *trainer);

/* Weights and moments from a checkpoint; `whole` takes the moments, step and consumed samples too. Collective. */
int trainer_load(struct trainer *trainer, const char *path, bool whole, struct err *err);

/* Writes a checkpoint of the present step into &checkpoint directory and removes old ones. Collective. */
int trainer_save(struct trainer *trainer, struct err *err);

/* Which dataset the steps read; reads the first batch. */
void trainer_begin(struct trainer *trainer, struct dataset *dataset);

/* Runs the next optimizer step; stop(of), asked late in the step, is this rank's request to stop, which the ranks agree
 * on; NULL: none. Collective. */
void trainer_step(struct trainer *trainer, int (*stop)(void *of), void *of, struct step_result *result);

/* Mean loss over the first `samples` samples of the dataset, each token once; it may not be finite. Collective. */
double trainer_evaluate(struct trainer *trainer, struct dataset *dataset, int64_t samples);

/* From here on spans are recorded. Collective, as is the end: it gathers the trace of all ranks, whose clocks both
 * compare, and rank 0 writes it; its time 0 is `origin` on rank 0's clock_seconds(). */
void trainer_begin_trace(struct trainer *trainer);
int trainer_end_trace(struct trainer *trainer, double origin, struct err *err);

/* What the ranks compute on; NULL where none could be chosen. */
const struct device *trainer_device(const struct trainer *trainer);

int64_t trainer_steps_done(const struct trainer *trainer);

/* What the training steps were expected to be like by trainer_describe, on rank 0: by the machine's times where they
 * are known, else as if every layer took as long as its declared operations say and messages no time. */
struct expectation {
    double bubble;
    double seconds; /* of a step; NAN: unknown */
};

struct expectation trainer_expected(const struct trainer *trainer);

/* The digest of the weights: what `--digest` prints for /model of a checkpoint of this step. Collective. */
uint64_t trainer_digest(struct trainer *trainer);

double trainer_flops_per_step(const struct trainer *trainer); /* of the model on all ranks, without recomputation */

#endif
