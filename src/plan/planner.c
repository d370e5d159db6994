#include "plan/planner.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Forecasts of the fastest by closed forms: more than are shown, since the order may change. */
#define FINALISTS 24

/* Forecasts for one kind, and for the list of the best, until one fits. */
#define TRIES_PER_KIND 4
#define TRIES 96

/* (stage, microbatch) pairs beyond which a forecast takes seconds. */
#define FORECAST_CELLS (INT64_C(1) << 22)

/* Forecasts so far, so that none is made twice. */
struct judging {
    struct plan *plan;
    const struct planning *planning;
    struct verdict *verdicts;
    bool *fits;
    int64_t *of; /* index in search.guesses */
    int count;
};

double planner_memory_limit(const struct settings *settings)
{
    double gib = settings->plan.memory_gib > 0 ? settings->plan.memory_gib : settings->machine.memory_gib;
    return gib > 0 ? gib * 0x1p30 : INFINITY;
}

/* The forecast of a guess; NULL where it does not fit or cannot be made. */
static const struct verdict *judge(struct judging *judging, int64_t index)
{
    for (int i = 0; i < judging->count; i++)
        if (judging->of[i] == index)
            return judging->fits[i] ? &judging->verdicts[i] : NULL;
    struct plan *plan = judging->plan;
    const struct guess *guess = &plan->search.guesses[index];
    struct verdict *verdict = &judging->verdicts[judging->count];
    struct forecast forecast;
    struct err err;
    judging->of[judging->count] = index;
    bool *fits = &judging->fits[judging->count++];
    if (forecast_make(&forecast, judging->planning, &guess->candidate, &err) < 0)
        return NULL;
    plan->forecasts++;
    *verdict = (struct verdict){.candidate = guess->candidate, .estimate = forecast.estimate};
    for (int p = 0; p < guess->candidate.pipeline; p++)
        if (footprint_total(&forecast.memory[p]) > footprint_total(&verdict->memory))
            verdict->memory = forecast.memory[p];
    *fits = forecast.estimate.memory <= plan->memory_limit;
    if (!*fits) {
        struct guess miss = {guess->candidate, forecast.estimate.step_seconds, forecast.estimate.memory};
        plan->search.rejected[REJECT_MEMORY]++;
        if (plan->search.nearest.candidate.microbatch_size == 0 || miss.memory < plan->search.nearest.memory)
            plan->search.nearest = miss;
    }
    forecast_fini(&forecast);
    return *fits ? verdict : NULL;
}

static bool is_small(const struct candidate *c)
{
    return 3 * (int64_t)c->pipeline * c->chunks * c->pipeline <= FORECAST_CELLS;
}

static int compare(const void *a, const void *b)
{
    const struct verdict *x = a, *y = b;
    return x->estimate.step_seconds < y->estimate.step_seconds   ? -1
           : x->estimate.step_seconds > y->estimate.step_seconds ? 1
                                                                 : 0;
}

/* What kinds there are: a choice of the candidate and its value. */
enum kind_axis {
    BY_SCHEDULE,
    BY_RECOMPUTE,
    BY_PIPELINE,
    BY_TENSOR,
    BY_SHARDED,
    KIND_AXES
};

static int axis_value(const struct candidate *c, enum kind_axis axis)
{
    switch (axis) {
    case BY_SCHEDULE:
        return (int)c->schedule;
    case BY_RECOMPUTE:
        return (int)c->recompute;
    case BY_PIPELINE:
        return c->pipeline;
    case BY_TENSOR:
        return c->tensor;
    case BY_SHARDED:
        return c->sharded;
    case KIND_AXES:
        break;
    }
    return 0;
}

static void name_kind(struct planner_kind *kind, enum kind_axis axis, int value)
{
    switch (axis) {
    case BY_SCHEDULE:
        snprintf(kind->name, sizeof kind->name, "schedule %s", schedule_names[value]);
        return;
    case BY_RECOMPUTE:
        snprintf(kind->name, sizeof kind->name, "recompute %s", recompute_names[value]);
        return;
    case BY_PIPELINE:
        snprintf(kind->name, sizeof kind->name, "pipeline %d", value);
        return;
    case BY_TENSOR:
        snprintf(kind->name, sizeof kind->name, "tensor %d", value);
        return;
    case BY_SHARDED:
        snprintf(kind->name, sizeof kind->name, "sharded %s", value ? "true" : "false");
        return;
    case KIND_AXES:
        return;
    }
}

