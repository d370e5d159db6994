#include "plan/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/parameters.h"
#include "pipeline/simulate.h"

/* A drawing that is wider is not read. */
#define DRAWN_RANKS 16
#define DRAWN_MICROBATCHES 12
#define DRAWN_STAGES 32
#define DRAWN_COLUMNS 3 /* of one unit of time */

/* Lines of a long list that are shown at its start and its end. */
#define SHOWN 12

void report_machine(const struct planning *planning, struct text *out)
{
    const struct machine_settings *m = &planning->settings->machine;
    text_add(out, "machine      %s", m->name[0] ? m->name : "not named");
    if (!planning->machine.known) {
        text_add(out,
                 "\n             no peak in %s is known: times are those of a device of 1 Tflop/s that reaches it; "
                 "bubbles, shares and memory hold\n",
                 precision_names[planning->settings->run.precision]);
        return;
    }
    text_add(out, "; %.4g Tflop/s in %s", planning->machine.peak / 1e12,
             precision_names[planning->settings->run.precision]);
    if (m->memory_gbs > 0)
        text_add(out, ", memory %.4g GB/s", m->memory_gbs);
    text_add(out, ", links %s", m->link_gbs > 0 || m->message_bytes.count > 0 ? "" : "unknown, taken for infinite");
    if (m->link_gbs > 0)
        text_add(out, "%.4g GB/s", m->link_gbs);
    if (m->network_gbs > 0)
        text_add(out, " in a node of %d, %.4g GB/s between nodes", planning->machine.per_node, m->network_gbs);
    text_add(out, "\n");
}

static void add_candidate(const struct candidate *c, struct text *out)
{
    text_add(out, "%5d x %4d x %3d  %-12s %2d  %5d x %-3d %-10s%s", c->pipeline, c->data, c->tensor,
             schedule_names[c->schedule], c->chunks, c->microbatches, c->microbatch_size, recompute_names[c->recompute],
             c->sharded ? " sharded" : "");
}

static void add_estimate(const struct estimate *e, struct text *out)
{
    char mfu[16] = "-";
    if (!isnan(e->mfu))
        snprintf(mfu, sizeof mfu, "%.3f", e->mfu);
    text_add(out, " %9s %11.4g %6s %6.3f  %5.1f %5.1f %5.1f  %9s\n", text_duration(e->step_seconds).text,
             e->tokens_per_second, mfu, e->bubble, 100 * e->pipeline_share, 100 * e->tensor_share, 100 * e->data_share,
             text_bytes(e->memory).text);
}

static const char heading[] =
    "    P x    D x   T  schedule      V      M x size recompute       step    tokens/s    mfu bubble   time in %: "
    "     memory\n"
    "                                                                                            pipe  tens  data\n";

static void add_memory(const struct footprint *m, struct text *out)
{
    text_add(out, "weights %s, gradients %s, moments %s, activations %s, buffers %s, workspace %s",
             text_bytes((double)(m->weights + m->computed)).text, text_bytes((double)m->gradients).text,
             text_bytes((double)m->moments).text, text_bytes((double)m->activations).text,
             text_bytes((double)m->buffers).text, text_bytes((double)m->workspace).text);
}

static void add_stages(const struct planning *planning, const struct forecast *forecast, struct text *out)
{
    double all = 0;
    for (int s = 0; s < forecast->stages; s++)
        all += forecast->stage[s].forward + forecast->stage[s].input + forecast->stage[s].weight;
    for (int s = 0; s < forecast->stages; s++) {
        const struct stage_seconds *t = &forecast->stage[s];
        int first = forecast->first_layer[s], last = forecast->first_layer[s + 1];
        int blocks = model_blocks(&planning->model, first, last);
        if (s == SHOWN && forecast->stages > 2 * SHOWN) {
            text_add(out, "             ... %d stages ...\n", forecast->stages - 2 * SHOWN);
            s = forecast->stages - SHOWN - 1;
            continue;
        }
        text_add(out,
                 "stage %-6d %s%d block%s%s: forward %s, input gradient %s, weight gradient %s; %.1f%% of the work\n",
                 s, first == 0 ? "embedding, " : "", blocks, blocks == 1 ? "" : "s",
                 last == planning->model.layer_count ? ", head" : "", text_duration(t->forward).text,
                 text_duration(t->input).text, text_duration(t->weight).text,
                 all > 0 ? 100 * (t->forward + t->input + t->weight) / all : 0);
    }
}

void report_findings(const struct finding *findings, int count, struct text *out)
{
    for (int i = 0; i < count; i++) {
        const struct finding *finding = &findings[i];
        text_add(out, "finding      %s: %s\n", diagnose_names[finding->what], finding->cause);
        if (finding->change[0])
            text_add(out, "             change: %s", finding->change);
        if (finding->gain > 0)
            text_add(out, "; saves about %.0f%% of the step", 100 * finding->gain);
        text_add(out, finding->change[0] || finding->gain > 0 ? "\n" : "");
    }
    if (count == 0)
        text_add(out, "finding      none: stages, microbatches, messages and memory are as they should be\n");
}

