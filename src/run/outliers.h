/* Which steps are outliers: those whose loss or gradient norm lies far above those of the last steps.
 *
 * A step is told by its distance from the mean of the last 128 steps that were not skipped, in their standard
 * deviations; while fewer than 16 are known every step is taken. A change that lasts is a new level: after 16 skipped
 * steps in a row the next one is taken whatever it says, and the window begins anew with it. */
#ifndef RUN_OUTLIERS_H
#define RUN_OUTLIERS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define OUTLIERS_WINDOW 128
#define OUTLIERS_LEAST 16  /* steps in the window before any is skipped */
#define OUTLIERS_IN_ROW 16 /* that are skipped at most */

struct outliers {
    double losses[OUTLIERS_WINDOW], gradient_norms[OUTLIERS_WINDOW]; /* of the last steps not skipped, oldest first */
    int count;
    int in_row;      /* steps skipped since the last that was not */
    int64_t skipped; /* steps in all */
};

/* Judges a step by its numbers, which are finite, and takes note of it. True: it is to be skipped, because a number is
 * more than `deviations` (0: any) standard deviations above the mean; *reason says so. The same numbers give the same
 * verdict on every rank. */
bool outliers_judge(struct outliers *outliers, double deviations, double loss, double gradient_norm,
                    struct err *reason);

/* Everything as numbers for a checkpoint: steps skipped, steps skipped in a row, then the loss and the gradient norm of
 * each step of the window. outliers_pack returns outliers_numbers of them, owned by the caller. */
int64_t outliers_numbers(const struct outliers *outliers);
double *outliers_pack(const struct outliers *outliers);

/* The same back; count 0 is the beginning of a training. 0, or -1 with *err for what outliers_pack does not write. */
int outliers_unpack(struct outliers *outliers, const double *numbers, int64_t count, struct err *err);

#endif