/* The fastest by forecast of the first few guesses of a kind, and of all forecasts made so far. */
static void judge_kind(struct judging *judging, enum kind_axis axis, int value)
{
    struct plan *plan = judging->plan;
    const struct verdict *best = NULL;
    int tries = 0;
    for (int i = 0; i < judging->count; i++)
        if (judging->fits[i] && axis_value(&judging->verdicts[i].candidate, axis) == value &&
            (!best || compare(&judging->verdicts[i], best) < 0))
            best = &judging->verdicts[i];
    for (int64_t i = 0; i < plan->search.count && tries < TRIES_PER_KIND && (!best || tries == 0); i++) {
        const struct candidate *c = &plan->search.guesses[i].candidate;
        if (axis_value(c, axis) != value || !is_small(c))
            continue;
        const struct verdict *verdict = judge(judging, i);
        tries++;
        if (verdict && (!best || compare(verdict, best) < 0))
            best = verdict;
    }
    if (!best)
        return;
    struct planner_kind *kind = &plan->kinds[plan->kind_count++];
    name_kind(kind, axis, value);
    kind->verdict = *best;
}

static void judge_kinds(struct judging *judging)
{
    struct plan *plan = judging->plan;
    for (int axis = 0; axis < KIND_AXES; axis++) {
        int last = -1;
        for (;;) { /* the values that occur, ascending */
            int next = -1;
            for (int64_t i = 0; i < plan->search.count; i++) {
                int value = axis_value(&plan->search.guesses[i].candidate, (enum kind_axis)axis);
                if (value > last && (next < 0 || value < next))
                    next = value;
            }
            if (next < 0)
                break;
            judge_kind(judging, (enum kind_axis)axis, next);
            last = next;
        }
    }
}

/* An upper bound of how many kinds there are: the divisors of the devices are few. */
static int most_kinds(const struct settings *settings)
{
    int divisors = 0;
    for (int i = 1; i <= settings->plan.devices; i++)
        divisors += settings->plan.devices % i == 0;
    return SCHEDULE_CSV + RECOMPUTE_FULL + 1 + 2 * divisors + 2;
}

void planner_run(struct plan *plan, const struct planning *planning)
{
    int kinds = most_kinds(planning->settings), room = TRIES + kinds * TRIES_PER_KIND, found = 0;
    *plan = (struct plan){.memory_limit = planner_memory_limit(planning->settings)};
    search_run(&plan->search, planning, plan->memory_limit);
    plan->kinds = allocate((size_t)kinds, sizeof *plan->kinds);
    plan->best = allocate((size_t)room, sizeof *plan->best);
    struct judging judging = {.plan = plan,
                              .planning = planning,
                              .verdicts = allocate((size_t)room, sizeof *judging.verdicts),
                              .fits = allocate((size_t)room, sizeof *judging.fits),
                              .of = allocate((size_t)room, sizeof *judging.of)};
    for (int64_t i = 0; i < plan->search.count && found < FINALISTS && judging.count < TRIES; i++)
        if (is_small(&plan->search.guesses[i].candidate))
            found += judge(&judging, i) != NULL;
    judge_kinds(&judging);
    for (int i = 0; i < judging.count; i++)
        if (judging.fits[i])
            plan->best[plan->best_count++] = judging.verdicts[i];
    qsort(plan->best, (size_t)plan->best_count, sizeof *plan->best, compare);
    if (plan->best_count > PLANNER_BEST)
        plan->best_count = PLANNER_BEST;
    free(judging.verdicts);
    free(judging.fits);
    free(judging.of);
}

void planner_fini(struct plan *plan)
{
    search_fini(&plan->search);
    free(plan->best);
    free(plan->kinds);
    *plan = (struct plan){0};
}
