#include <math.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/memory.h"
#include "plan/balance.h"
#include "run/trainer_state.h"

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

double trainer_expected_bubble(const struct trainer *trainer)
{
    struct err err;
    struct simulation *simulation = balance_simulate(&trainer->model, &trainer->context.circumstances,
                                                     trainer->train.schedule, trainer->first_layer, &err);
    double bubble = simulation ? simulation->bubble : NAN;
    simulate_destroy(simulation);
    return bubble;
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

static void describe_stages(const struct trainer *trainer, const struct footprint *memory)
{
    const struct schedule *schedule = trainer->evaluate.schedule;
    const struct model *model = &trainer->model;
    double all = balance_operations(model, &trainer->context.circumstances, 0, model->layer_count);
    for (int stage = 0; stage < schedule->stages; stage++) {
        int first = trainer->first_layer[stage], last = trainer->first_layer[stage + 1];
        int rank = grid_rank(&trainer->grid, schedule_rank_of(schedule, stage), 0, 0);
        struct text layers = {0};
        add_kinds(&layers, model, first, last);
        log_line("stage %-6d %s, %lld parameters, %.1f%% of the operations; rank %d holds %s", stage,
                 text_string(&layers), (long long)parameters_in_layers(model, first, last),
                 100 * balance_operations(model, &trainer->context.circumstances, first, last) / all, rank,
                 text_bytes((double)footprint_total(&memory[rank])).text);
        text_fini(&layers);
    }
}

void trainer_describe(const struct trainer *trainer)
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
            log_line("schedule     %s, %d microbatches of %d sequences, recompute %s; bubble %.3f expected",
                     schedule_names[s->pipeline.schedule], s->pipeline.microbatches, s->pipeline.microbatch_size,
                     recompute_names[s->pipeline.recompute], trainer_expected_bubble(trainer));
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
