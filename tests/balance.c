/* Cuts of GPT-2 models by memory, cost and under a memory limit against trying all cuts; what ranks hold under a cut
 * against the sizes of the stages and parameters that the trainer makes. */
#include "plan/balance.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/parameters.h"
#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "plan/footprint.h"
#include "tests/tap.h"

enum {
    MOST_STAGES = 8
};

/* Everything that a cut depends on. */
struct setting {
    struct settings settings;
    struct model model;
    struct circumstances circumstances;
    struct schedule *schedule;
    struct validation *validation;
    struct layout layout;
    struct footprint_sizes *sizes;
};

/* A model of so many blocks with a vocabulary that outweighs several of them, under a schedule. */
static void set_up(struct setting *x, const char *name, int ranks, int chunks, int microbatches, int layers)
{
    struct err err = {""};
    settings_init(&x->settings);
    x->settings.model.layers = layers;
    x->settings.model.hidden = 24;
    x->settings.model.heads = 4;
    x->settings.model.kv_heads = 4;
    x->settings.model.ffn_hidden = 96;
    x->settings.model.sequence = 17;
    x->settings.model.vocabulary = 997;
    x->settings.run.precision = chunks > 1 ? PRECISION_BF16 : PRECISION_FP32;
    x->settings.pipeline.recompute = layers % 2 ? RECOMPUTE_NONE : RECOMPUTE_FULL;
    if (model_create(&x->model, &x->settings, &err) < 0)
        tap_note("%s", err.text);
    x->circumstances = (struct circumstances){.sequences = 3,
                                              .tensor = 2,
                                              .t = 1,
                                              .recompute = x->settings.pipeline.recompute,
                                              .device = device_cpu(1),
                                              .live = 1};
    struct schedule *computations = generate_schedule(name, ranks, chunks, microbatches, &err);
    x->schedule = lower_schedule(computations, &err);
    x->validation = validate_schedule(x->schedule, SEND_SLOTS, &err);
    schedule_destroy(computations);
    x->layout = (struct layout){
        .model = &x->model, .circumstances = x->circumstances, .data = 1, .train = {x->schedule, x->validation}};
    struct layout first = x->layout;
    first.circumstances.t = 0;
    x->sizes = footprint_sizes_create(&first);
}

static void tear_down(struct setting *x)
{
    footprint_sizes_destroy(x->sizes);
    validate_destroy(x->validation);
    schedule_destroy(x->schedule);
    model_destroy(&x->model);
    settings_fini(&x->settings);
}

static int cut(struct setting *x, enum balance_choice balance, int *first_layer, struct err *err)
{
    x->settings.pipeline.balance = balance;
    return balance_stages(&x->settings, &x->layout, first_layer, err);
}

static size_t largest(const struct setting *x, const int *first_layer)
{
    size_t most = 0;
    for (int rank = 0; rank < x->schedule->ranks; rank++) {
        struct footprint memory = footprint_of_rank(x->sizes, first_layer, rank, NULL, NULL);
        most = footprint_total(&memory) > most ? footprint_total(&memory) : most;
    }
    return most;
}

/* The next cut in ascending order; false after the last. */
static bool next_cut(int *cuts, int stages, int layers)
{
    int stage = stages - 1;
    while (stage > 0 && cuts[stage] == layers - stages + stage)
        stage--;
    if (stage <= 0)
        return false;
    cuts[stage]++;
    for (int behind = stage + 1; behind < stages; behind++)
        cuts[behind] = cuts[behind - 1] + 1;
    return true;
}

static void first_cut(int *cuts, int stages, int layers)
{
    for (int stage = 0; stage < stages; stage++)
        cuts[stage] = stage;
    cuts[stages] = layers;
}

