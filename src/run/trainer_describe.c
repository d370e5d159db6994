#include <math.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/memory.h"
#include "plan/balance.h"
#include "plan/forecast.h"
#include "plan/machine.h"
#include "run/trainer_state.h"

const struct device *trainer_device(const struct trainer *trainer)
{
    return trainer->context.device;
}

int64_t trainer_steps_done(const struct trainer *trainer)
{
    return trainer->step;
}

double trainer_flops_per_step(const struct trainer *trainer)
{
    const struct settings *s = trainer->settings;
    struct circumstances circumstances = trainer->context.circumstances;
    circumstances.recompute = RECOMPUTE_NONE;
    return balance_operations(&trainer->model, &circumstances, 0, trainer->model.layer_count) *
           s->pipeline.microbatches * s->grid.data * s->grid.tensor;
}

struct expectation trainer_expected(const struct trainer *trainer)
{
    return trainer->expected;
}

/* The stages' shares of the work, in percent, and what the step will be like: by the times of the machine where they
 * are known, else by declared operations. */
static bool foresee(struct trainer *trainer, double *shares)
{
    struct planning planning;
    struct forecast forecast;
    struct err err;
    const struct text no_table = {0};
    const struct candidate candidate = planning_candidate(trainer->settings);
    if (machine_peak(trainer->settings) <= 0 || !trainer->train.schedule || candidate.schedule == SCHEDULE_CSV ||
        planning_init(&planning, trainer->settings, trainer->context.device, &no_table, &err) < 0)
        return false;
    bool good = forecast_make(&forecast, &planning, &candidate, &err) == 0;
    double all = 0;
    for (int stage = 0; good && stage < forecast.stages; stage++) {
        const struct stage_seconds *seconds = &forecast.stage[stage];
        all += shares[stage] = seconds->forward + seconds->input + seconds->weight;
    }
    for (int stage = 0; good && stage < forecast.stages; stage++)
        shares[stage] *= 100 / all;
    if (good) {
        trainer->expected =
            (struct expectation){.bubble = forecast.estimate.bubble, .seconds = forecast.estimate.step_seconds};
        forecast_fini(&forecast);
    }
    planning_fini(&planning);
    return good;
}

static void foresee_by_operations(struct trainer *trainer, double *shares)
{
    const struct circumstances *circumstances = &trainer->context.circumstances;
    const struct model *model = &trainer->model;
    double all = balance_operations(model, circumstances, 0, model->layer_count);
    for (int stage = 0; stage < trainer->evaluate.schedule->stages; stage++)
        shares[stage] =
            100 / all *
            balance_operations(model, circumstances, trainer->first_layer[stage], trainer->first_layer[stage + 1]);
    if (!trainer->train.schedule)
        return;
    struct err err;
    struct simulation *simulation =
        balance_simulate(model, circumstances, trainer->train.schedule, trainer->first_layer, &err);
    trainer->expected = (struct expectation){.bubble = simulation ? simulation->bubble : NAN, .seconds = NAN};
    simulate_destroy(simulation);
}

/* "embedding, 3 x block": the kinds of layers in their order. */
static void add_kinds(struct text *text, const struct model *model, int first, int last)
{
    for (int layer = first, next; layer < last; layer = next) {
        const struct layer_kind *kind = model->layers[layer].kind;
        for (next = layer + 1; next < last && model->layers[next].kind == kind; next++)
            ;
        text_add(text, "%s", layer > first ? ", " : "");
        if (next - layer > 1)
            text_add(text, "%d x ", next - layer);
        text_add(text, "%s", kind->name);
    }
}

static void describe_stages(struct trainer *trainer, const struct footprint *memory)
{
    const struct schedule *schedule = trainer->evaluate.schedule;
    const struct model *model = &trainer->model;
    double *shares = allocate((size_t)schedule->stages, sizeof *shares);
    bool timed = foresee(trainer, shares);
    if (!timed)
        foresee_by_operations(trainer, shares);
    for (int stage = 0; stage < schedule->stages; stage++) {
        int first = trainer->first_layer[stage], last = trainer->first_layer[stage + 1];
        int rank = grid_rank(&trainer->grid, schedule_rank_of(schedule, stage), 0, 0);
        struct text layers = {0};
        add_kinds(&layers, model, first, last);
        log_line("stage %-6d %s, %lld parameters, %.1f%% of the %s; rank %d holds %s", stage, text_string(&layers),
                 (long long)parameters_in_layers(model, first, last), shares[stage], timed ? "time" : "operations",
                 rank, text_bytes((double)footprint_total(&memory[rank])).text);
        text_fini(&layers);
    }
    free(shares);
}

void trainer_describe(struct trainer *trainer)
{
    const struct settings *s = trainer->settings;
    const struct grid *grid = &trainer->grid;
    struct footprint *memory = allocate((size_t)grid->size, sizeof *memory);
    control_gather(grid->world, memory, &trainer->memory, sizeof *memory, 0);
    if (grid->rank == 0) {
        log_line("ppmodel      %s of a %s: %d layers, hidden %d, %d heads, sequence %d, vocabulary %d, %lld parameters",
                 mode_names[s->run.mode], family_names[s->model.family], s->model.layers, s->model.hidden,
                 s->model.heads, s->model.sequence, s->model.vocabulary, (long long)parameters_total(&trainer->model));
        log_line("grid         %d ranks: pipeline %d x data %d x tensor %d, %d thread%s each, device %s, %s",
                 grid->size, grid->pipeline, grid->data, grid->tensor, s->run.threads, s->run.threads == 1 ? "" : "s",
                 trainer->context.device->name, precision_names[s->run.precision]);
        if (s->run.precision == PRECISION_BF16)
            log_line("bf16         matrix products: %s", device_cpu_bf16());
        describe_stages(trainer, memory);
        if (trainer->train.schedule) {
            const double seconds = trainer->expected.seconds;
            log_line("schedule     %s, %d microbatches of %d sequences, recompute %s; bubble %.3f expected%s%s",
                     schedule_names[s->pipeline.schedule], s->pipeline.microbatches, s->pipeline.microbatch_size,
                     recompute_names[s->pipeline.recompute], trainer->expected.bubble,
                     isfinite(seconds) ? ", steps of " : "", isfinite(seconds) ? text_duration(seconds).text : "");
            if (!trainer->train.validation->ascending)
                log_line("             %s accumulates gradients in another order than ascending microbatches: results "
                         "agree with other schedules to rounding, not to the bit",
                         s->pipeline.schedule_file);
            log_line("step         %lld sequences, %lld tokens; first loss expected near ln(vocabulary) = %.4f",
                     (long long)s->pipeline.global_batch, (long long)(s->pipeline.global_batch * s->model.sequence),
                     log(s->model.vocabulary));
        }
        for (int rank = 0; rank < grid->size; rank++)
            log_verbose("memory       rank %d: weights %zu, gradients %zu, moments %zu, activations %zu, buffers %zu, "
                        "workspace %zu bytes",
                        rank, memory[rank].weights + memory[rank].computed, memory[rank].gradients,
                        memory[rank].moments, memory[rank].activations, memory[rank].buffers, memory[rank].workspace);
    }
    free(memory);
}
