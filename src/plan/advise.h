/* The diagnosis of a forecast: the same that is made of a run from measured times. */
#ifndef PLAN_ADVISE_H
#define PLAN_ADVISE_H

#include "plan/diagnose.h"
#include "plan/forecast.h"

/* Fills findings[DIAGNOSE_KINDS], returns how many. Where memory does not suffice, other recompute modes and schedules
 * are forecast too. */
int advise_forecast(const struct planning *planning, const struct forecast *forecast, double memory_limit,
                    struct finding *findings);

#endif