/* What a rank holds besides scratch of sums, put together from its parameters and stages alone. */
static struct footprint assembled(const struct setting *x, const int *first_layer, int rank)
{
    struct slice slices[MOST_STAGES];
    struct footprint memory = {0};
    for (int chunk = 0; chunk < x->schedule->chunks; chunk++) {
        int stage = schedule_stage_of(x->schedule, rank, chunk);
        struct circumstances circumstances = x->circumstances;
        circumstances.t = 0;
        circumstances.live = x->validation->peak_sets[stage];
        slices[chunk] = (struct slice){stage, first_layer[stage], first_layer[stage + 1]};
        struct stage *own =
            stage_create(&x->model, slices[chunk], &circumstances, footprint_splits(x->schedule, stage), NULL, 0);
        struct stage_slots slots = footprint_slots(x->schedule, x->validation, stage);
        footprint_add_stage(&memory, &slots, stage_bytes(own));
        if (stage_bytes(own)->workspace > memory.workspace)
            memory.workspace = stage_bytes(own)->workspace;
        if (stage_has_loss(own))
            memory.buffers += ((size_t)x->schedule->microbatches * 3 * 17 * sizeof(float) + 63) / 64 * 64;
        stage_destroy(own);
    }
    struct parameters parameters;
    parameters_create(&parameters, &x->model, slices, x->schedule->chunks, 2, 0);
    memory.weights = (size_t)parameters.weight_elements * sizeof(float);
    memory.computed = parameters.computed_bytes;
    memory.gradients = (size_t)parameters.gradient_elements * sizeof(float);
    memory.moments = 2 * memory.weights;
    parameters_destroy(&parameters);
    memory.arena = memory.activations + memory.buffers;
    return memory;
}

static struct footprint without_sums(struct footprint memory)
{
    memory.buffers -= memory.queue_scratch + memory.sum_scratch + memory.tensor_scratch;
    memory.queue_scratch = memory.sum_scratch = memory.tensor_scratch = 0;
    return memory;
}

static void by_memory(const char *name, int ranks, int chunks, int microbatches, int layers)
{
    struct setting x;
    struct err err = {""};
    int cuts[MOST_STAGES + 1], found[MOST_STAGES + 1], by_cost[MOST_STAGES + 1], wrong = 0;
    size_t least = SIZE_MAX;
    set_up(&x, name, ranks, chunks, microbatches, layers);
    int stages = x.schedule->stages;
    first_cut(cuts, stages, x.model.layer_count);
    do {
        size_t most = largest(&x, cuts);
        least = most < least ? most : least;
        for (int rank = 0; rank < ranks; rank++) {
            struct footprint memory = footprint_of_rank(x.sizes, cuts, rank, NULL, NULL);
            struct footprint expected = assembled(&x, cuts, rank);
            memory = without_sums(memory);
            wrong += memcmp(&expected, &memory, sizeof memory) != 0;
        }
    } while (next_cut(cuts, stages, x.model.layer_count));
    ok(wrong == 0, "%s, %d x %d: what ranks hold under every cut", name, ranks, chunks);
    bool made = cut(&x, BALANCE_MEMORY, found, &err) == 0;
    made &= cut(&x, BALANCE_COST, by_cost, &err) == 0;
    ok(made && (chunks > 1 || largest(&x, found) == least), "%s, %d x %d: the largest rank holds %zu, at best %zu %s",
       name, ranks, chunks, largest(&x, found), least, err.text);
    ok((double)largest(&x, found) < 1.05 * (double)least, "%s, %d x %d: within 5%% of the best", name, ranks, chunks);
    ok(largest(&x, found) <= largest(&x, by_cost), "%s, %d x %d: not more than when balanced by cost", name, ranks,
       chunks);

    /* a limit between the two, and one below what is possible */
    x.settings.plan.memory_gib = (double)largest(&x, found) / (1 << 30);
    made = cut(&x, BALANCE_COST, cuts, &err) == 0;
    ok(made && largest(&x, cuts) <= largest(&x, found), "%s, %d x %d: by cost within a limit %s", name, ranks, chunks,
       err.text);
    x.settings.plan.memory_gib = ((double)least - 1) / (1 << 30);
    ok(cut(&x, BALANCE_COST, cuts, &err) < 0 && strstr(err.text, "memory_gib") && strstr(err.text, "holds"),
       "%s, %d x %d: a limit that cannot be kept: %s", name, ranks, chunks, err.text);
    tear_down(&x);
}

