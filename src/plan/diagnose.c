#include "plan/diagnose.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "pipeline/partition.h"
#include "plan/machine.h"

/* What is smaller is not worth a word. */
#define IMBALANCE 0.05 /* of the slowest rank over the average */
#define BUBBLE 0.10
#define TRAFFIC 0.05
#define GAIN 0.02
#define SLOW_RANK 0.15 /* what a rank takes longer than its layers would elsewhere */

const char *const diagnose_names[DIAGNOSE_KINDS] = {"balance", "few microbatches", "many microbatches", "traffic",
                                                    "memory"};

static int rank_of(const struct diagnose_input *in, int stage)
{
    int place = stage % in->ranks;
    return in->v_placement && stage / in->ranks % 2 == 1 ? in->ranks - 1 - place : place;
}

static double stage_sum(const int *first_layer, int stage, const double *layers)
{
    double sum = 0;
    for (int layer = first_layer[stage]; layer < first_layer[stage + 1]; layer++)
        sum += layers[layer];
    return sum;
}

/* Seconds of the slowest rank for one microbatch, which rank that is, and the average. */
struct load {
    double slowest, average;
    int rank;
};

static struct load load_of(const struct diagnose_input *in, const int *first_layer)
{
    double *ranks = allocate((size_t)in->ranks, sizeof *ranks);
    struct load load = {0};
    for (int stage = 0; stage < in->ranks * in->chunks; stage++)
        ranks[rank_of(in, stage)] += stage_sum(first_layer, stage, in->layer_seconds);
    for (int rank = 0; rank < in->ranks; rank++) {
        load.average += ranks[rank] / in->ranks;
        if (ranks[rank] > load.slowest) {
            load.slowest = ranks[rank];
            load.rank = rank;
        }
    }
    free(ranks);
    return load;
}

static void write_cut(const struct diagnose_input *in, const int *first_layer, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "balance = 'explicit'  stage_layers =");
    for (int stage = 0; stage < in->ranks * in->chunks && used < size; stage++) {
        int first = first_layer[stage], last = first_layer[stage + 1];
        int blocks = last - first - (first == 0) - (last == in->layers); /* as model_blocks() counts */
        used += (size_t)snprintf(out + used, size - used, "%s %d", stage ? "," : "", blocks);
    }
}

/* The heaviest layer alone, when no cut can do better than it. */
static int heaviest(const struct diagnose_input *in)
{
    int heavy = 0;
    for (int layer = 1; layer < in->layers; layer++)
        if (in->layer_seconds[layer] > in->layer_seconds[heavy])
            heavy = layer;
    return heavy;
}

/* By how much the rank takes longer than the others would for its layers, as a part. */
static double slowness(const struct diagnose_input *in, int rank)
{
    double own = 0, own_cost = 0, others = 0, others_cost = 0;
    for (int stage = 0; stage < in->ranks * in->chunks && in->layer_costs; stage++) {
        bool is_own = rank_of(in, stage) == rank;
        *(is_own ? &own : &others) += stage_sum(in->first_layer, stage, in->layer_seconds);
        *(is_own ? &own_cost : &others_cost) += stage_sum(in->first_layer, stage, in->layer_costs);
    }
    return own_cost > 0 && others > 0 ? own / own_cost * others_cost / others - 1 : 0;
}

/* The cut that is best for the stages, in cut[stages + 1]; seconds of a microbatch that it saves. */
static double best_cut(const struct diagnose_input *in, const struct load *now, int *cut)
{
    struct partition_problem problem = {
        .layers = in->layers, .stages = in->ranks * in->chunks, .cost = in->layer_seconds};
    struct err err;
    return partition_balanced(&problem, cut, &err) == 0 ? now->slowest - load_of(in, cut).slowest : 0;
}

static bool check_balance(const struct diagnose_input *in, struct finding *out)
{
    struct load now = load_of(in, in->first_layer);
    if (in->ranks == 1 || now.slowest < (1 + IMBALANCE) * now.average)
        return false;
    *out = (struct finding){.what = DIAGNOSE_BALANCE, .figure = now.slowest / now.average - 1};
    int written = snprintf(out->cause, sizeof out->cause,
                           "rank %d computes %s for each microbatch, %.0f%% more than the average of %s", now.rank,
                           text_duration(now.slowest).text, 100 * out->figure, text_duration(now.average).text);
    char *more = out->cause + written;
    size_t room = sizeof out->cause - (size_t)written;
    double slow = slowness(in, now.rank);
    if (slow > SLOW_RANK && 2 * slow > out->figure) {
        snprintf(more, room,
                 "; it takes %.0f%% longer for its layers than the others would: its processor is slower, or "
                 "has other work",
                 100 * slow);
        snprintf(out->change, sizeof out->change, "another node, or other cores, for pipeline rank %d", now.rank);
        return true;
    }
    int *cut = allocate((size_t)(in->ranks * in->chunks) + 1, sizeof *cut), heavy = heaviest(in);
    double saved = in->microbatches * best_cut(in, &now, cut);
    if (saved > GAIN * in->step_seconds) {
        out->gain = saved / in->step_seconds;
        write_cut(in, cut, out->change, sizeof out->change);
    } else {
        snprintf(more, room, "; no cut into %d stages is better: the heaviest layer, number %d, takes %s alone",
                 in->ranks * in->chunks, heavy, text_duration(in->layer_seconds[heavy]).text);
        snprintf(out->change, sizeof out->change, "grid.pipeline below %d, or more layers", in->ranks);
    }
    free(cut);
    return true;
}

