#include "plan/forecast.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "model/parameters.h"
#include "pipeline/generate.h"
#include "pipeline/simulate.h"
#include "plan/balance.h"
#include "plan/machine.h"

/* (stage, microbatch) pairs of a table that is made as it is; larger ones are made for fewer microbatches. */
#define WHOLE_CELLS (1 << 18)

int planning_init(struct planning *planning, const struct settings *settings, const struct device *device,
                  const struct text *csv, struct err *err)
{
    *planning =
        (struct planning){.settings = settings, .csv = csv, .machine = cost_machine(settings), .device = device};
    if (model_create(&planning->model, settings, err) < 0)
        return -1;
    struct circumstances circumstances = {.sequences = 1, .tensor = 1, .device = planning->device, .live = 1};
    planning->kinds = allocate((size_t)planning->model.layer_count, sizeof *planning->kinds);
    cost_kinds(&planning->model, &circumstances, planning->kinds);
    planning->flops = balance_operations(&planning->model, &circumstances, 0, planning->model.layer_count);
    return 0;
}

void planning_fini(struct planning *planning)
{
    model_destroy(&planning->model);
    free(planning->kinds);
    *planning = (struct planning){0};
}

struct candidate planning_candidate(const struct settings *settings)
{
    return (struct candidate){.pipeline = settings->grid.pipeline,
                              .data = settings->grid.data,
                              .tensor = settings->grid.tensor,
                              .chunks = settings->pipeline.chunks,
                              .microbatch_size = settings->pipeline.microbatch_size,
                              .microbatches = settings->pipeline.microbatches,
                              .schedule = settings->pipeline.schedule,
                              .recompute = settings->pipeline.recompute,
                              .sharded = settings->optimizer.sharded};
}

struct circumstances planning_circumstances(const struct planning *planning, const struct candidate *candidate)
{
    return (struct circumstances){.sequences = candidate->microbatch_size,
                                  .tensor = candidate->tensor,
                                  .sequence_parallel = planning->settings->grid.sequence_parallel,
                                  .recompute = candidate->recompute,
                                  .device = planning->device,
                                  .live = 1};
}

/* Ranks are numbered tensor first, then data, then pipeline, and fill one node after another. */
bool planning_data_far(const struct planning *planning, const struct candidate *candidate)
{
    return !cost_within_node(&planning->machine, (int64_t)candidate->data * candidate->tensor);
}

bool planning_pipeline_far(const struct planning *planning, const struct candidate *candidate)
{
    return !cost_within_node(&planning->machine, (int64_t)candidate->pipeline * candidate->data * candidate->tensor);
}

void forecast_rates(const struct planning *planning, const struct candidate *candidate, struct estimate *estimate)
{
    double sequences = (double)candidate->microbatches * candidate->microbatch_size * candidate->data;
    double devices = (double)candidate->pipeline * candidate->data * candidate->tensor;
    double speed = sequences * planning->flops / estimate->step_seconds / devices;
    estimate->tokens_per_second = sequences * (double)planning->model.sequence / estimate->step_seconds;
    estimate->tflops = speed / 1e12;
    estimate->mfu = planning->machine.known ? speed / planning->machine.peak : NAN;
}

/* The tables of a configuration for so many microbatches. */
struct tables {
    int microbatches;
    struct proven train, evaluate;
};

static void tables_release(struct tables *tables)
{
    program_release(&tables->train);
    program_release(&tables->evaluate);
}

static int tables_make(struct tables *tables, const struct planning *planning, const struct settings *settings,
                       int microbatches, struct err *err)
{
    *tables = (struct tables){.microbatches = microbatches};
    struct settings *fewer = allocate(1, sizeof *fewer); /* lists are the settings' own */
    *fewer = *settings;
    fewer->pipeline.microbatches = microbatches;
    struct schedule *train = program_computations(fewer, planning->csv, err);
    free(fewer);
    if (!train)
        return -1;
    struct schedule *forward = generate_forward_only(train->ranks, train->chunks, train->placement, microbatches, err);
    if (program_prove(&tables->train, train, err) < 0) {
        schedule_destroy(forward);
        return -1;
    }
    if (program_prove(&tables->evaluate, forward, err) < 0) {
        tables_release(tables);
        return -1;
    }
    return 0;
}

