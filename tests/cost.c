/* The machine and the costs: curves, presets, layers, messages and sums, against numbers worked out here. */
#include "plan/cost.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/machine.h"
#include "tests/tap.h"

/* Settings from a text, to be released. */
static struct settings *settings_from(const char *text)
{
    struct settings *settings = malloc(sizeof *settings);
    struct text messages = {0};
    if (!settings)
        abort();
    settings_init(settings);
    if (settings_parse(settings, text, strlen(text), "x.nml", NULL, 0, &messages) < 0)
        tap_note("%s", text_string(&messages));
    text_fini(&messages);
    return settings;
}

static void release(struct settings *settings)
{
    settings_fini(settings);
    free(settings);
}

static void test_curves(void)
{
    double sizes[] = {1, 10, 1000}, values[] = {2, 20, 80};
    struct settings_reals x = {sizes, 3}, y = {values, 3};
    is_near(machine_curve(&x, &y, 10, 0, 0), 20, 1e-12, "a curve goes through its points");
    is_near(machine_curve(&x, &y, sqrt(10), 0, 0), 2 * sqrt(10), 1e-12, "and straight between them on log axes");
    is_near(machine_curve(&x, &y, 100, 0, 0), 40, 1e-12, "on each stretch");
    is_near(machine_curve(&x, &y, 0.25, 1, 0), 0.5, 1e-12, "before the first point as it is told: in proportion");
    is_near(machine_curve(&x, &y, 0.25, 0, 0), 2, 1e-12, "or constant");
    is_near(machine_curve(&x, &y, 3000, 0, 1), 240, 1e-12, "and so behind the last");
}

static void test_presets(void)
{
    static const struct {
        const char *name;
        double bf16, gbs;
    } cases[] = {{"a100-80gb-sxm", 312, 2039}, {"h100-sxm", 989.5, 3350}, {"h200", 989.5, 4800}};
    for (int i = 0; i < 3; i++) {
        struct settings *s = settings_from("&machine link_gbs = 7 / &run precision = 'bf16' /");
        struct err err = {0};
        snprintf(s->machine.preset, sizeof s->machine.preset, "%s", cases[i].name);
        ok(machine_complete(s, &err) == 0 && machine_check(s, &err) == 0, "%s: known", cases[i].name);
        is_near(machine_peak(s) / 1e12, cases[i].bf16, 1e-9, "%s: dense bf16 Tflop/s", cases[i].name);
        is_near(s->machine.memory_gbs, cases[i].gbs, 1e-9, "%s: GB/s", cases[i].name);
        ok(s->machine.link_gbs == 7 && s->machine.preset[0] == 0, "%s: what is given stands", cases[i].name);
        ok(machine_efficiency(&s->machine, 1e12) > 0.6 && machine_efficiency(&s->machine, 1e8) < 0.05,
           "%s: large products are fast, small ones slow", cases[i].name);
        release(s);
    }
}

/* A timed kind, and what it says of the same layer at other sizes. */
static void test_layers(void)
{
    const char *model = "&model layers = 3 hidden = 64 heads = 4 kv_heads = 4 ffn_hidden = 256 sequence = 32 "
                        "vocabulary = 100 /\n";
    struct text text = {0};
    text_add(&text, "%s&machine peak_gflops = 2 memory_gbs = 1 link_gbs = 1 link_latency_us = 10 /\n", model);
    struct settings *s = settings_from(text_string(&text));
    struct model m;
    struct err err;
    if (model_create(&m, s, &err) < 0)
        tap_note("%s", err.text);
    struct cost_machine machine = cost_machine(s);
    struct circumstances c = {.sequences = 2, .tensor = 1, .device = device_cpu(1), .live = 1};
    int kinds[5];
    ok(cost_kinds(&m, &c, kinds) == 3 && kinds[0] == 0 && kinds[1] == 1 && kinds[2] == 1 && kinds[3] == 1 &&
           kinds[4] == 2,
       "kinds: embedding, blocks, head");

    struct layer_costs costs = m.layers[1].kind->costs(&m.layers[1], &c);
    struct cost_seconds modelled = cost_layer(&machine, &m, 1, 1, &c);
    ok(!modelled.measured && modelled.forward > costs.forward / 2e9,
       "a layer that was not timed: operations and bytes");
    double rows = 64, moved = modelled.forward - costs.forward / 2e9;
    /* at least the weights (12 h^2) and the tensors between the products (3h + h + 4h + 4h) are moved */
    ok(moved > 4e-9 * (12 * 64 * 64 + rows * 12 * 64) && moved < 4e-9 * (24 * 64 * 64 + rows * 48 * 64),
       "the bytes are those of weights and activations");
    struct cost_seconds lookup = cost_layer(&machine, &m, 0, 0, &c);
    ok(lookup.forward < 4e-9 * rows * 64 * 8 && lookup.input == 0, "an embedding touches the rows it looks up");

    c.tensor = 2;
    struct layer_costs halves = m.layers[1].kind->costs(&m.layers[1], &c);
    is_near(halves.forward, costs.forward / 2, 1, "two tensor ranks share the operations");
    is_near(halves.forward_sums.elements, 2 * rows * 64, 0.1, "and sum the rows twice in the forward");
    struct cost_seconds shared = cost_layer(&machine, &m, 1, 1, &c);
    double sum = 2 * 10e-6 + rows * 64 * 4 / 1e9; /* there and back, the bytes of a ring */
    is_near(shared.tensor, 4 * sum, 1e-9, "which takes four sums in all");
    release(s);

    text_add(&text, "&machine /");
    text.length = 0;
    text_add(&text,
             "%s&machine peak_gflops = 2 layer_kind = 1 layer_recompute = 0 layer_forward_gflop = %.12g "
             "layer_input_gflop = %.12g layer_weight_gflop = %.12g layer_forward_ms = 3 layer_input_ms = 5 "
             "layer_weight_ms = 4 matmul_gflop = %.12g %.12g matmul_efficiency = 0.25 0.5 /\n",
             model, costs.forward / 1e9, costs.input_gradient / 1e9, costs.weight_gradient / 1e9, costs.forward / 6e9,
             2 * costs.forward / 6e9);
    s = settings_from(text_string(&text));
    machine = cost_machine(s);
    c.tensor = 1;
    struct cost_seconds timed = cost_layer(&machine, &m, 1, 1, &c);
    ok(timed.measured && fabs(timed.forward - 3e-3) < 1e-9 && fabs(timed.input - 5e-3) < 1e-9 &&
           fabs(timed.weight - 4e-3) < 1e-9,
       "a layer at the shapes that were timed takes the measured times");
    c.sequences = 4;
    is_near(cost_layer(&machine, &m, 1, 1, &c).forward, 3e-3, 1e-9, "twice the rows at twice the efficiency");
    ok(!cost_layer(&machine, &m, 4, 2, &c).measured, "another kind was not timed");
    c.recompute = RECOMPUTE_FULL;
    ok(!cost_layer(&machine, &m, 1, 1, &c).measured, "nor was another mode");
    release(s);
    model_destroy(&m);
    text_fini(&text);
}

