#include "plan/balance.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/parameters.h"
#include "pipeline/partition.h"
#include "plan/cost.h"

double balance_operations(const struct model *model, const struct circumstances *circumstances, int first, int last)
{
    double sum = 0;
    for (int i = first; i < last; i++) {
        struct layer_costs costs = model->layers[i].kind->costs(&model->layers[i], circumstances);
        sum += costs.forward + costs.input_gradient + costs.weight_gradient;
    }
    return sum;
}

/* Of each layer into [layers]: the time where the machine is known, else the operations for seconds. */
static void layer_seconds(const struct cost_machine *machine, const struct model *model,
                          const struct circumstances *circumstances, struct cost_seconds *seconds)
{
    int *kinds = allocate((size_t)model->layer_count, sizeof *kinds);
    if (machine->known)
        cost_kinds(model, circumstances, kinds);
    for (int i = 0; i < model->layer_count; i++) {
        struct layer_costs costs = model->layers[i].kind->costs(&model->layers[i], circumstances);
        seconds[i] = machine->known ? cost_layer(machine, model, i, kinds[i], circumstances)
                                    : (struct cost_seconds){.forward = costs.forward,
                                                            .input = costs.input_gradient,
                                                            .weight = costs.weight_gradient};
    }
    free(kinds);
}

/* The schedule under a cut, with free messages. */
static struct simulation *simulate_cut(const struct schedule *schedule, const int *first_layer,
                                       const struct cost_seconds *seconds, struct err *err)
{
    size_t stages = (size_t)schedule->stages;
    double *forward = allocate(3 * stages, sizeof *forward), *input = forward + stages, *weight = input + stages;
    for (int stage = 0; stage < schedule->stages; stage++)
        for (int layer = first_layer[stage]; layer < first_layer[stage + 1]; layer++) {
            forward[stage] += seconds[layer].forward;
            input[stage] += seconds[layer].input;
            weight[stage] += seconds[layer].weight;
        }
    struct simulate_costs costs = {.forward = forward, .input = input, .weight = weight};
    struct simulation *simulation = simulate_schedule(schedule, &costs, err);
    free(forward);
    return simulation;
}

struct simulation *balance_simulate(const struct model *model, const struct circumstances *circumstances,
                                    const struct schedule *schedule, const int *first_layer, struct err *err)
{
    struct cost_seconds *seconds = allocate((size_t)model->layer_count, sizeof *seconds);
    layer_seconds(&(struct cost_machine){.known = false}, model, circumstances, seconds);
    struct simulation *simulation = simulate_cut(schedule, first_layer, seconds, err);
    free(seconds);
    return simulation;
}

static int64_t bytes_of(void *sizes, const struct partition_slice *slices, int count)
{
    struct footprint memory = footprint_of_slices(sizes, slices, count);
    return (int64_t)footprint_total(&memory);
}

/* The time of an activation and its gradient across the cut before each layer, into [layers]. */
static void message_seconds(const struct layout *layout, const struct schedule *schedule,
                            const struct cost_machine *machine, double *seconds)
{
    const struct model *model = layout->model;
    const struct circumstances *circumstances = &layout->circumstances;
    const int64_t ranks = (int64_t)schedule->ranks * layout->data * circumstances->tensor;
    for (int layer = 1; layer < model->layer_count; layer++) {
        const struct declaration *before = &model->declarations[layer - 1];
        double bytes = 0;
        for (int i = 0; i < before->after_count; i++)
            bytes += (double)boundary_bytes(&before->after[i], circumstances, circumstances->sequences);
        seconds[layer] = 2 * cost_message(machine, bytes, !cost_within_node(machine, ranks));
    }
}

/* The largest number of bytes that a rank holds under a cut. */
static int64_t largest_bytes(const struct partition_problem *problem, int ranks, const int *first_layer)
{
    int64_t largest = 0;
    for (int rank = 0; rank < ranks; rank++) {
        struct footprint memory = footprint_of_rank(problem->context, first_layer, rank, NULL, NULL);
        largest = (int64_t)footprint_total(&memory) > largest ? (int64_t)footprint_total(&memory) : largest;
    }
    return largest;
}

/* Where nothing was found that fits, takes the cut with the least memory, or says how close it comes. */
static int take_least(const struct settings *settings, const struct partition_problem *problem, int ranks,
                      int *first_layer, struct err *err)
{
    struct partition_problem least = *problem;
    least.load = problem->bytes;
    least.bytes = NULL;
    if (partition_balanced(&least, first_layer, err) < 0)
        return -1;
    int64_t most = largest_bytes(problem, ranks, first_layer);
    if (most <= problem->capacity)
        return 0;
    return err_set(err,
                   "no cut of %d layers into %d stages is within &plan memory_gib = %g: the best by memory has a rank "
                   "that holds %s",
                   problem->layers, problem->stages, settings->plan.memory_gib, text_bytes((double)most).text);
}