/* So many microbatches that the middle of the schedule is in the table, as many as a table may hold, and as far from a
 * whole number of rounds of the pipeline as M is. */
static int table_microbatches(const struct candidate *candidate, bool csv)
{
    int64_t stages = (int64_t)candidate->pipeline * candidate->chunks, all = candidate->microbatches;
    if (csv || stages * all <= WHOLE_CELLS)
        return (int)all;
    int64_t rounds = WHOLE_CELLS / stages / candidate->pipeline;
    if (rounds < 3)
        rounds = 3;
    int64_t fewer = rounds * candidate->pipeline + all % candidate->pipeline;
    return (int)(fewer < all ? fewer : all);
}

/* The sum over the data ranks of the stage's gradients, which starts with the backward of its last layer. With a
 * sharded optimizer only half of a sum; the other half gathers the weights. */
static void add_reduction(struct forecast *forecast, const struct planning *planning, int stage)
{
    const struct candidate *candidate = &forecast->candidate;
    const struct cost_machine *machine = &planning->machine;
    struct stage_seconds *seconds = &forecast->stage[stage];
    double overlap = machine->figures->message_overlap > 0 ? machine->figures->message_overlap : 1;
    double elements =
        (double)parameters_in_layers(&planning->model, forecast->first_layer[stage], forecast->first_layer[stage + 1]) /
        candidate->tensor;
    double sum = cost_reduction(machine, elements, candidate->data, planning_data_far(planning, candidate));
    seconds->reduction = candidate->sharded ? sum / 2 : sum;
    seconds->gather = candidate->sharded ? sum / 2 * machine->element_bytes / sizeof(float) : 0;
    seconds->hidden = fmin(seconds->reduction, overlap * (seconds->input + seconds->weight));
}

/* The stages' times under this table. */
static void time_stages(struct forecast *forecast, const struct planning *planning, const struct tables *tables)
{
    const struct candidate *candidate = &forecast->candidate;
    bool far = planning_pipeline_far(planning, candidate);
    forecast->measured = true;
    for (int stage = 0; stage < forecast->stages; stage++) {
        struct circumstances circumstances = planning_circumstances(planning, candidate);
        circumstances.live = tables->train.validation->peak_sets[stage];
        struct stage_seconds *seconds = &forecast->stage[stage];
        *seconds = (struct stage_seconds){0};
        for (int layer = forecast->first_layer[stage]; layer < forecast->first_layer[stage + 1]; layer++) {
            struct cost_seconds cost =
                cost_layer(&planning->machine, &planning->model, layer, planning->kinds[layer], &circumstances);
            seconds->forward += cost.forward;
            seconds->input += cost.input;
            seconds->weight += cost.weight;
            seconds->tensor += cost.tensor;
            forecast->measured &= cost.measured;
        }
        const struct declaration *last = &planning->model.declarations[forecast->first_layer[stage + 1] - 1];
        double bytes = 0;
        for (int i = 0; i < last->after_count && stage + 1 < forecast->stages; i++)
            bytes += (double)boundary_bytes(&last->after[i], &circumstances, circumstances.sequences);
        forecast->message_bytes[stage] = bytes;
        const struct schedule *schedule = tables->train.schedule;
        bool local =
            stage + 1 == forecast->stages || schedule_rank_of(schedule, stage) == schedule_rank_of(schedule, stage + 1);
        seconds->message = local ? 0 : cost_message(&planning->machine, bytes, far);
        seconds->latency = fmin(seconds->message, cost_latency(&planning->machine, far));
        add_reduction(forecast, planning, stage);
    }
}

