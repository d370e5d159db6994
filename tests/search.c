/* The closed forms of the search against the forecast, which has them from tables and simulation. */
#include "plan/search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tap.h"

enum {
    SCHEDULES = SCHEDULE_CSV
};

/* How far the closed forms of a schedule are from the forecast at most, over its guesses with M >= 2P. */
struct errors {
    int count;
    double seconds, memory;
};

static double distance(double guess, double truth)
{
    return fabs(guess / truth - 1);
}

static void compare(const struct planning *planning, const struct guess *guess, struct errors *errors)
{
    const struct candidate *c = &guess->candidate;
    struct forecast forecast;
    struct err err;
    if (c->pipeline == 1 || c->microbatches < 2 * c->pipeline || c->chunks > 3 || c->data > 1)
        return;
    if (forecast_make(&forecast, planning, c, &err) < 0) {
        tap_note("%s", err.text);
        return;
    }
    struct errors *own = &errors[c->schedule];
    own->count++;
    own->seconds = fmax(own->seconds, distance(guess->step_seconds, forecast.estimate.step_seconds));
    own->memory = fmax(own->memory, distance(guess->memory, forecast.estimate.memory));
    forecast_fini(&forecast);
}

/* 24 layers in stages that are even but for the ends. `tolerance_v` is for the V schedules, whose forms are fitted:
 * V-Min's is farthest, where recomputation makes the parts unequal. */
static void test_forms(const char *links, double tolerance, double tolerance_v)
{
    struct settings *settings = malloc(sizeof *settings);
    struct text text = {0}, messages = {0};
    struct planning planning;
    struct search search;
    struct errors errors[SCHEDULES] = {{0}};
    struct err err;
    if (!settings)
        abort();
    settings_init(settings);
    text_add(
        &text,
        "&model layers = 24 hidden = 256 heads = 4 kv_heads = 4 ffn_hidden = 1024 sequence = 64 vocabulary = 64 /\n"
        "&pipeline global_batch = 48 / &plan devices = 4 / &machine peak_gflops = 100 %s /\n",
        links);
    if (settings_parse(settings, text_string(&text), text.length, "x.nml", NULL, 0, &messages) < 0 ||
        planning_init(&planning, settings, device_cpu(1), NULL, &err) < 0)
        tap_note("%s%s", text_string(&messages), err.text);
    search_run(&search, &planning, INFINITY);
    for (int64_t i = 0; i < search.count; i++)
        compare(&planning, &search.guesses[i], errors);
    for (int s = 0; s < SCHEDULES; s++) {
        bool v = s == SCHEDULE_ZB_V || s == SCHEDULE_V_HALF || s == SCHEDULE_V_MIN;
        double most = v ? tolerance_v : tolerance;
        ok(errors[s].count > 5 && errors[s].seconds < most, "%s%s: seconds within %.0f%% (%.1f%%) over %d",
           schedule_names[s], links[0] ? ", slow links" : "", 100 * most, 100 * errors[s].seconds, errors[s].count);
        ok(errors[s].memory < 0.25, "%s: memory within 25%% (%.1f%%)", schedule_names[s], 100 * errors[s].memory);
    }
    search_fini(&search);
    planning_fini(&planning);
    settings_fini(settings);
    free(settings);
    text_fini(&text);
    text_fini(&messages);
}

int main(void)
{
    test_forms("", 0.02, 0.22);
    test_forms("link_gbs = 0.5 link_latency_us = 50", 0.04, 0.25);
    return tap_done();
}
