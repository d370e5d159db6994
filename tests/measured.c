/* What a step's own times tell: times that the simulator made with messages, so that it is known what they cost. */
#include "plan/measured.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "tests/tap.h"

enum {
    STAGES = 3,
    MICROBATCHES = 5
};

static const double forward[STAGES] = {1, 3, 2}, input[STAGES] = {2, 1, 2.5}, weight[STAGES] = {1, 2, 0.5},
                    message[STAGES] = {0.75, 0.5, 0};

/* The begin and end of every computation of a simulated run that began `late` after the step. */
static double (*run(const struct schedule *schedule, const struct simulate_costs *costs, double late, int64_t *places,
                    struct simulation **simulation))[2]
{
    struct err err;
    struct simulate_spans *spans = allocate((size_t)schedule->ranks, sizeof *spans);
    *simulation = simulate_recorded(schedule, costs, spans, &err);
    *places = 0;
    for (int rank = 0; rank < schedule->ranks; rank++)
        if (schedule->lists[rank].count > *places)
            *places = schedule->lists[rank].count;
    double(*times)[2] = allocate((size_t)(schedule->ranks * *places), sizeof *times);
    for (int rank = 0; rank < schedule->ranks; rank++) {
        int64_t next = 0;
        for (int64_t i = 0; i < schedule->lists[rank].count; i++) {
            if (!instruction_computes(schedule->lists[rank].items[i].op))
                continue;
            while (spans[rank].items[next].lane != TRACE_COMPUTE)
                next++;
            times[rank * *places + i][0] = late + spans[rank].items[next].begin;
            times[rank * *places + i][1] = late + spans[rank].items[next++].end;
        }
    }
    simulate_spans_destroy(spans, schedule->ranks);
    return times;
}

static struct schedule *make(const char *name)
{
    struct err err;
    struct schedule *computations = generate_schedule(name, STAGES, 1, MICROBATCHES, &err);
    struct schedule *schedule = lower_schedule(computations, &err);
    schedule_destroy(computations);
    return schedule;
}

static void test_schedule(const char *name)
{
    struct err err;
    struct schedule *schedule = make(name);
    struct simulate_costs costs = {.forward = forward, .input = input, .weight = weight};
    struct simulation *without = simulate_schedule(schedule, &costs, &err), *with;
    struct measured_step step = {.schedule = schedule, .seconds = 100};
    costs.message = message;
    double(*times)[2] = run(schedule, &costs, 7, &step.places, &with);
    step.times = (const double(*)[2])times;
    struct measured measured;
    if (measured_take(&measured, &step, &err) < 0)
        fatal("%s: %s", name, err.text);
    is_near(measured.makespan, with->makespan, 1e-12, "%s: from the first begin to the last end", name);
    is_near(measured.bubble, with->bubble, 1e-12, "%s: the bubble", name);
    ok(with->makespan > without->makespan, "%s: messages cost something here", name);
    is_near(measured.messages, with->makespan - without->makespan, 1e-12, "%s: how much", name);
    double worst = 0, unlike = 0, left = 0;
    for (int stage = 0; stage < STAGES; stage++)
        worst = fmax(worst, fabs(measured.stages[stage] - forward[stage] - input[stage] - weight[stage]));
    for (int rank = 0; rank < STAGES; rank++) {
        const struct simulate_rank *is = &measured.ranks[rank], *should = &without->ranks[rank];
        unlike = fmax(unlike, fabs(is->fill - should->fill) + fabs(is->drain - should->drain) +
                                  fabs(is->imbalance - should->imbalance));
        left = fmax(left, fabs(is->busy + is->fill + is->drain + is->imbalance + is->communication - with->makespan));
    }
    ok(worst < 1e-12, "%s: seconds of the stages, to %g", name, worst);
    ok(unlike < 1e-12, "%s: idle time has the reasons that it has without messages, to %g", name, unlike);
    ok(left < 1e-12, "%s: and messages for the rest, to %g", name, left);
    is_near(measured.latency, 1 + 3 + 2 + 0.75 + 0.5, 1e-12, "%s: the first microbatch's way to its loss", name);
    measured_fini(&measured);
    free(times);
    simulate_destroy(without);
    simulate_destroy(with);
    schedule_destroy(schedule);
}

/* A computation that took longer than its like once is what others waited for, not a message. */
static void test_disturbed(void)
{
    struct err err;
    struct schedule *schedule = make("1f1b");
    double slow[STAGES][64];
    const double *lengths[STAGES];
    for (int rank = 0; rank < STAGES; rank++) {
        lengths[rank] = slow[rank];
        for (int64_t i = 0; i < schedule->lists[rank].count; i++)
            slow[rank][i] =
                instruction_computes(schedule->lists[rank].items[i].op) ? 1 + (double)((i * 7 + rank) % 5) : 0;
    }
    struct simulate_costs costs = {.computation = lengths};
    struct measured_step step = {.schedule = schedule, .seconds = 100};
    struct simulation *simulation;
    double(*times)[2] = run(schedule, &costs, 0, &step.places, &simulation);
    step.times = (const double(*)[2])times;
    struct measured measured;
    if (measured_take(&measured, &step, &err) < 0)
        fatal("%s", err.text);
    is_near(measured.makespan, simulation->makespan, 1e-12, "computations of any lengths");
    is_near(measured.messages, 0, 1e-12, "no time is put down to messages that took none");
    measured_fini(&measured);
    free(times);
    simulate_destroy(simulation);
    schedule_destroy(schedule);
}

int main(void)
{
    test_schedule("gpipe");
    test_schedule("1f1b");
    test_schedule("zb-h1");
    test_disturbed();
    return tap_done();
}
