#include "plan/measured.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* How long each computation took, as the simulator takes it: [ranks][places]. */
static double **lengths_of(const struct measured_step *step)
{
    int ranks = step->schedule->ranks;
    double **lengths = allocate((size_t)ranks, sizeof *lengths);
    for (int rank = 0; rank < ranks; rank++) {
        const double(*times)[2] = step->times + rank * step->places;
        lengths[rank] = allocate((size_t)step->places, sizeof **lengths);
        for (int64_t i = 0; i < step->places; i++)
            lengths[rank][i] = times[i][1] - times[i][0];
    }
    return lengths;
}

/* Adds up what was measured. */
static void add_up(struct measured *measured, const struct measured_step *step)
{
    const struct schedule *schedule = step->schedule;
    double first = INFINITY, last = 0, busy = 0, enters = 0, leaves = 0;
    for (int rank = 0; rank < schedule->ranks; rank++) {
        const struct instruction_list *list = &schedule->lists[rank];
        for (int64_t i = 0; i < list->count; i++) {
            struct instruction item = list->items[i];
            const double *time = step->times[rank * step->places + i];
            if (!instruction_computes(item.op) || time[1] <= 0)
                continue;
            first = fmin(first, time[0]);
            last = fmax(last, time[1]);
            busy += time[1] - time[0];
            measured->stages[item.stage] += (time[1] - time[0]) / schedule->microbatches;
            if (item.op == FORWARD && item.microbatch == 0 && item.stage == 0)
                enters = time[0];
            if (item.op == FORWARD && item.microbatch == 0 && item.stage == schedule->stages - 1)
                leaves = time[1];
        }
    }
    measured->makespan = fmax(0, last - first);
    measured->bubble = measured->makespan > 0 ? 1 - busy / (schedule->ranks * measured->makespan) : 0;
    measured->latency = leaves - enters;
}

int measured_take(struct measured *measured, const struct measured_step *step, struct err *err)
{
    const int ranks = step->schedule->ranks;
    double **lengths = lengths_of(step);
    struct simulate_costs costs = {.computation = (const double *const *)lengths};
    struct simulation *simulation = simulate_schedule(step->schedule, &costs, err);
    *measured = (struct measured){0};
    if (simulation) {
        measured->stages = allocate((size_t)step->schedule->stages, sizeof *measured->stages);
        measured->ranks = allocate((size_t)ranks, sizeof *measured->ranks);
        add_up(measured, step);
        measured->messages = fmax(0, measured->makespan - simulation->makespan);
        for (int rank = 0; rank < ranks; rank++) {
            measured->ranks[rank] = simulation->ranks[rank];
            measured->ranks[rank].communication = measured->messages;
        }
    }
    for (int rank = 0; rank < ranks; rank++)
        free(lengths[rank]);
    free(lengths);
    int result = simulation ? 0 : -1;
    simulate_destroy(simulation);
    return result;
}

void measured_fini(struct measured *measured)
{
    free(measured->stages);
    free(measured->ranks);
    *measured = (struct measured){0};
}