static void test_links(void)
{
    struct settings *s = settings_from("&machine peak_gflops = 1 link_latency_us = 10 link_gbs = 2 "
                                       "network_latency_us = 100 network_gbs = 1 optimizer_ns = 3 /");
    struct cost_machine machine = cost_machine(s);
    is_near(cost_message(&machine, 2e6, false), 1e-5 + 1e-3, 1e-12, "a message within a node");
    is_near(cost_message(&machine, 2e6, true), 1e-4 + 2e-3, 1e-12, "and between nodes");
    is_near(cost_sum(&machine, COST_DATA, 4e6, 4, false), 4e-5 + 1.5 * 2e-3, 1e-12, "a sum over 4 ranks");
    ok(cost_sum(&machine, COST_TENSOR, 4e6, 1, false) == 0, "one rank has nothing to sum");
    is_near(cost_reduction(&machine, 1e9, 2, false), 2, 0.01, "a reduction of 4 GB over 2 ranks at 2 GB/s");
    is_near(cost_optimizer(&machine, 1e6), 3e-3, 1e-12, "an optimizer step");
    ok(cost_within_node(&machine, 4) && cost_within_node(&machine, 8) && !cost_within_node(&machine, 5) &&
           !cost_within_node(&machine, 16),
       "groups that do not divide a node straddle two");
    release(s);
    s = settings_from("&machine peak_gflops = 1 message_bytes = 1e3 1e6 message_us = 10 100 message_overlap = 0.75 "
                      "sum_ranks = 2 sum_bytes = 1e3 1e6 data_sum_us = 20 200 tensor_sum_us = 30 300 /");
    machine = cost_machine(s);
    is_near(cost_message(&machine, 1e6, false), 1e-4, 1e-12, "a message that was timed");
    is_near(cost_message(&machine, 4e6, true), 4e-4, 1e-12, "a larger one");
    is_near(cost_stall(&machine, 1e6, false), 0.25e-4, 1e-12, "what of it is not hidden");
    is_near(cost_sum(&machine, COST_DATA, 1e6, 2, false), 2e-4, 1e-12, "sums over data");
    is_near(cost_sum(&machine, COST_TENSOR, 1e6, 4, false), 4.5e-4, 1e-12, "and tensor ranks, more of them");
    release(s);
}

static void refuses(const char *text, const char *words)
{
    struct settings *s = settings_from(text);
    struct err err = {0};
    ok(machine_check(s, &err) < 0 && strstr(err.text, words), "%s: %s", text, err.text);
    release(s);
}

int main(void)
{
    test_curves();
    test_presets();
    test_layers();
    test_links();
    refuses("&machine sum_bytes = 1, 2 /", "sum_bytes has 2 values, but data_sum_us has 0");
    refuses("&machine message_bytes = 2, 2 message_us = 1, 1 /", "message_bytes(2) = 2 is not above");
    refuses("&machine layer_kind = 1 /", "layer_kind has 1 values");
    refuses("&machine sum_bytes = 1 data_sum_us = 1 tensor_sum_us = 1 /", "needs sum_ranks");
    return tap_done();
}
