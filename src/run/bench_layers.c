/* Times of layers, each as a stage of its own: what a layer is shows only through the interface of layers. */
#include <stdlib.h>

#include "base/memory.h"
#include "base/random.h"
#include "plan/cost.h"
#include "run/bench.h"

/* One layer with all that it needs. */
struct subject {
    const struct bench *bench;
    struct parameters parameters;
    struct stage *stage;
    struct context context;
    struct stage_run run;
    size_t weight_bytes, computed_bytes, gradient_bytes, scratch_bytes, losses_bytes;
    float *weights, *gradients;
    char *computed;  /* what computations read, where that is not the weights */
    int32_t *tokens; /* one field of the batch serves as all: whole numbers below the vocabulary, [rows] */
    size_t tokens_bytes;
    const int32_t *fields[LAYER_MAX_FIELDS];
};

enum {
    FORWARD_TIME,
    INPUT_TIME,
    WEIGHT_TIME,
    TIMES
};

/* As many layers alike as a rank has, up to what caches hold, and how long each part of a round through them took, for
 * one of them. What caches keep decides much of the time of small layers, so they are computed as a stage computes
 * them: all forward, then all backward. */
struct subjects {
    struct subject *items;
    int count;
    struct event **marks;              /* [TIMES * count + 1] where each part of a round begins, and its end */
    double seconds[TIMES][BENCH_MOST]; /* of rounds, in the order that they were run */
    int rounds;
};

#define CACHES ((size_t)64 << 20) /* bytes, more than there are of them for a rank */

/* All of it is queued before the first time is asked for, as in a step. */
static void run_round(void *of)
{
    struct subjects *subjects = of;
    const struct device *device = subjects->items->context.device;
    struct stream *stream = subjects->items->context.stream;
    struct event **mark = subjects->marks;
    for (int i = 0; i < subjects->count; i++) {
        const struct subject *subject = &subjects->items[i];
        device->event_record(stream, *mark++);
        stage_forward(subject->stage, &subject->context, &subject->run);
    }
    for (int i = subjects->count - 1; i >= 0; i--) {
        const struct subject *subject = &subjects->items[i];
        device->event_record(stream, *mark++);
        stage_backward_input(subject->stage, &subject->context, &subject->run);
        device->event_record(stream, *mark++);
        stage_backward_weight(subject->stage, &subject->context, &subject->run);
    }
    device->event_record(stream, *mark);
    double sums[TIMES] = {0};
    for (int i = 0; i < TIMES * subjects->count; i++) {
        const int part = i < subjects->count ? FORWARD_TIME : INPUT_TIME + (i - subjects->count) % 2;
        sums[part] += device->event_seconds(subjects->marks[i + 1]) - device->event_seconds(subjects->marks[i]);
    }
    for (int part = 0; part < TIMES; part++)
        subjects->seconds[part][subjects->rounds % BENCH_MOST] = sums[part] / subjects->count;
    subjects->rounds++;
}

static void make_weights(struct subject *subject)
{
    const struct bench *bench = subject->bench;
    const struct device *device = bench->context.device;
    const struct parameters *parameters = &subject->parameters;
    subject->weight_bytes = (size_t)parameters->weight_elements * sizeof(float);
    subject->computed_bytes = parameters->computed_bytes;
    subject->gradient_bytes = (size_t)parameters->gradient_elements * sizeof(float);
    subject->weights = bench_random(bench, ELEMENT_FLOAT32, subject->weight_bytes);
    subject->computed = bench_random(bench, bench->element, subject->computed_bytes);
    subject->gradients = bench_random(bench, ELEMENT_FLOAT32, subject->gradient_bytes);
    float *host = allocate((size_t)parameters->weight_elements + 1, sizeof *host);
    for (int i = 0; i < parameters->count; i++)
        parameters_initialize(&parameters->shares[i], (uint64_t)bench->settings->run.seed, 0,
                              parameters->shares[i].count, host + parameters->shares[i].weight);
    device->copy(bench->context.stream, subject->weights, host, subject->weight_bytes);
    for (int i = 0; i < parameters->count && subject->computed_bytes > 0; i++) {
        const struct parameter_share *share = &parameters->shares[i];
        device->convert(bench->context.stream, share->parameter->element, subject->computed + share->computed,
                        subject->weights + share->weight, share->count);
    }
    device->stream_wait(bench->context.stream);
    free(host);
    stage_attach(subject->stage, subject->computed_bytes > 0 ? subject->computed : (char *)subject->weights,
                 subject->gradients);
}

