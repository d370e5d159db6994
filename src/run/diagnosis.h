/* What a training says about itself from its own times, after a few steps and at its end: where the time went, what the
 * ranks hold in memory, and what is wrong with it and how to mend that (plan/diagnose.h). */
#ifndef RUN_DIAGNOSIS_H
#define RUN_DIAGNOSIS_H

#include "base/text.h"
#include "run/trainer.h"

struct diagnosis;

/* For a trainer that trains and outlives it. Local. */
struct diagnosis *diagnosis_create(const struct trainer *trainer);
void diagnosis_destroy(struct diagnosis *diagnosis); /* NULL is allowed */

/* To be called on all ranks after every step: keeps the times of the fastest one, which others disturbed least. A run's
 * first step, in which memory is touched for the first time, counts only as long as it is the only one. Local. */
void diagnosis_note(struct diagnosis *diagnosis, const struct step_result *step);

/* On rank 0, appends what there is to say to *out and replaces diagnosis.json in &run output. The next report is about
 * later steps. Returns 0, or -1 with *err where that cannot be written. Collective. */
int diagnosis_report(struct diagnosis *diagnosis, struct text *out, struct err *err);

/* Appends lines on what pipeline ranks hold, predicted and measured, as of the last report. Rank 0. */
void diagnosis_memory(const struct diagnosis *diagnosis, struct text *out);

/* Appends what would need less memory, where a rank would hold more than `limit` bytes of the device's; nothing else.
 * Local. */
void diagnosis_of_memory(const struct settings *settings, const struct device *device, double limit, struct text *out);

#endif
