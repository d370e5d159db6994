/* The machine that is planned for: &machine, completed from a preset or a file that mode = 'bench' wrote. */
#ifndef PLAN_MACHINE_H
#define PLAN_MACHINE_H

#include "base/settings.h"

/* Whether &machine preset names a file rather than a built-in machine: it ends in ".nml". */
bool machine_is_file(const struct settings *settings);

/* Completes &machine with the figures of the built-in preset that it names: what is given in &machine itself stands. A
 * preset that is used up is cleared, so that resolved.nml holds the figures alone. Returns 0, or -1 with *err for an
 * unknown name. Nothing happens without a preset. Local. */
int machine_complete(struct settings *settings, struct err *err);

/* The same from the &machine of a namelist, the text of the file. Mistakes in it are appended to `messages` and -1 is
 * returned. */
int machine_complete_from(struct settings *settings, const char *text, size_t length, struct text *messages);

/* Checks that lists belong together: of equal length, sizes ascending. Returns 0, or -1 with *err. */
int machine_check(const struct settings *settings, struct err *err);

/* Operations per second of one device at its peak, in the precision of the run; 0: unknown. */
double machine_peak(const struct settings *settings);

/* The part of its peak that a matrix product of so many operations reaches; 1 where no curve is known. */
double machine_efficiency(const struct machine_settings *machine, double operations);

/* y at x of a curve through ascending points, straight between them where both axes are logarithmic; beyond the first
 * and the last point as steep as `below` and `above` say (0: constant, 1: in proportion). The lists are not empty. */
double machine_curve(const struct settings_reals *x, const struct settings_reals *y, double at, double below,
                     double above);

#endif