/* What follows the backwards on each pipeline rank, into tied[], step[] and gather[]. */
static void time_ranks(const struct forecast *forecast, const struct planning *planning,
                       const struct schedule *schedule, double *tied, double *step, double *gather)
{
    const struct candidate *candidate = &forecast->candidate;
    const struct model *model = &planning->model;
    const int shares = candidate->sharded ? candidate->data : 1;
    double *ends = allocate((size_t)candidate->pipeline, sizeof *ends); /* elements */
    int members = 0;
    for (int stage = 0; stage < forecast->stages; stage++) {
        int rank = schedule_rank_of(schedule, stage);
        double elements = 0;
        for (int layer = forecast->first_layer[stage]; layer < forecast->first_layer[stage + 1]; layer++) {
            elements += (double)parameters_in_layers(model, layer, layer + 1) / candidate->tensor;
            for (int i = 0; i < model->declarations[layer].parameter_count; i++) {
                const struct parameter *parameter = &model->declarations[layer].parameters[i];
                double end = parameter->tied ? 1.0 / candidate->tensor : 0;
                for (int axis = 0; axis < parameter->axes; axis++)
                    end *= (double)parameter->shape[axis];
                members += end > 0 && ends[rank] == 0;
                ends[rank] = fmax(ends[rank], end);
            }
        }
        step[rank] += cost_optimizer(&planning->machine, elements / shares);
        gather[rank] += forecast->stage[stage].gather;
    }
    for (int p = 0; p < candidate->pipeline; p++)
        tied[p] = cost_sum(&planning->machine, COST_DATA, ends[p] / shares * sizeof(float), members,
                           planning_pipeline_far(planning, candidate));
    free(ends);
}

/* Simulates the table, with messages or as if they were free; NULL and *err where it does not run. Its trace goes to
 * `trace` unless that is NULL. */
static struct simulation *simulate_stages(const struct forecast *forecast, const struct planning *planning,
                                          const struct schedule *schedule, bool messages, FILE *trace, struct err *err)
{
    size_t stages = (size_t)forecast->stages, ranks = (size_t)forecast->candidate.pipeline;
    double overlap = planning->machine.figures->message_overlap;
    double *times = allocate(6 * stages + 3 * ranks, sizeof *times);
    double *forward = times, *input = forward + stages, *weight = input + stages, *message = weight + stages,
           *latency = message + stages, *reduce = latency + stages, *tied = reduce + stages, *step = tied + ranks,
           *gather = step + ranks;
    for (size_t s = 0; s < stages; s++) {
        const struct stage_seconds *seconds = &forecast->stage[s];
        forward[s] = seconds->forward;
        input[s] = seconds->input;
        weight[s] = seconds->weight;
        message[s] = seconds->message - seconds->latency;
        latency[s] = seconds->latency;
        reduce[s] = seconds->reduction - seconds->hidden;
    }
    time_ranks(forecast, planning, schedule, tied, step, gather);
    struct simulate_costs costs = {.forward = forward,
                                   .input = input,
                                   .weight = weight,
                                   .message = messages ? message : NULL,
                                   .latency = messages ? latency : NULL,
                                   .occupied = overlap > 0 ? 1 - overlap : 0,
                                   .send_slots = SEND_SLOTS,
                                   .reduce = reduce,
                                   .tied = tied,
                                   .step = step,
                                   .gather = gather};
    struct simulation *simulation = simulate_schedule(schedule, &costs, err);
    const struct candidate *candidate = &forecast->candidate;
    if (simulation && trace)
        simulate_trace(schedule, &costs, candidate->pipeline * candidate->data * candidate->tensor, trace, err);
    free(times);
    return simulation;
}

/* Times from one table, added with a weight: 1 for the table itself; for one that is carried on, the larger table has
 * 1 + x and the smaller -x, x being how many of their difference are missing. */
static int add_times(struct forecast *forecast, const struct planning *planning, const struct tables *tables,
                     double weight, struct err *err)
{
    const struct schedule *schedule = tables->train.schedule;
    struct simulation *with = simulate_stages(forecast, planning, schedule, true, NULL, err);
    struct simulation *without = with ? simulate_stages(forecast, planning, schedule, false, NULL, err) : NULL;
    if (without) {
        forecast->makespan += weight * with->makespan;
        forecast->without_messages += weight * without->makespan;
        forecast->estimate.step_seconds += weight * with->step_seconds;
        for (int p = 0; p < forecast->candidate.pipeline; p++) {
            forecast->busy[p] += weight * with->ranks[p].busy;
            forecast->end[p] += weight * with->ranks[p].end;
        }
    }
    int result = without ? 0 : -1;
    simulate_destroy(with);
    simulate_destroy(without);
    return result;
}