/* Idle microbatches of the pipeline, for the schedule's shape: (P - 1) / V of a rank's work for one. */
static double idle_turns(const struct diagnose_input *in)
{
    bool zero_bubble = in->schedule == SCHEDULE_ZB_H1 || in->schedule == SCHEDULE_ZB_V;
    return (in->ranks - 1.0) / in->chunks * (zero_bubble ? 1.0 / 3 : 1);
}

/* The step's time, relative to now, with k times fewer microbatches that are k times larger (k may be below 1). */
static double relative_time(const struct diagnose_input *in, double k)
{
    double now = 1, then = 1;
    if (in->machine && in->product_gflop > 0) {
        now = machine_efficiency(in->machine, 1e9 * in->product_gflop);
        then = machine_efficiency(in->machine, 1e9 * in->product_gflop * k);
    }
    double turns = idle_turns(in);
    return (in->microbatches / k + turns) * k * now / then / (in->microbatches + turns);
}

/* Another size of the microbatch, with the same sequences in a step, and the step's time relative to now. */
struct resized {
    int size;
    double time;
};

/* The best one; the present one where there is none better. */
static struct resized best_size(const struct diagnose_input *in)
{
    int64_t sequences = (int64_t)in->microbatches * in->microbatch_size;
    struct resized best = {in->microbatch_size, 1 - 1e-9};
    for (int i = 0; i < in->size_count; i++)
        if (in->size_times[i] < best.time)
            best = (struct resized){in->sizes[i], in->size_times[i]};
    for (int size = 1; in->size_count == 0 && size <= sequences && size <= 64 * in->microbatch_size; size++) {
        double time = sequences % size == 0 ? relative_time(in, (double)size / in->microbatch_size) : INFINITY;
        if (time < best.time)
            best = (struct resized){size, time};
    }
    return best;
}

static bool check_few(const struct diagnose_input *in, struct finding *out)
{
    double turns = idle_turns(in), empty = turns / (in->microbatches + turns);
    if (in->ranks == 1 || in->bubble < BUBBLE || empty < fmax(BUBBLE, in->bubble) / 2)
        return false;
    *out = (struct finding){.what = DIAGNOSE_FEW_MICROBATCHES, .figure = in->bubble};
    snprintf(out->cause, sizeof out->cause,
             "%.1f%% of the ranks' time is idle; %d microbatches do not fill %d pipeline ranks with %d chunk%s, which "
             "leaves %.1f%% idle at best",
             100 * in->bubble, in->microbatches, in->ranks, in->chunks, in->chunks == 1 ? "" : "s", 100 * empty);
    const struct resized best = best_size(in);
    if (best.size < in->microbatch_size) {
        out->gain = 1 - best.time;
        snprintf(out->change, sizeof out->change, "microbatch_size = %d  microbatches = %d", best.size,
                 in->microbatches * in->microbatch_size / best.size);
    }
    if (out->gain < GAIN) { /* more sequences in a step: the gain is for each of them */
        int more = (int)ceil(turns * (1 - BUBBLE / 2) / (BUBBLE / 2));
        out->gain = 1 - (1 - empty) / (1 - turns / (more + turns));
        snprintf(out->change, sizeof out->change, "microbatches = %d with a global_batch as many times larger%s", more,
                 in->chunks == 1 ? ", or schedule = 'zb-h1', or 'interleaved' with chunks = 2" : "");
    }
    return true;
}

static bool check_many(const struct diagnose_input *in, struct finding *out)
{
    const struct resized best = best_size(in);
    if (!in->machine || in->machine->matmul_gflop.count == 0 || best.size <= in->microbatch_size ||
        1 - best.time < GAIN)
        return false;
    double k = (double)best.size / in->microbatch_size, gain = 1 - best.time;
    double now = machine_efficiency(in->machine, 1e9 * in->product_gflop);
    double then = machine_efficiency(in->machine, 1e9 * in->product_gflop * k);
    *out = (struct finding){.what = DIAGNOSE_MANY_MICROBATCHES, .figure = 1 - now / then, .gain = gain};
    snprintf(out->cause, sizeof out->cause,
             "microbatches of %d sequences make products of %.3g Gflop, which reach %.0f%% of the peak; those of %d "
             "reach %.0f%%",
             in->microbatch_size, in->product_gflop, 100 * now, best.size, 100 * then);
    snprintf(out->change, sizeof out->change, "microbatch_size = %d  microbatches = %d", best.size,
             (int)((int64_t)in->microbatches * in->microbatch_size / best.size));
    return true;
}