static void make_tokens(struct subject *subject)
{
    const struct bench *bench = subject->bench;
    const struct device *device = bench->context.device;
    int64_t rows = subject->context.circumstances.sequences * bench->model.sequence;
    int32_t *host = allocate((size_t)rows, sizeof *host);
    for (int64_t row = 0; row < rows; row++)
        host[row] = (int32_t)(row * 7919 % bench->settings->model.vocabulary);
    subject->tokens_bytes = (size_t)rows * sizeof *host;
    subject->tokens = bench_random(bench, ELEMENT_FLOAT32, subject->tokens_bytes);
    device->copy(bench->context.stream, subject->tokens, host, subject->tokens_bytes);
    device->stream_wait(bench->context.stream);
    free(host);
    for (int i = 0; i < LAYER_MAX_FIELDS; i++)
        subject->fields[i] = subject->tokens;
    subject->run.fields = subject->fields;
}

static void subject_create(struct subject *subject, const struct bench *bench, int layer,
                           const struct circumstances *circumstances)
{
    struct slice slice = {0, layer, layer + 1};
    *subject = (struct subject){.bench = bench, .context = bench->context};
    subject->context.circumstances = *circumstances;
    subject->context.training = true;
    parameters_create(&subject->parameters, &bench->model, &slice, 1, circumstances->tensor, circumstances->t);
    subject->stage = stage_create(&bench->model, slice, circumstances, true, &subject->parameters, 0);
    make_weights(subject);
    make_tokens(subject);
    const struct stage_bytes *bytes = stage_bytes(subject->stage);
    subject->scratch_bytes = stage_tensor_scratch(subject->stage, bench->context.tensor);
    subject->losses_bytes = (size_t)(circumstances->sequences * bench->model.sequence) * sizeof(float);
    subject->context.workspace = bench_random(bench, bench->element, bytes->workspace);
    subject->context.tensor_scratch = bench_random(bench, bench->element, subject->scratch_bytes);
    subject->run.sequences = circumstances->sequences;
    subject->run.input = bench_random(bench, bench->element, bytes->input);
    subject->run.output = bench_random(bench, bench->element, bytes->output);
    subject->run.out_gradient = bench_random(bench, bench->element, bytes->output);
    subject->run.in_gradient = bench_random(bench, bench->element, bytes->input);
    subject->run.set = bench_random(bench, bench->element, bytes->set);
    subject->run.pending = bench_random(bench, bench->element, bytes->pending);
    subject->run.losses = bench_random(bench, ELEMENT_FLOAT32, subject->losses_bytes);
    subject->run.accumulate_input = subject->run.accumulate_weight = true;
}

static void release(const struct bench *bench, const char *memory, size_t bytes)
{
    bench_release(bench, (void *)(uintptr_t)memory, bytes); /* stages only read it, but it is ours */
}

static void subject_destroy(struct subject *subject)
{
    const struct bench *bench = subject->bench;
    const struct stage_bytes *bytes = stage_bytes(subject->stage);
    bench_release(bench, subject->context.workspace, bytes->workspace);
    bench_release(bench, subject->context.tensor_scratch, subject->scratch_bytes);
    release(bench, subject->run.input, bytes->input);
    release(bench, subject->run.output, bytes->output);
    release(bench, subject->run.out_gradient, bytes->output);
    release(bench, subject->run.in_gradient, bytes->input);
    release(bench, subject->run.set, bytes->set);
    release(bench, subject->run.pending, bytes->pending);
    bench_release(bench, subject->run.losses, subject->losses_bytes);
    bench_release(bench, subject->weights, subject->weight_bytes);
    bench_release(bench, subject->computed, subject->computed_bytes);
    bench_release(bench, subject->gradients, subject->gradient_bytes);
    bench_release(bench, subject->tokens, subject->tokens_bytes);
    stage_destroy(subject->stage);
    parameters_destroy(&subject->parameters);
}

/* Layers of the kind that a rank has at most. */
static int most_on_a_rank(const struct bench *bench, const int *kinds, int kind)
{
    int count = 0, ranks = bench->settings->grid.pipeline;
    for (int layer = 0; layer < bench->model.layer_count; layer++)
        count += kinds[layer] == kind;
    return (count + ranks - 1) / ranks;
}

