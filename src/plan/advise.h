/* The diagnosis of a forecast, and the same of a run from its own times. */
#ifndef PLAN_ADVISE_H
#define PLAN_ADVISE_H

#include "plan/diagnose.h"
#include "plan/forecast.h"
#include "plan/measured.h"

/* Fills findings[DIAGNOSE_KINDS], returns how many. Where memory does not suffice, other recompute modes and schedules
 * are forecast too. */
int advise_forecast(const struct planning *planning, const struct forecast *forecast, double memory_limit,
                    struct finding *findings);

/* Of a step that was run with the settings of `planning`, whose machine says what other choices would take. How the
 * seconds of a stage are shared by its layers is taken from their costs. `memory` [pipeline] of each rank. */
int advise_measured(const struct planning *planning, const struct measured_step *step, const struct measured *measured,
                    const int *first_layer, const struct footprint *memory, double memory_limit,
                    struct finding *findings);

#endif