/* A boundary next to a cut that is narrower by a tenth; -1: none. */
static int narrower_cut(const struct diagnose_input *in, int *layer)
{
    for (int stage = 1; stage < in->ranks * in->chunks; stage++) {
        int cut = in->first_layer[stage];
        for (int step = -1; step <= 1; step += 2) {
            int other = cut + step;
            if (other > in->first_layer[stage - 1] && other < in->first_layer[stage + 1] &&
                in->boundary_bytes[other - 1] < 0.9 * in->boundary_bytes[cut - 1]) {
                *layer = other;
                return stage;
            }
        }
    }
    return -1;
}

static bool check_traffic(const struct diagnose_input *in, struct finding *out)
{
    double share = in->message_seconds / in->step_seconds, bytes = 0;
    if (share < TRAFFIC)
        return false;
    for (int stage = 1; stage < in->ranks * in->chunks; stage++)
        if (rank_of(in, stage) != rank_of(in, stage - 1))
            bytes += 2.0 * in->microbatches * in->boundary_bytes[in->first_layer[stage] - 1];
    *out = (struct finding){.what = DIAGNOSE_TRAFFIC, .figure = share};
    snprintf(out->cause, sizeof out->cause,
             "messages between stages, %s in a step of one pipeline, lengthen it by %s, %.0f%% of it",
             text_bytes(bytes).text, text_duration(in->message_seconds).text, 100 * share);
    int layer, stage = narrower_cut(in, &layer);
    if (stage >= 0) {
        snprintf(out->change, sizeof out->change,
                 "a cut before layer %d instead of %d: there %s cross it for each microbatch, not %s", layer,
                 in->first_layer[stage], text_bytes(in->boundary_bytes[layer - 1]).text,
                 text_bytes(in->boundary_bytes[in->first_layer[stage] - 1]).text);
        out->gain = share * (1 - in->boundary_bytes[layer - 1] / in->boundary_bytes[in->first_layer[stage] - 1]) /
                    (in->ranks * in->chunks - 1);
    } else if (in->chunks > 2 || (in->chunks == 2 && in->schedule == SCHEDULE_INTERLEAVED)) {
        snprintf(out->change, sizeof out->change, "chunks = %d%s: fewer messages", in->chunks - 1,
                 in->chunks == 2 ? " with schedule = 'eager-1f1b'" : "");
        out->gain = share / in->chunks;
    } else if (in->schedule == SCHEDULE_1F1B && in->eager_time < 1 - GAIN) {
        snprintf(out->change, sizeof out->change, "schedule = 'eager-1f1b', which hides messages behind computations");
        out->gain =
            in->eager_time > 0 ? 1 - in->eager_time : share * (1 - fmin(1, (in->ranks - 1.0) / in->microbatches));
    } else {
        snprintf(out->change, sizeof out->change, "grid.pipeline below %d, or sequence_parallel with tensor ranks",
                 in->ranks);
        out->gain = share / in->ranks;
    }
    return true;
}

static bool check_memory(const struct diagnose_input *in, struct finding *out)
{
    if (in->memory <= in->memory_limit)
        return false;
    *out = (struct finding){.what = DIAGNOSE_MEMORY, .figure = in->memory - in->memory_limit};
    snprintf(out->cause, sizeof out->cause,
             "a rank needs %s, but a device has %s; %s of it are activations of up to %d microbatches at once",
             text_bytes(in->memory).text, text_bytes(in->memory_limit).text, text_bytes(in->activations).text,
             in->live);
    const struct diagnose_option *fastest = NULL;
    size_t used = 0;
    for (int i = 0; i < in->option_count; i++) {
        const struct diagnose_option *option = &in->options[i];
        bool fits = option->memory <= in->memory_limit;
        if (fits && (!fastest || option->step_seconds < fastest->step_seconds))
            fastest = option;
        if (option->memory < in->memory && used < sizeof out->change)
            used += (size_t)snprintf(
                out->change + used, sizeof out->change - used, "%s%s saves %s and takes %+.0f%% time%s",
                used ? "; " : "", option->change, text_bytes(in->memory - option->memory).text,
                100 * (option->step_seconds / in->step_seconds - 1), fits ? "" : ", which is not enough");
    }
    if (fastest)
        snprintf(out->change, sizeof out->change, "%s: %s on the rank that holds most, %+.0f%% time", fastest->change,
                 text_bytes(fastest->memory).text, 100 * (fastest->step_seconds / in->step_seconds - 1));
    return true;
}

static int compare(const void *a, const void *b)
{
    const struct finding *x = a, *y = b;
    bool x_first = x->what == DIAGNOSE_MEMORY, y_first = y->what == DIAGNOSE_MEMORY;
    if (x_first != y_first)
        return x_first ? -1 : 1;
    return x->gain > y->gain ? -1 : x->gain < y->gain;
}

int diagnose(const struct diagnose_input *input, struct finding *findings)
{
    int count = 0;
    count += check_balance(input, &findings[count]);
    count += check_few(input, &findings[count]);
    count += check_many(input, &findings[count]);
    count += check_traffic(input, &findings[count]);
    count += check_memory(input, &findings[count]);
    qsort(findings, (size_t)count, sizeof *findings, compare);
    return count;
}
