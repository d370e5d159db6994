#include <math.h>

#include "base/json.h"
#include "plan/report.h"

#define DIGITS 10

static void add_number(struct text *out, const char *key, double value)
{
    json_real(out, key, value, DIGITS);
}

static void add_footprint(struct text *out, const struct footprint *m)
{
    text_add(out,
             "{\"total\": %zu, \"weights\": %zu, \"gradients\": %zu, \"moments\": %zu, \"activations\": %zu, "
             "\"buffers\": %zu, \"workspace\": %zu}",
             footprint_total(m), m->weights + m->computed, m->gradients, m->moments, m->activations, m->buffers,
             m->workspace);
}

/* The members of a candidate, without the braces; memory [ranks] of the pipeline ranks, or of the most loaded one. */
static void add_members(struct text *out, const struct candidate *c, const struct estimate *e,
                        const struct footprint *memory, int ranks)
{
    text_add(out,
             "\"pipeline\": %d, \"data\": %d, \"tensor\": %d, \"schedule\": \"%s\", \"chunks\": %d, "
             "\"microbatch_size\": %d, \"microbatches\": %d, \"recompute\": \"%s\", \"sharded\": %s, ",
             c->pipeline, c->data, c->tensor, schedule_names[c->schedule], c->chunks, c->microbatch_size,
             c->microbatches, recompute_names[c->recompute], c->sharded ? "true" : "false");
    add_number(out, "step_seconds", e->step_seconds);
    add_number(out, "tokens_per_second", e->tokens_per_second);
    add_number(out, "tflops_per_device", e->tflops);
    add_number(out, "mfu", e->mfu);
    add_number(out, "bubble", e->bubble);
    text_add(out, ", \"communication\": {");
    add_number(out, "pipeline", e->pipeline_share);
    add_number(out, "tensor", e->tensor_share);
    add_number(out, "data", e->data_share);
    text_add(out, "}");
    add_number(out, "optimizer", e->optimizer_share);
    add_number(out, "peak_memory_bytes", e->memory);
    text_add(out, ", \"memory_bytes\": [");
    for (int p = 0; p < ranks; p++) {
        text_add(out, "%s", p ? ", " : "");
        add_footprint(out, &memory[p]);
    }
    text_add(out, "]");
}

static void add_verdict(struct text *out, const struct verdict *verdict)
{
    text_add(out, "{");
    add_members(out, &verdict->candidate, &verdict->estimate, &verdict->memory, 1);
    text_add(out, "}");
}

/* The forecast stands for its candidate: it knows all ranks and stages. */
static void add_forecast(struct text *out, const struct forecast *f)
{
    text_add(out, "{");
    add_members(out, &f->candidate, &f->estimate, f->memory, f->candidate.pipeline);
    text_add(out, ", \"stages\": [");
    for (int s = 0; s < f->stages; s++) {
        text_add(out, "%s{\"first_layer\": %d, \"layers\": %d, ", s ? ", " : "", f->first_layer[s],
                 f->first_layer[s + 1] - f->first_layer[s]);
        add_number(out, "forward_seconds", f->stage[s].forward);
        add_number(out, "input_seconds", f->stage[s].input);
        add_number(out, "weight_seconds", f->stage[s].weight);
        add_number(out, "message_seconds", f->stage[s].message);
        add_number(out, "message_bytes", f->message_bytes[s]);
        text_add(out, "}");
    }
    text_add(out, "]");
    add_number(out, "makespan_seconds", f->makespan);
    text_add(out, "}");
}

static void add_rejections(struct text *out, const struct plan *plan)
{
    const struct search *search = &plan->search;
    text_add(out, ",\n\"tried\": %lld, \"possible\": %lld, \"simulated\": %d,\n\"rejected\": [",
             (long long)search->tried, (long long)search->count, plan->forecasts);
    for (int reason = 0; reason < SEARCH_REASONS_COUNT; reason++)
        text_add(out, "%s{\"reason\": \"%s\", \"count\": %lld}", reason ? ",\n " : "", search_reason_names[reason],
                 (long long)search->rejected[reason]);
    text_add(out, "],\n\"nearest_miss\": ");
    if (search->nearest.candidate.microbatch_size > 0) {
        const struct guess *miss = &search->nearest;
        struct estimate estimate = {.step_seconds = miss->step_seconds,
                                    .tokens_per_second = NAN,
                                    .tflops = NAN,
                                    .mfu = NAN,
                                    .bubble = NAN,
                                    .pipeline_share = NAN,
                                    .tensor_share = NAN,
                                    .data_share = NAN,
                                    .optimizer_share = NAN,
                                    .memory = miss->memory};
        text_add(out, "{");
        add_members(out, &miss->candidate, &estimate, NULL, 0);
        text_add(out, "}");
    } else {
        text_add(out, "null");
    }
    text_add(out, ",\n\"best_of\": [");
    for (int i = 0; i < plan->kind_count; i++) {
        text_add(out, "%s{\"kind\": \"%s\", \"candidate\": ", i ? ",\n " : "", plan->kinds[i].name);
        add_verdict(out, &plan->kinds[i].verdict);
        text_add(out, "}");
    }
    text_add(out, "]");
}

void report_findings_json(const struct finding *findings, int count, struct text *out)
{
    text_add(out, "[");
    for (int i = 0; i < count; i++) {
        text_add(out, i ? ",\n {" : "{");
        json_string(out, "what", diagnose_names[findings[i].what]);
        add_number(out, "figure", findings[i].figure);
        json_string(out, "cause", findings[i].cause);
        json_string(out, "change", findings[i].change);
        add_number(out, "gain", findings[i].gain);
        text_add(out, "}");
    }
    text_add(out, "]");
}

void report_json(const struct planning *planning, const struct plan *plan, const struct forecast *forecast,
                 const struct finding *findings, int finding_count, struct text *out)
{
    text_add(out, "{");
    json_string(out, "machine", planning->settings->machine.name);
    text_add(out, ", \"times_known\": %s, \"layers_measured\": %s, \"devices\": %d, ",
             planning->machine.known ? "true" : "false", forecast && forecast->measured ? "true" : "false",
             planning->settings->plan.devices);
    add_number(out, "memory_limit_bytes", planner_memory_limit(planning->settings));
    text_add(out, ",\n\"candidates\": [");
    if (forecast)
        add_forecast(out, forecast);
    for (int i = 1; plan && i < plan->best_count; i++) {
        text_add(out, ",\n ");
        add_verdict(out, &plan->best[i]);
    }
    text_add(out, "]");
    if (plan)
        add_rejections(out, plan);
    text_add(out, ",\n\"findings\": ");
    report_findings_json(findings, finding_count, out);
    text_add(out, "}\n");
}