/* One more size of memory, carried on in proportion. */
static size_t carry_on(size_t large, size_t small, double missing)
{
    return large <= small ? large : large + (size_t)(missing * (double)(large - small));
}

static void count_memory(struct forecast *forecast, const struct layout *large, const struct layout *small,
                         double missing)
{
    struct footprint_sizes *sizes = footprint_sizes_create(large);
    struct footprint_sizes *fewer = small ? footprint_sizes_create(small) : NULL;
    for (int p = 0; p < forecast->candidate.pipeline; p++) {
        struct footprint *memory = &forecast->memory[p];
        *memory = footprint_of_rank(sizes, forecast->first_layer, p, NULL, NULL);
        if (fewer) {
            struct footprint less = footprint_of_rank(fewer, forecast->first_layer, p, NULL, NULL);
            memory->activations = carry_on(memory->activations, less.activations, missing);
            memory->buffers = carry_on(memory->buffers, less.buffers, missing);
        }
        forecast->estimate.memory = fmax(forecast->estimate.memory, (double)footprint_total(memory));
    }
    footprint_sizes_destroy(sizes);
    footprint_sizes_destroy(fewer);
}

/* The parts of the step. */
static void share_out(struct forecast *forecast, const struct planning *planning, const struct schedule *schedule)
{
    const struct candidate *candidate = &forecast->candidate;
    struct estimate *estimate = &forecast->estimate;
    double busy = 0, optimizer = 0, tensor = 0;
    for (int p = 0; p < candidate->pipeline; p++) {
        double elements = 0, reduction = 0, hidden = 0;
        for (int chunk = 0; chunk < candidate->chunks; chunk++) {
            int stage = schedule_stage_of(schedule, p, chunk);
            elements += (double)parameters_in_layers(&planning->model, forecast->first_layer[stage],
                                                     forecast->first_layer[stage + 1]);
            reduction += forecast->stage[stage].reduction;
            hidden += forecast->stage[stage].hidden;
        }
        if (reduction > forecast->reduction) {
            forecast->reduction = reduction;
            forecast->hidden = hidden;
        }
        elements /= candidate->tensor * (candidate->sharded ? candidate->data : 1);
        optimizer = fmax(optimizer, cost_optimizer(&planning->machine, elements));
        busy += forecast->busy[p];
    }
    for (int stage = 0; stage < forecast->stages; stage++)
        tensor += forecast->stage[stage].tensor * candidate->microbatches / candidate->pipeline;
    const double step = estimate->step_seconds;
    estimate->bubble = forecast->makespan > 0 ? 1 - busy / (candidate->pipeline * forecast->makespan) : 0;
    estimate->pipeline_share = (forecast->makespan - forecast->without_messages) / step;
    estimate->tensor_share = tensor / step;
    estimate->optimizer_share = optimizer / step;
    estimate->data_share = fmax(0, step - forecast->makespan - optimizer) / step;
    forecast_rates(planning, candidate, estimate);
}

void forecast_choose(struct settings *settings, const struct candidate *candidate)
{
    settings->grid.pipeline = candidate->pipeline;
    settings->grid.data = candidate->data;
    settings->grid.tensor = candidate->tensor;
    settings->pipeline.schedule = candidate->schedule;
    settings->pipeline.chunks = candidate->chunks;
    settings->pipeline.microbatch_size = candidate->microbatch_size;
    settings->pipeline.microbatches = candidate->microbatches;
    settings->pipeline.recompute = candidate->recompute;
    settings->optimizer.sharded = candidate->sharded;
}

/* The settings of a candidate; lists are the settings' own. The caller frees it. */
static struct settings *settings_of(const struct settings *settings, const struct candidate *candidate)
{
    struct settings *own = allocate(1, sizeof *own);
    *own = *settings;
    forecast_choose(own, candidate);
    return own;
}

