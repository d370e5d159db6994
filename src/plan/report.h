/* What the planner found, for people and as JSON. */
#ifndef PLAN_REPORT_H
#define PLAN_REPORT_H

#include "base/text.h"
#include "plan/diagnose.h"
#include "plan/measured.h"
#include "plan/planner.h"

/* The machine, and what of it is unknown. */
void report_machine(const struct planning *planning, struct text *out);

/* One configuration: step, stages, memory of each rank in parts, and findings. */
void report_forecast(const struct planning *planning, const struct forecast *forecast, const struct finding *findings,
                     int finding_count, struct text *out);

/* What is wrong and what mends it, for people and as the JSON list of plan.json. */
void report_findings(const struct finding *findings, int count, struct text *out);
void report_findings_json(const struct finding *findings, int count, struct text *out);

/* Where the time of step `number` went. */
void report_measured(const struct measured_step *step, const struct measured *measured, int64_t number,
                     struct text *out);

/* The drawing of the schedule's order, where it is small enough for a screen; else nothing. Returns 0, or -1 with *err.
 */
int report_timeline(const struct schedule *schedule, struct text *out, struct err *err);

/* A search: the best, the best of each kind, and what was rejected. */
void report_plan(const struct planning *planning, const struct plan *plan, struct text *out);

/* plan.json. `plan` NULL: the forecast alone, which is otherwise of the best candidate; NULL: there is none. */
void report_json(const struct planning *planning, const struct plan *plan, const struct forecast *forecast,
                 const struct finding *findings, int finding_count, struct text *out);

#endif