/* Of the last rounds; the first ones touched memory for the first time. */
static double median_of(const struct bench *bench, struct subjects *subjects, int part)
{
    enum {
        WARM_UP = 2
    };
    int first = subjects->rounds <= BENCH_MOST ? WARM_UP : 0;
    int count = (subjects->rounds < BENCH_MOST ? subjects->rounds : BENCH_MOST) - first;
    return bench_median(bench, subjects->seconds[part] + first, count);
}

static void time_layer(struct bench *bench, int layer, const int *kinds, const struct circumstances *circumstances)
{
    struct machine_settings *m = &bench->figures->machine;
    const struct layer *item = &bench->model.layers[layer];
    struct layer_costs costs = item->kind->costs(item, circumstances);
    const int most = most_on_a_rank(bench, kinds, kinds[layer]);
    struct subjects *subjects = allocate(1, sizeof *subjects);
    subjects->items = allocate((size_t)most, sizeof *subjects->items);
    for (size_t bytes = 0; subjects->count < most && bytes < CACHES; subjects->count++) {
        struct subject *subject = &subjects->items[subjects->count];
        subject_create(subject, bench, layer, circumstances);
        bytes += subject->weight_bytes + subject->computed_bytes + subject->gradient_bytes;
    }
    const int marks = TIMES * subjects->count + 1;
    subjects->marks = allocate((size_t)marks, sizeof(struct event *));
    for (int i = 0; i < marks; i++)
        subjects->marks[i] = bench->context.device->event_open();
    bench_add_number(&m->layer_kind, kinds[layer]);
    bench_add_number(&m->layer_recompute, (int)circumstances->recompute);
    bench_add(&m->layer_forward_gflop, costs.forward / 1e9);
    bench_add(&m->layer_input_gflop, costs.input_gradient / 1e9);
    bench_add(&m->layer_weight_gflop, costs.weight_gradient / 1e9);
    bench_time(bench, run_round, subjects);
    bench_add(&m->layer_forward_ms, 1e3 * median_of(bench, subjects, FORWARD_TIME));
    bench_add(&m->layer_input_ms, 1e3 * median_of(bench, subjects, INPUT_TIME));
    bench_add(&m->layer_weight_ms, 1e3 * median_of(bench, subjects, WEIGHT_TIME));
    for (int i = 0; i < subjects->count; i++)
        subject_destroy(&subjects->items[i]);
    for (int i = 0; i < marks; i++)
        bench->context.device->event_close(subjects->marks[i]);
    free(subjects->marks);
    free(subjects->items);
    free(subjects);
}

/* Once, and again where the layer does other work when several microbatches are under way. */
static void time_variants(struct bench *bench, int layer, const int *kinds, struct circumstances circumstances)
{
    const struct layer *item = &bench->model.layers[layer];
    circumstances.live = 1;
    struct layer_costs one = item->kind->costs(item, &circumstances);
    time_layer(bench, layer, kinds, &circumstances);
    circumstances.live = 2;
    if (item->kind->costs(item, &circumstances).input_gradient != one.input_gradient)
        time_layer(bench, layer, kinds, &circumstances);
}

/* The first layer of each kind in every recompute mode; in the one that is asked for also with microbatches of a
 * quarter and of four times the size, as far as a step has so many sequences: what each computation takes besides its
 * operations shows in how its time grows. */
void bench_layers(struct bench *bench)
{
    const struct model *model = &bench->model;
    const struct pipeline_settings *asked = &bench->settings->pipeline;
    int *kinds = allocate((size_t)model->layer_count, sizeof *kinds);
    struct circumstances circumstances = bench->context.circumstances;
    int count = cost_kinds(model, &circumstances, kinds);
    bench->figures->machine.layer_tensor = circumstances.tensor;
    for (int kind = 0; kind < count; kind++) {
        int layer = 0;
        while (kinds[layer] != kind)
            layer++;
        for (int recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_FULL; recompute++) {
            struct circumstances own = circumstances;
            own.recompute = (enum recompute_choice)recompute;
            time_variants(bench, layer, kinds, own);
            if (own.recompute != asked->recompute)
                continue;
            own.sequences = circumstances.sequences / 4;
            if (own.sequences > 0)
                time_variants(bench, layer, kinds, own);
            own.sequences = circumstances.sequences * 4;
            if (own.sequences <= circumstances.sequences * asked->microbatches)
                time_variants(bench, layer, kinds, own);
        }
    }
    free(kinds);
}