/* With the tables made: cut, times, memory. */
static int fill(struct forecast *forecast, const struct planning *planning, struct settings *settings,
                const struct tables *large, const struct tables *small, struct err *err)
{
    const struct candidate *candidate = &forecast->candidate;
    struct layout layout = {.model = &planning->model,
                            .circumstances = planning_circumstances(planning, candidate),
                            .data = candidate->data,
                            .sharded = candidate->sharded,
                            .train = large->train,
                            .evaluate = large->evaluate};
    struct layout fewer = layout;
    double missing = 0;
    if (small) {
        fewer.train = small->train;
        fewer.evaluate = small->evaluate;
    }
    int result = balance_stages(settings, &layout, forecast->first_layer, err);
    if (result < 0 && settings->plan.memory_gib > 0) { /* without the limit, so that it can be told what lacks */
        settings->plan.memory_gib = 0;
        result = balance_stages(settings, &layout, forecast->first_layer, err);
    }
    if (result < 0)
        return -1;
    time_stages(forecast, planning, large);
    if (small)
        missing = (double)(candidate->microbatches - large->microbatches) /
                  (double)(large->microbatches - small->microbatches);
    if (add_times(forecast, planning, large, 1 + missing, err) < 0 ||
        (small && add_times(forecast, planning, small, -missing, err) < 0))
        return -1;
    count_memory(forecast, &layout, small ? &fewer : NULL, missing);
    forecast->v_placement = large->train.schedule->placement == PLACEMENT_V;
    for (int p = 0; p < candidate->pipeline; p++) {
        const int *live = large->train.validation->rank_peak_sets;
        forecast->live[p] = (int)carry_on(
            (size_t)live[p], (size_t)(small ? small->train.validation->rank_peak_sets[p] : live[p]), missing);
    }
    share_out(forecast, planning, large->train.schedule);
    return 0;
}

int forecast_make(struct forecast *forecast, const struct planning *planning, const struct candidate *candidate,
                  struct err *err)
{
    struct settings *settings = settings_of(planning->settings, candidate);
    size_t stages = (size_t)candidate->pipeline * (size_t)candidate->chunks, ranks = (size_t)candidate->pipeline;
    int many = table_microbatches(candidate, candidate->schedule == SCHEDULE_CSV);
    struct tables large = {0}, small = {0};
    *forecast = (struct forecast){.candidate = *candidate,
                                  .stages = (int)stages,
                                  .first_layer = allocate(stages + 1, sizeof *forecast->first_layer),
                                  .stage = allocate(stages, sizeof *forecast->stage),
                                  .message_bytes = allocate(stages, sizeof *forecast->message_bytes),
                                  .memory = allocate(ranks, sizeof *forecast->memory),
                                  .live = allocate(ranks, sizeof *forecast->live),
                                  .busy = allocate(ranks, sizeof *forecast->busy),
                                  .end = allocate(ranks, sizeof *forecast->end)};
    bool whole = many == candidate->microbatches;
    int result = tables_make(&large, planning, settings, many, err);
    if (result == 0 && !whole)
        result = tables_make(&small, planning, settings, many - candidate->pipeline, err);
    if (result == 0)
        result = fill(forecast, planning, settings, &large, whole ? NULL : &small, err);
    tables_release(&large);
    tables_release(&small);
    free(settings);
    if (result < 0)
        forecast_fini(forecast);
    return result;
}

int forecast_trace(const struct forecast *forecast, const struct planning *planning, FILE *out, struct err *err)
{
    struct settings *settings = settings_of(planning->settings, &forecast->candidate);
    struct tables tables = {0};
    int result = tables_make(&tables, planning, settings, forecast->candidate.microbatches, err);
    if (result == 0) {
        struct simulation *simulation = simulate_stages(forecast, planning, tables.train.schedule, true, out, err);
        result = simulation ? 0 : -1;
        simulate_destroy(simulation);
        tables_release(&tables);
    }
    free(settings);
    return result;
}

void forecast_fini(struct forecast *forecast)
{
    free(forecast->first_layer);
    free(forecast->stage);
    free(forecast->message_bytes);
    free(forecast->memory);
    free(forecast->live);
    free(forecast->busy);
    free(forecast->end);
    *forecast = (struct forecast){0};
}
