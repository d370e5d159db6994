#include "plan/advise.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/memory.h"

enum {
    MOST_OPTIONS = 8
};

static void add_option(const struct planning *planning, const struct candidate *candidate, const char *change,
                       struct diagnose_option *options, int *count)
{
    struct forecast forecast;
    struct err err;
    if (forecast_make(&forecast, planning, candidate, &err) < 0)
        return; /* an option that is impossible here is none */
    struct diagnose_option *option = &options[(*count)++];
    *option =
        (struct diagnose_option){.memory = forecast.estimate.memory, .step_seconds = forecast.estimate.step_seconds};
    snprintf(option->change, sizeof option->change, "%s", change);
    forecast_fini(&forecast);
}

/* Ways to need less memory. */
static int make_options(const struct planning *planning, const struct candidate *now, struct diagnose_option *options)
{
    static const enum schedule_choice schedules[] = {SCHEDULE_1F1B, SCHEDULE_V_HALF, SCHEDULE_V_MIN};
    int count = 0;
    char change[96];
    for (int recompute = now->recompute + 1; recompute <= RECOMPUTE_FULL; recompute++) {
        struct candidate other = *now;
        other.recompute = (enum recompute_choice)recompute;
        snprintf(change, sizeof change, "recompute = '%s'", recompute_names[recompute]);
        add_option(planning, &other, change, options, &count);
    }
    for (int i = 0; i < 3 && now->pipeline > 1; i++) {
        struct candidate other = *now;
        other.schedule = schedules[i];
        other.chunks = schedules[i] == SCHEDULE_1F1B ? 1 : 2;
        if (other.schedule == now->schedule || other.pipeline * other.chunks > planning->model.layer_count)
            continue;
        snprintf(change, sizeof change, "schedule = '%s'  chunks = %d", schedule_names[other.schedule], other.chunks);
        add_option(planning, &other, change, options, &count);
    }
    if (now->microbatch_size % 2 == 0) {
        struct candidate other = *now;
        other.microbatch_size /= 2;
        other.microbatches *= 2;
        snprintf(change, sizeof change, "microbatch_size = %d  microbatches = %d", other.microbatch_size,
                 other.microbatches);
        add_option(planning, &other, change, options, &count);
    }
    return count;
}

/* The rank that holds most. */
static int fullest(const struct forecast *forecast)
{
    int most = 0;
    for (int p = 1; p < forecast->candidate.pipeline; p++)
        if (footprint_total(&forecast->memory[p]) > footprint_total(&forecast->memory[most]))
            most = p;
    return most;
}

int advise_forecast(const struct planning *planning, const struct forecast *forecast, double memory_limit,
                    struct finding *findings)
{
    const struct model *model = &planning->model;
    const struct candidate *c = &forecast->candidate;
    struct circumstances circumstances = planning_circumstances(planning, c);
    size_t layers = (size_t)model->layer_count;
    double *seconds = allocate(layers, sizeof *seconds), *boundaries = allocate(layers, sizeof *boundaries);
    for (int i = 0; i < model->layer_count; i++) {
        struct cost_seconds cost = cost_layer(&planning->machine, model, i, planning->kinds[i], &circumstances);
        seconds[i] = cost.forward + cost.input + cost.weight;
        for (int b = 0; b < model->declarations[i].after_count; b++)
            boundaries[i] +=
                (double)boundary_bytes(&model->declarations[i].after[b], &circumstances, circumstances.sequences);
    }
    struct diagnose_option options[MOST_OPTIONS];
    int option_count = forecast->estimate.memory > memory_limit ? make_options(planning, c, options) : 0;
    struct diagnose_input input = {.ranks = c->pipeline,
                                   .chunks = c->chunks,
                                   .microbatches = c->microbatches,
                                   .microbatch_size = c->microbatch_size,
                                   .v_placement = forecast->v_placement,
                                   .schedule = c->schedule,
                                   .layers = model->layer_count,
                                   .layer_seconds = seconds,
                                   .first_layer = forecast->first_layer,
                                   .boundary_bytes = boundaries,
                                   .step_seconds = forecast->estimate.step_seconds,
                                   .bubble = forecast->estimate.bubble,
                                   .message_seconds = forecast->makespan - forecast->without_messages,
                                   .machine = planning->machine.figures,
                                   .product_gflop = cost_product(model, model->layer_count / 2, &circumstances) / 1e9,
                                   .memory = forecast->estimate.memory,
                                   .memory_limit = memory_limit,
                                   .activations = (double)forecast->memory[fullest(forecast)].activations,
                                   .live = forecast->live[fullest(forecast)],
                                   .options = options,
                                   .option_count = option_count};
    int count = diagnose(&input, findings);
    free(seconds);
    free(boundaries);
    return count;
}