/* Of the cut that is best for ranks, in first_layer, and the one that is best for stages, which keep each other waiting
 * where they differ, takes the faster one. */
static int consider_stages(const struct schedule *schedule, const struct partition_problem *problem,
                           const struct cost_seconds *seconds, int *first_layer, struct err *err)
{
    size_t bytes = ((size_t)schedule->stages + 1) * sizeof *first_layer;
    int *other = allocate(1, bytes);
    struct partition_problem by_stage = *problem;
    by_stage.rank_of = NULL;
    by_stage.bytes = NULL;
    int result = partition_balanced(&by_stage, other, err);
    if (result == 0 && (!problem->bytes || largest_bytes(problem, schedule->ranks, other) <= problem->capacity)) {
        struct simulation *mine = simulate_cut(schedule, first_layer, seconds, err);
        struct simulation *theirs = simulate_cut(schedule, other, seconds, err);
        result = mine && theirs ? 0 : -1;
        if (result == 0 && theirs->makespan < mine->makespan)
            memcpy(first_layer, other, bytes);
        simulate_destroy(mine);
        simulate_destroy(theirs);
    }
    free(other);
    return result;
}

/* The cut by cost, parameters or memory. */
static int balance_loads(const struct settings *settings, const struct layout *layout, const struct schedule *schedule,
                         struct footprint_sizes *sizes, int *first_layer, struct err *err)
{
    const struct model *model = layout->model;
    enum balance_choice balance = settings->pipeline.balance;
    size_t layers = (size_t)model->layer_count;
    double *cost = allocate(layers, sizeof *cost), *cut_cost = allocate(layers, sizeof *cut_cost);
    int *rank_of = allocate((size_t)schedule->stages, sizeof *rank_of);
    for (int stage = 0; stage < schedule->stages; stage++)
        rank_of[stage] = schedule_rank_of(schedule, stage);
    const struct cost_machine machine = cost_machine(settings);
    struct cost_seconds *seconds = allocate(layers, sizeof *seconds);
    layer_seconds(&machine, model, &layout->circumstances, seconds);
    for (int i = 0; i < model->layer_count; i++)
        cost[i] = balance == BALANCE_COST ? seconds[i].forward + seconds[i].input + seconds[i].weight
                                          : (double)parameters_in_layers(model, i, i + 1);
    bool messages = balance == BALANCE_COST && machine.known;
    if (messages)
        message_seconds(layout, schedule, &machine, cut_cost);
    bool limited = settings->plan.memory_gib > 0;
    struct partition_problem problem = {.layers = model->layer_count,
                                        .stages = schedule->stages,
                                        .cost = cost,
                                        .cut_cost = messages ? cut_cost : NULL,
                                        .load = balance == BALANCE_MEMORY ? bytes_of : NULL,
                                        .rank_of = schedule->chunks > 1 ? rank_of : NULL,
                                        .bytes = limited ? bytes_of : NULL,
                                        .capacity = (int64_t)(settings->plan.memory_gib * (1 << 30)),
                                        .context = sizes};
    int result = partition_balanced(&problem, first_layer, err);
    if (result < 0 && limited)
        result = take_least(settings, &problem, schedule->ranks, first_layer, err);
    if (result == 0 && problem.rank_of && balance == BALANCE_COST)
        result = consider_stages(schedule, &problem, seconds, first_layer, err);
    free(cost);
    free(cut_cost);
    free(seconds);
    free(rank_of);
    return result;
}

int balance_stages(const struct settings *settings, const struct layout *layout, int *first_layer, struct err *err)
{
    const struct model *model = layout->model;
    const struct schedule *schedule = layout->train.schedule ? layout->train.schedule : layout->evaluate.schedule;
    int blocks = model_blocks(model, 0, model->layer_count);
    if (settings->pipeline.balance == BALANCE_UNIFORM)
        return partition_uniform(blocks, schedule->stages, first_layer, err);
    if (settings->pipeline.balance == BALANCE_EXPLICIT)
        return partition_explicit(blocks, schedule->stages, settings->pipeline.stage_layers.items,
                                  settings->pipeline.stage_layers.count, first_layer, err);
    struct layout first = *layout; /* tensor rank 0 has the largest share; all must come to one cut */
    first.circumstances.t = 0;
    struct footprint_sizes *sizes = footprint_sizes_create(&first);
    int result = balance_loads(settings, &first, schedule, sizes, first_layer, err);
    footprint_sizes_destroy(sizes);
    return result;
}
