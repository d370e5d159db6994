#include "plan/advise.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/memory.h"

enum {
    MOST_OPTIONS = 8,
    MOST_SIZES = 16
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
static int fullest(const struct footprint *memory, int ranks)
{
    int most = 0;
    for (int p = 1; p < ranks; p++)
        if (footprint_total(&memory[p]) > footprint_total(&memory[most]))
            most = p;
    return most;
}

/* The arrays of a diagnosis: [layers] each, to be freed with the first. */
struct arrays {
    double *seconds, *costs, *boundaries;
    bool measured; /* all kinds of layers were timed on the machine */
};

/* Seconds of the layers by their costs, which stand in both, and the bytes behind each. */
static struct arrays make_arrays(const struct planning *planning, const struct circumstances *circumstances)
{
    const struct model *model = &planning->model;
    struct arrays arrays = {.seconds = allocate(3 * (size_t)model->layer_count, sizeof(double)), .measured = true};
    arrays.costs = arrays.seconds + model->layer_count;
    arrays.boundaries = arrays.costs + model->layer_count;
    for (int i = 0; i < model->layer_count; i++) {
        struct cost_seconds cost = cost_layer(&planning->machine, model, i, planning->kinds[i], circumstances);
        arrays.seconds[i] = arrays.costs[i] = cost.forward + cost.input + cost.weight;
        arrays.measured &= cost.measured;
        for (int b = 0; b < model->declarations[i].after_count; b++)
            arrays.boundaries[i] +=
                (double)boundary_bytes(&model->declarations[i].after[b], circumstances, circumstances->sequences);
    }
    return arrays;
}

/* What is the same in both. */
static struct diagnose_input input_of(const struct planning *planning, const struct candidate *c,
                                      const struct circumstances *circumstances, const struct arrays *arrays,
                                      const int *first_layer, bool v_placement, const struct footprint *memory,
                                      double memory_limit)
{
    const struct model *model = &planning->model;
    const struct footprint *most = &memory[fullest(memory, c->pipeline)];
    return (struct diagnose_input){.ranks = c->pipeline,
                                   .chunks = c->chunks,
                                   .microbatches = c->microbatches,
                                   .microbatch_size = c->microbatch_size,
                                   .v_placement = v_placement,
                                   .schedule = c->schedule,
                                   .layers = model->layer_count,
                                   .layer_seconds = arrays->seconds,
                                   .first_layer = first_layer,
                                   .boundary_bytes = arrays->boundaries,
                                   .machine = planning->machine.figures,
                                   .product_gflop = cost_product(model, model->layer_count / 2, circumstances) / 1e9,
                                   .memory = (double)footprint_total(most),
                                   .memory_limit = memory_limit,
                                   .activations = (double)most->activations};
}

/* Whether forecasts of other choices mean something. */
static bool can_time(const struct planning *planning, const struct candidate *candidate)
{
    return planning->machine.known && candidate->schedule != SCHEDULE_CSV;
}

/* Seconds of a step; NAN where the candidate is impossible. */
static double step_seconds(const struct planning *planning, const struct candidate *candidate)
{
    struct forecast forecast;
    struct err err;
    if (forecast_make(&forecast, planning, candidate, &err) < 0)
        return NAN;
    double seconds = forecast.estimate.step_seconds;
    forecast_fini(&forecast);
    return seconds;
}

/* Times with microbatches up to 64 times larger or smaller, those nearest to the present ones first. */
static int make_sizes(const struct planning *planning, const struct candidate *now, double seconds, int *sizes,
                      double *times)
{
    int count = 0;
    int64_t sequences = (int64_t)now->microbatches * now->microbatch_size;
    for (int k = 2; k <= 64 && count + 2 <= MOST_SIZES; k++) {
        struct candidate larger = *now, smaller = *now;
        larger.microbatch_size = now->microbatch_size * k;
        smaller.microbatch_size = now->microbatch_size / k;
        struct candidate *both[] = {&larger, &smaller};
        const bool possible[] = {now->microbatches % k == 0, now->microbatch_size % k == 0};
        for (int i = 0; i < 2; i++) {
            if (!possible[i])
                continue;
            both[i]->microbatches = (int)(sequences / both[i]->microbatch_size);
            double then = step_seconds(planning, both[i]);
            if (isfinite(then)) {
                sizes[count] = both[i]->microbatch_size;
                times[count++] = then / seconds;
            }
        }
    }
    return count;
}

/* Completes the input by forecasts of other choices: of less memory where it does not suffice, and of faster ones where
 * the machine's times are known; `now` is the forecast of the present one's step, s. */
static int diagnose_with_options(const struct planning *planning, const struct candidate *c, double now,
                                 struct diagnose_input *input, struct finding *findings)
{
    struct diagnose_option options[MOST_OPTIONS];
    int sizes[MOST_SIZES];
    double times[MOST_SIZES];
    if (input->memory > input->memory_limit)
        input->option_count = make_options(planning, c, options);
    input->options = options;
    if (can_time(planning, c)) {
        struct candidate eager = *c;
        eager.schedule = SCHEDULE_EAGER_1F1B;
        input->sizes = sizes;
        input->size_times = times;
        input->size_count = make_sizes(planning, c, now, sizes, times);
        if (c->schedule == SCHEDULE_1F1B)
            input->eager_time = step_seconds(planning, &eager) / now;
    }
    return diagnose(input, findings);
}

int advise_forecast(const struct planning *planning, const struct forecast *forecast, double memory_limit,
                    struct finding *findings)
{
    const struct candidate *c = &forecast->candidate;
    struct circumstances circumstances = planning_circumstances(planning, c);
    struct arrays arrays = make_arrays(planning, &circumstances);
    struct diagnose_input input = input_of(planning, c, &circumstances, &arrays, forecast->first_layer,
                                           forecast->v_placement, forecast->memory, memory_limit);
    input.step_seconds = forecast->estimate.step_seconds;
    input.bubble = forecast->estimate.bubble;
    input.message_seconds = forecast->makespan - forecast->without_messages;
    input.live = forecast->live[fullest(forecast->memory, c->pipeline)];
    int count = diagnose_with_options(planning, c, forecast->estimate.step_seconds, &input, findings);
    free(arrays.seconds);
    return count;
}

/* Scales the seconds of each stage's layers to what the stage took. */
static void scale_layers(const struct measured *measured, const int *first_layer, int stages, double *seconds)
{
    for (int stage = 0; stage < stages; stage++) {
        double sum = 0;
        for (int layer = first_layer[stage]; layer < first_layer[stage + 1]; layer++)
            sum += seconds[layer];
        for (int layer = first_layer[stage]; layer < first_layer[stage + 1]; layer++)
            seconds[layer] = sum > 0 ? seconds[layer] * measured->stages[stage] / sum
                                     : measured->stages[stage] / (first_layer[stage + 1] - first_layer[stage]);
    }
}

int advise_measured(const struct planning *planning, const struct measured_step *step, const struct measured *measured,
                    const int *first_layer, const struct footprint *memory, double memory_limit,
                    struct finding *findings)
{
    const struct schedule *schedule = step->schedule;
    const struct candidate candidate = planning_candidate(planning->settings);
    struct circumstances circumstances = planning_circumstances(planning, &candidate);
    struct arrays arrays = make_arrays(planning, &circumstances);
    scale_layers(measured, first_layer, schedule->stages, arrays.seconds);
    struct diagnose_input input = input_of(planning, &candidate, &circumstances, &arrays, first_layer,
                                           schedule->placement == PLACEMENT_V, memory, memory_limit);
    input.layer_costs = arrays.measured ? arrays.costs : NULL;
    input.step_seconds = step->seconds;
    input.bubble = measured->bubble;
    input.message_seconds = measured->messages;
    input.live = step->live[fullest(memory, candidate.pipeline)];
    double now = can_time(planning, &candidate) ? step_seconds(planning, &candidate) : NAN;
    int count = diagnose_with_options(planning, &candidate, now, &input, findings);
    free(arrays.seconds);
    return count;
}
