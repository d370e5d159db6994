/* From the settings to schedules that are lowered and proven. */
#ifndef PLAN_PROGRAM_H
#define PLAN_PROGRAM_H

#include "base/settings.h"
#include "base/text.h"
#include "pipeline/validate.h"

/* The computations of the schedule that was asked for; `csv` holds its file where it comes from one. NULL with *err.
 * Owned by the caller. */
struct schedule *program_computations(const struct settings *settings, const struct text *csv, struct err *err);

/* A schedule, lowered and proven. */
struct proven {
    struct schedule *schedule;
    struct validation *validation;
};

/* Lowers and proves a table of computations, which it frees; NULL is passed on. Returns 0, or -1 with *err. */
int program_prove(struct proven *proven, struct schedule *computations, struct err *err);
void program_release(struct proven *proven); /* leaves none; all NULL is allowed */

#endif
