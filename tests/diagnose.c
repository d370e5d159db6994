/* The diagnosis from plain numbers. */
#include "plan/diagnose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tap.h"

enum {
    LAYERS = 14
};

static double seconds[LAYERS], boundaries[LAYERS];
static double sizes[] = {1, 10}, efficiencies[] = {0.2, 0.8};
static struct machine_settings machine;

/* 12 blocks of 1 s between an embedding and a head of nothing, on 4 ranks: nothing is wrong. */
static struct diagnose_input good(const int *first_layer)
{
    for (int i = 0; i < LAYERS; i++) {
        seconds[i] = i > 0 && i < LAYERS - 1;
        boundaries[i] = i < LAYERS - 1 ? 1e6 : 0;
    }
    return (struct diagnose_input){.ranks = 4,
                                   .chunks = 1,
                                   .microbatches = 60,
                                   .microbatch_size = 2,
                                   .schedule = SCHEDULE_1F1B,
                                   .layers = LAYERS,
                                   .layer_seconds = seconds,
                                   .first_layer = first_layer,
                                   .boundary_bytes = boundaries,
                                   .step_seconds = 189,
                                   .bubble = 1 - 180.0 / 189,
                                   .memory = 1e9,
                                   .memory_limit = INFINITY};
}

static const struct finding *find(const struct finding *findings, int count, enum diagnose_what what)
{
    for (int i = 0; i < count; i++)
        if (findings[i].what == what)
            return &findings[i];
    return NULL;
}

/* The finding of that kind, or one that is empty. */
static struct finding one(const struct diagnose_input *input, enum diagnose_what what)
{
    struct finding findings[DIAGNOSE_KINDS];
    int count = diagnose(input, findings);
    const struct finding *found = find(findings, count, what);
    return found ? *found : (struct finding){.what = DIAGNOSE_KINDS};
}

static void test_balance(void)
{
    const int even[] = {0, 4, 7, 10, 14}, uneven[] = {0, 6, 8, 10, 14};
    struct diagnose_input in = good(even);
    struct finding findings[DIAGNOSE_KINDS];
    ok(diagnose(&in, findings) == 0, "nothing is found where nothing is wrong");
    in = good(uneven);
    in.step_seconds = 60 * 5 + 7;
    struct finding found = one(&in, DIAGNOSE_BALANCE);
    is_near(found.figure, 5.0 / 3 - 1, 1e-12, "a heavy stage: by how much");
    is_text(found.change, "balance = 'explicit'  stage_layers = 3, 3, 3, 3", "the cut that mends it");
    is_near(found.gain, 120 / 307.0, 1e-12, "and what it saves");
    ok(strstr(found.cause, "rank 0"), "which rank: %s", found.cause);
    double costs[LAYERS];
    for (int i = 0; i < LAYERS; i++)
        costs[i] = i > 0 && i < LAYERS - 1 ? 5 : 0;
    in.layer_costs = costs;
    found = one(&in, DIAGNOSE_BALANCE);
    is_text(found.change, "balance = 'explicit'  stage_layers = 3, 3, 3, 3", "a cut, where no rank is to blame");
    in.first_layer = even;
    for (int i = 4; i < 7; i++)
        seconds[i] = 1.5; /* rank 1 takes half as long again as the others for as many layers */
    found = one(&in, DIAGNOSE_BALANCE);
    is_text(found.change, "another node, or other cores, for pipeline rank 1", "a slow rank is named");
    ok(found.gain == 0 && strstr(found.cause, "50% longer for its layers"), "and told how slow: %s", found.cause);
    in.layer_costs = NULL;
    for (int i = 4; i < 7; i++)
        seconds[i] = 1;
    seconds[LAYERS - 1] = 9;
    in.step_seconds = 1000;
    const int best[] = {0, 5, 9, 13, 14};
    in.first_layer = best;
    found = one(&in, DIAGNOSE_BALANCE);
    ok(found.gain == 0 && strstr(found.cause, "the heaviest layer, number 13"), "a layer too heavy: %s", found.cause);
}

static void test_microbatches(void)
{
    const int even[] = {0, 4, 7, 10, 14};
    struct diagnose_input in = good(even);
    in.microbatches = 4;
    in.microbatch_size = 8;
    in.bubble = 3.0 / 7;
    in.step_seconds = 21;
    struct finding found = one(&in, DIAGNOSE_FEW_MICROBATCHES);
    is_text(found.change, "microbatch_size = 1  microbatches = 32", "too few microbatches: the same sequences in more");
    is_near(found.gain, 1 - (32 + 3) / 8.0 / 7, 1e-12, "what that saves");
    in.microbatch_size = 1;
    found = one(&in, DIAGNOSE_FEW_MICROBATCHES);
    ok(strstr(found.change, "microbatches = 57 "), "or more sequences: %s", found.change);

    machine = (struct machine_settings){.matmul_gflop = {sizes, 2}, .matmul_efficiency = {efficiencies, 2}};
    in = good(even);
    in.machine = &machine;
    in.product_gflop = 1;
    in.microbatch_size = 1;
    ok(one(&in, DIAGNOSE_MANY_MICROBATCHES).what == DIAGNOSE_MANY_MICROBATCHES, "too many: small products are slow");
    found = one(&in, DIAGNOSE_MANY_MICROBATCHES);
    ok(strstr(found.change, "microbatch_size = 6") || strstr(found.change, "microbatch_size = 5") ||
           strstr(found.change, "microbatch_size = 10"),
       "larger ones: %s", found.change);
    in.product_gflop = 20;
    ok(one(&in, DIAGNOSE_MANY_MICROBATCHES).what == DIAGNOSE_KINDS, "large products are not complained of");
}

static void test_traffic(void)
{
    const int even[] = {0, 4, 7, 10, 14};
    struct diagnose_input in = good(even);
    in.message_seconds = 40;
    struct finding found = one(&in, DIAGNOSE_TRAFFIC);
    is_near(found.figure, 40 / 189.0, 1e-12, "messages that lengthen the step");
    ok(strstr(found.cause, "343 MiB") && strstr(found.change, "eager-1f1b"), "%s; %s", found.cause, found.change);
    boundaries[4] = 1e5;
    found = one(&in, DIAGNOSE_TRAFFIC);
    ok(strstr(found.change, "a cut before layer 5 instead of 4"), "a narrower place to cut: %s", found.change);
}

static void test_memory(void)
{
    const int even[] = {0, 4, 7, 10, 14};
    const struct diagnose_option options[] = {{"recompute = 'selective'", 8e8, 200},
                                              {"recompute = 'full'", 5e8, 250},
                                              {"schedule = 'v-min'  chunks = 2", 6e8, 220}};
    struct diagnose_input in = good(even);
    in.memory_limit = 7e8;
    in.activations = 6e8;
    in.live = 4;
    in.options = options;
    in.option_count = 3;
    in.message_seconds = 40;
    struct finding findings[DIAGNOSE_KINDS];
    ok(diagnose(&in, findings) == 2 && findings[0].what == DIAGNOSE_MEMORY, "what does not fit comes first");
    is_near(findings[0].figure, 3e8, 1, "what is missing");
    ok(strstr(findings[0].change, "v-min"), "the fastest choice that fits: %s", findings[0].change);
    in.memory_limit = 1e8;
    ok(strstr(one(&in, DIAGNOSE_MEMORY).change, "which is not enough"), "or what comes nearest");
}

int main(void)
{
    test_balance();
    test_microbatches();
    test_traffic();
    test_memory();
    return tap_done();
}