void report_forecast(const struct planning *planning, const struct forecast *forecast, const struct finding *findings,
                     int finding_count, struct text *out)
{
    const struct candidate *c = &forecast->candidate;
    const struct estimate *e = &forecast->estimate;
    text_add(out, "%s", heading);
    add_candidate(c, out);
    add_estimate(e, out);
    text_add(out,
             "step         %s until the last backward, messages lengthen it by %s; reduction over data ranks %s, %s of "
             "it hidden; optimizer %.1f%%\n",
             text_duration(forecast->makespan).text,
             text_duration(fmax(0, forecast->makespan - forecast->without_messages)).text,
             text_duration(forecast->reduction).text, text_duration(forecast->hidden).text, 100 * e->optimizer_share);
    if (planning->machine.known)
        text_add(out, "times        of layers: %s\n",
                 forecast->measured ? "measured, scaled where their sizes differ from the measured ones"
                                    : "from operations and bytes, the efficiency's curve and the memory's bandwidth");
    add_stages(planning, forecast, out);
    for (int p = 0; p < c->pipeline; p++) {
        if (p == SHOWN && c->pipeline > 2 * SHOWN) {
            text_add(out, "             ... %d ranks ...\n", c->pipeline - 2 * SHOWN);
            p = c->pipeline - SHOWN - 1;
            continue;
        }
        text_add(out, "rank p%-6d %s: ", p, text_bytes((double)footprint_total(&forecast->memory[p])).text);
        add_memory(&forecast->memory[p], out);
        text_add(out, "\n");
    }
    report_findings(findings, finding_count, out);
}

void report_measured(const struct measured_step *step, const struct measured *measured, int64_t number,
                     struct text *out)
{
    const int ranks = step->schedule->ranks;
    struct simulate_rank sum = {0};
    for (int rank = 0; rank < ranks; rank++) {
        sum.busy += measured->ranks[rank].busy;
        sum.fill += measured->ranks[rank].fill;
        sum.drain += measured->ranks[rank].drain;
        sum.imbalance += measured->ranks[rank].imbalance;
        sum.communication += measured->ranks[rank].communication;
    }
    const double percent = 100 / (ranks * measured->makespan);
    text_add(out,
             "step %-8lld %s: the pipeline computes %.1f%% of the time, fills for %.1f%%, drains for %.1f%%, waits for "
             "slower stages %.1f%% and for messages %.1f%%; the first microbatch took %s to its loss\n",
             (long long)number, text_duration(step->seconds).text, percent * sum.busy, percent * sum.fill,
             percent * sum.drain, percent * sum.imbalance, percent * sum.communication,
             text_duration(measured->latency).text);
}

int report_timeline(const struct schedule *schedule, struct text *out, struct err *err)
{
    if (schedule->ranks > DRAWN_RANKS || schedule->microbatches > DRAWN_MICROBATCHES || schedule->stages > DRAWN_STAGES)
        return 0;
    double *unit = allocate((size_t)schedule->stages, sizeof *unit);
    for (int stage = 0; stage < schedule->stages; stage++)
        unit[stage] = 1;
    struct simulate_costs costs = {.forward = unit, .input = unit, .weight = unit};
    struct simulation *simulation = simulate_schedule(schedule, &costs, err);
    int width = simulation ? DRAWN_COLUMNS * (int)simulation->makespan : 0;
    simulate_destroy(simulation);
    char *drawing = NULL;
    size_t length;
    FILE *file = width > 0 ? open_memstream(&drawing, &length) : NULL;
    int result = -1;
    if (file)
        result = simulate_print(schedule, &costs, width, file, err);
    else if (width > 0)
        err_set(err, "out of host memory for a drawing");
    if (file && fclose(file) == 0 && result == 0) {
        text_add(out, "timeline     forward, input and weight gradient of one unit each, messages free:\n");
        text_add_bytes(out, drawing, length);
    }
    free(drawing);
    free(unit);
    return result;
}

void report_plan(const struct planning *planning, const struct plan *plan, struct text *out)
{
    const struct search *search = &plan->search;
    text_add(out, "search       %lld configurations of %d devices, %lld possible, %d simulated\n",
             (long long)search->tried, planning->settings->plan.devices, (long long)search->count, plan->forecasts);
    if (plan->best_count > 0)
        text_add(out, "\nThe best, simulated\n%s", heading);
    for (int i = 0; i < plan->best_count; i++) {
        add_candidate(&plan->best[i].candidate, out);
        add_estimate(&plan->best[i].estimate, out);
    }
    if (plan->best_count > 0) {
        text_add(out, "first's most loaded rank: ");
        add_memory(&plan->best[0].memory, out);
        text_add(out, "\n\nThe best of each kind\n%s", heading);
    }
    for (int i = 0; i < plan->kind_count; i++) {
        text_add(out, "%s\n", plan->kinds[i].name);
        add_candidate(&plan->kinds[i].verdict.candidate, out);
        add_estimate(&plan->kinds[i].verdict.estimate, out);
    }
    text_add(out, "\n");
    for (int reason = 0; reason < SEARCH_REASONS_COUNT; reason++)
        if (search->rejected[reason] > 0)
            text_add(out, "rejected     %lld: %s\n", (long long)search->rejected[reason], search_reason_names[reason]);
    if (search->nearest.candidate.microbatch_size > 0) {
        text_add(out, "nearest miss ");
        add_candidate(&search->nearest.candidate, out);
        text_add(out, " needs %s, a device has %s\n", text_bytes(search->nearest.memory).text,
                 text_bytes(plan->memory_limit).text);
    }
}