/* Operations of the ranks with several chunks; the simulator's choice between the two cuts. */
static void by_cost(const char *name, int ranks, int chunks, int microbatches, int layers)
{
    struct setting x;
    struct err err = {""};
    int cuts[MOST_STAGES + 1], found[MOST_STAGES + 1], by_stage[MOST_STAGES + 1];
    double cost[64], least = INFINITY;
    set_up(&x, name, ranks, chunks, microbatches, layers);
    int stages = x.schedule->stages;
    for (int layer = 0; layer < x.model.layer_count; layer++)
        cost[layer] = balance_operations(&x.model, &x.circumstances, layer, layer + 1);
    struct partition_problem problem = {.layers = x.model.layer_count, .stages = stages, .cost = cost};
    partition_balanced(&problem, by_stage, &err);
    ok(cut(&x, BALANCE_COST, found, &err) == 0, "%s: a cut by cost %s", name, err.text);
    first_cut(cuts, stages, x.model.layer_count);
    do {
        struct simulation *simulation = balance_simulate(&x.model, &x.circumstances, x.schedule, cuts, &err);
        least = fmin(least, simulation->makespan);
        simulate_destroy(simulation);
    } while (next_cut(cuts, stages, x.model.layer_count));
    struct simulation *mine = balance_simulate(&x.model, &x.circumstances, x.schedule, found, &err);
    struct simulation *other = balance_simulate(&x.model, &x.circumstances, x.schedule, by_stage, &err);
    ok(mine->makespan <= other->makespan, "%s: not slower than balanced stages", name);
    ok(mine->makespan < 1.12 * least, "%s: %.3f times the fastest cut", name, mine->makespan / least);
    simulate_destroy(mine);
    simulate_destroy(other);

    int again[MOST_STAGES + 1];
    x.layout.circumstances.t = 0;
    ok(cut(&x, BALANCE_COST, again, &err) == 0 && memcmp(again, found, (size_t)(stages + 1) * sizeof *found) == 0,
       "%s: the same on every tensor rank", name);
    tear_down(&x);
}

/* On a slow link a stage in the middle, which has twice the messages, gets less. */
static void messages(void)
{
    struct setting x;
    struct err err = {""};
    int free_of[MOST_STAGES + 1], slow[MOST_STAGES + 1];
    set_up(&x, "1f1b", 3, 1, 6, 21);
    cut(&x, BALANCE_COST, free_of, &err);
    x.settings.machine.link_gbs = 1;
    cut(&x, BALANCE_COST, slow, &err);
    ok(memcmp(free_of, slow, 4 * sizeof *slow) == 0, "a link's speed alone says nothing");
    /* one message takes as long as two blocks */
    double seconds = 3 * 17 * 24 * sizeof(float) / 1e9;
    x.settings.machine.peak_gflops = 1e-9 * balance_operations(&x.model, &x.circumstances, 1, 2) / seconds;
    bool made = cut(&x, BALANCE_COST, slow, &err) == 0;
    ok(made && slow[2] - slow[1] < free_of[2] - free_of[1],
       "with that of matmuls the middle stage gets %d layers in place of %d", slow[2] - slow[1],
       free_of[2] - free_of[1]);
    tear_down(&x);
}

int main(void)
{
    by_memory("gpipe", 3, 1, 7, 8);
    by_memory("1f1b", 4, 1, 7, 9);
    by_memory("1f1b", 1, 1, 3, 4);
    by_memory("zb-h1", 3, 1, 7, 9);
    by_memory("eager-1f1b", 4, 1, 7, 8);
    by_memory("interleaved", 2, 2, 5, 9);
    by_memory("interleaved", 3, 2, 6, 8);
    by_memory("looped-bfs", 2, 3, 4, 9);
    by_memory("zb-v", 2, 2, 5, 9);
    by_memory("v-half", 3, 2, 6, 9);
    by_memory("v-min", 3, 2, 6, 8);
    by_cost("1f1b", 4, 1, 8, 11);
    by_cost("interleaved", 3, 2, 6, 9);
    by_cost("looped-bfs", 2, 3, 4, 9);
    by_cost("zb-v", 3, 2, 8, 9);
    by_cost("v-half", 3, 2, 8, 9);
    messages();
    return tap_done();
}
