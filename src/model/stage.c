#include "model/stage.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Where a tensor lies. */
struct place {
    enum {
        IN_INPUT,  /* the message before the stage */
        IN_OUTPUT, /* the message behind it */
        IN_SET,
        IN_OUT_GRADIENT, /* gradients of these messages */
        IN_IN_GRADIENT,
        IN_PENDING
    } in;
    size_t offset;
};

/* The boundary before a layer of the stage, or behind the last. */
struct crossing {
    int count;
    const struct boundary *tensors;
    struct place activation[LAYER_MAX_BOUNDARIES], gradient[LAYER_MAX_BOUNDARIES];
};

struct staged_layer {
    const struct layer *layer;
    const struct declaration *declaration;
    size_t kept, pending;             /* offsets in the sets */
    int reads[LAYER_MAX_BOUNDARIES];  /* index of each tensor that it reads in the crossing before */
    int passes[LAYER_MAX_BOUNDARIES]; /* and in the crossing behind when it also passes, or -1 */
    int fields[LAYER_MAX_FIELDS];     /* index of each of its fields in the stage's list */
    const void *weights[LAYER_MAX_PARAMETERS];
    float *gradients[LAYER_MAX_PARAMETERS];
};

struct stage {
    struct slice slice;
    struct circumstances circumstances;
    const struct parameters *parameters;
    int local_layer, layer_count;
    struct staged_layer *layers;
    struct crossing *crossings; /* [layer_count + 1] */
    const char *fields[LAYER_MAX_FIELDS];
    int field_count;
    bool loss;
    struct stage_bytes bytes;
};

static int find(const struct crossing *crossing, const char *name)
{
    for (int i = 0; i < crossing->count; i++)
        if (strcmp(crossing->tensors[i].name, name) == 0)
            return i;
    return -1;
}

/* Offset of tensor `index` in a message; `index` = count gives the message's size for `sequences`. */
static size_t message_offset(const struct stage *stage, const struct crossing *crossing, int index, int64_t sequences)
{
    struct carve carve = {0};
    size_t end = 0;
    for (int i = 0; i < index; i++) {
        bool last = index == crossing->count && i == index - 1;
        int64_t rows = last ? sequences : stage->circumstances.sequences;
        size_t bytes = boundary_bytes(&crossing->tensors[i], &stage->circumstances, rows);
        end = carve.used + bytes;
        carve_bytes(&carve, bytes);
    }
    return index == crossing->count ? end : carve.used;
}

static void add_field(struct stage *stage, struct staged_layer *layer, int index)
{
    const char *name = layer->declaration->fields[index];
    int field = 0;
    while (field < stage->field_count && strcmp(stage->fields[field], name) != 0)
        field++;
    if (field == LAYER_MAX_FIELDS)
        fatal("stage %d reads more than %d fields of the batch", stage->slice.stage, LAYER_MAX_FIELDS);
    if (field == stage->field_count)
        stage->fields[stage->field_count++] = name;
    layer->fields[index] = field;
}

/* Activations: what a layer writes lies in the set, or in the output behind the last layer; what passes stays where it
 * is. */
static void place_activations(struct stage *stage, struct carve *set)
{
    for (int k = 0; k <= stage->layer_count; k++) {
        struct crossing *here = &stage->crossings[k];
        for (int i = 0; i < here->count; i++) {
            int before =
                k > 0 && !here->tensors[i].written ? find(&stage->crossings[k - 1], here->tensors[i].name) : -1;
            if (k == 0)
                here->activation[i] = (struct place){IN_INPUT, message_offset(stage, here, i, 0)};
            else if (before >= 0)
                here->activation[i] = stage->crossings[k - 1].activation[before];
            else if (k == stage->layer_count)
                here->activation[i] = (struct place){IN_OUTPUT, message_offset(stage, here, i, 0)};
            else {
                here->activation[i] = (struct place){IN_SET, set->used};
                carve_bytes(set,
                            boundary_bytes(&here->tensors[i], &stage->circumstances, stage->circumstances.sequences));
            }
        }
    }
}

/* Gradients, from the back: a layer writes those of what it reads; others stay where they are. */
static void place_gradients(struct stage *stage, struct carve *pending)
{
    for (int k = stage->layer_count; k >= 0; k--) {
        struct crossing *here = &stage->crossings[k];
        for (int i = 0; i < here->count; i++) {
            bool read = false;
            if (k < stage->layer_count)
                for (int r = 0; r < stage->layers[k].declaration->read_count; r++)
                    read = read || stage->layers[k].reads[r] == i;
            if (k == stage->layer_count)
                here->gradient[i] = (struct place){IN_OUT_GRADIENT, message_offset(stage, here, i, 0)};
            else if (!read)
                here->gradient[i] =
                    stage->crossings[k + 1].gradient[find(&stage->crossings[k + 1], here->tensors[i].name)];
            else if (k == 0)
                here->gradient[i] = (struct place){IN_IN_GRADIENT, message_offset(stage, here, i, 0)};
            else {
                here->gradient[i] = (struct place){IN_PENDING, pending->used};
                carve_bytes(pending,
                            boundary_bytes(&here->tensors[i], &stage->circumstances, stage->circumstances.sequences));
            }
        }
    }
}

static void connect_layer(struct stage *stage, int k)
{
    struct staged_layer *layer = &stage->layers[k];
    const struct crossing *before = &stage->crossings[k], *after = &stage->crossings[k + 1];
    for (int r = 0; r < layer->declaration->read_count; r++) {
        layer->reads[r] = find(before, layer->declaration->reads[r]);
        int behind = find(after, layer->declaration->reads[r]);
        layer->passes[r] = behind >= 0 && !after->tensors[behind].written ? behind : -1;
    }
    for (int f = 0; f < layer->declaration->field_count; f++)
        add_field(stage, layer, f);
    stage->loss = stage->loss || layer->declaration->loss;
}

/* Layers' own areas; the pending ones lie over each other unless the weight gradients run apart. */
static void place_layers(struct stage *stage, bool split, struct carve *set, struct carve *pending)
{
    size_t shared = 0;
    for (int k = 0; k < stage->layer_count; k++) {
        struct staged_layer *layer = &stage->layers[k];
        struct layer_bytes bytes = layer->layer->kind->bytes(layer->layer, &stage->circumstances);
        layer->kept = set->used;
        carve_bytes(set, bytes.kept);
        layer->pending = pending->used;
        if (split)
            carve_bytes(pending, bytes.pending);
        else if (bytes.pending > shared)
            shared = bytes.pending;
        if (bytes.workspace > stage->bytes.workspace)
            stage->bytes.workspace = bytes.workspace;
    }
    carve_bytes(pending, shared);
}

struct stage *stage_create(const struct model *model, struct slice slice, const struct circumstances *circumstances,
                           bool split, const struct parameters *parameters, int local_layer)
{
    struct stage *stage = allocate(1, sizeof *stage);
    *stage = (struct stage){.slice = slice,
                            .circumstances = *circumstances,
                            .parameters = parameters,
                            .local_layer = local_layer,
                            .layer_count = slice.last - slice.first};
    stage->layers = allocate((size_t)stage->layer_count, sizeof *stage->layers);
    stage->crossings = allocate((size_t)stage->layer_count + 1, sizeof *stage->crossings);
    for (int k = 0; k <= stage->layer_count; k++) {
        int before = slice.first + k - 1; /* the layer before this crossing */
        if (before >= 0) {
            stage->crossings[k].count = model->declarations[before].after_count;
            stage->crossings[k].tensors = model->declarations[before].after;
        }
    }
    for (int k = 0; k < stage->layer_count; k++) {
        stage->layers[k].layer = &model->layers[slice.first + k];
        stage->layers[k].declaration = &model->declarations[slice.first + k];
        connect_layer(stage, k);
    }
    struct carve set = {0}, pending = {0};
    place_activations(stage, &set);
    place_gradients(stage, &pending);
    place_layers(stage, split, &set, &pending);
    stage->bytes.set = set.used;
    stage->bytes.pending = pending.used;
    stage->bytes.input = stage_input_bytes(stage, circumstances->sequences);
    stage->bytes.output = stage_output_bytes(stage, circumstances->sequences);
    return stage;
}

void stage_destroy(struct stage *stage)
{
    if (!stage)
        return;
    free(stage->layers);
    free(stage->crossings);
    free(stage);
}

const struct stage_bytes *stage_bytes(const struct stage *stage)
{
    return &stage->bytes;
}

/* Not that of the largest tensor alone: fewer and wider rows that do not divide evenly can need more. */
size_t stage_tensor_scratch(const struct stage *stage, const struct communicator *tensor)
{
    size_t most = 0;
    for (int k = 0; k <= stage->layer_count; k++)
        for (int i = 0; i < stage->crossings[k].count; i++) {
            const struct boundary *boundary = &stage->crossings[k].tensors[i];
            int64_t rows = stage->circumstances.sequences * boundary->rows_per_sequence;
            size_t bytes = context_tensor_scratch(tensor, boundary->element, rows, boundary->width);
            most = bytes > most ? bytes : most;
        }
    return most;
}

void stage_attach(struct stage *stage, const char *computed, float *gradients)
{
    const struct parameters *parameters = stage->parameters;
    for (int k = 0; k < stage->layer_count; k++) {
        int first = parameters->layer_first[stage->local_layer + k];
        for (int i = 0; i < stage->layers[k].declaration->parameter_count; i++) {
            stage->layers[k].weights[i] = computed + parameters->shares[first + i].computed;
            stage->layers[k].gradients[i] = gradients ? gradients + parameters->shares[first + i].gradient : NULL;
        }
    }
}

size_t stage_input_bytes(const struct stage *stage, int64_t sequences)
{
    return message_offset(stage, &stage->crossings[0], stage->crossings[0].count, sequences);
}

size_t stage_output_bytes(const struct stage *stage, int64_t sequences)
{
    const struct crossing *last = &stage->crossings[stage->layer_count];
    return message_offset(stage, last, last->count, sequences);
}

int stage_field_count(const struct stage *stage)
{
    return stage->field_count;
}

const char *stage_field(const struct stage *stage, int field)
{
    return stage->fields[field];
}

bool stage_has_loss(const struct stage *stage)
{
    return stage->loss;
}

struct slice stage_slice(const struct stage *stage)
{
    return stage->slice;
}

static void *at(const struct stage_run *run, struct place place)
{
    switch (place.in) {
    case IN_INPUT: /* only read: the cast undoes what the type of the union of places cannot say */
        return (void *)(uintptr_t)(run->input + place.offset);
    case IN_OUT_GRADIENT:
        return (void *)(uintptr_t)(run->out_gradient + place.offset);
    case IN_OUTPUT:
        return run->output + place.offset;
    case IN_SET:
        return run->set + place.offset;
    case IN_IN_GRADIENT:
        return run->in_gradient + place.offset;
    case IN_PENDING:
        return run->pending + place.offset;
    }
    return NULL;
}

static struct passage passage_of(const struct stage *stage, const struct stage_run *run, int k, bool backward)
{
    const struct staged_layer *layer = &stage->layers[k];
    const struct crossing *before = &stage->crossings[k], *after = &stage->crossings[k + 1];
    struct passage passage = {.sequences = run->sequences,
                              .losses = run->losses,
                              .weights = layer->weights,
                              .gradients = layer->gradients,
                              .kept = run->set + layer->kept,
                              .pending = run->pending + layer->pending};
    for (int r = 0; r < layer->declaration->read_count; r++) {
        passage.in[r] = at(run, before->activation[layer->reads[r]]);
        if (backward) {
            passage.in_gradient[r] = at(run, before->gradient[layer->reads[r]]);
            if (layer->passes[r] >= 0)
                passage.pass_gradient[r] = at(run, after->gradient[layer->passes[r]]);
        }
    }
    for (int i = 0; i < after->count; i++)
        if (after->tensors[i].written) {
            passage.out[i] = backward ? NULL : at(run, after->activation[i]);
            passage.out_gradient[i] = backward ? at(run, after->gradient[i]) : NULL;
        }
    for (int f = 0; f < layer->declaration->field_count; f++)
        passage.fields[f] = run->fields[layer->fields[f]];
    return passage;
}

/* Copies a tensor that passes through the whole stage, or its gradient, into its place in the message. */
static void hand_on(const struct stage *stage, const struct context *context, const struct stage_run *run,
                    const struct crossing *crossing, bool gradient)
{
    for (int i = 0; i < crossing->count; i++) {
        struct place place = gradient ? crossing->gradient[i] : crossing->activation[i];
        struct place message = {gradient ? IN_IN_GRADIENT : IN_OUTPUT, message_offset(stage, crossing, i, 0)};
        if (place.in != message.in)
            context->device->copy(context->stream, at(run, message), at(run, place),
                                  boundary_bytes(&crossing->tensors[i], &stage->circumstances, run->sequences));
    }
}

/* The rank's context under the stage's own circumstances. */
static struct context context_of(const struct stage *stage, const struct context *context)
{
    struct context own = *context;
    own.circumstances = stage->circumstances;
    return own;
}

static void show(const struct stage *stage, const struct stage_run *run, int k, enum stage_pass pass,
                 const struct passage *passage)
{
    if (run->inspect)
        run->inspect(run->of, &(struct stage_look){.pass = pass,
                                                   .layer = stage->slice.first + k,
                                                   .local_layer = stage->local_layer + k,
                                                   .microbatch = run->microbatch,
                                                   .passage = passage});
}

void stage_forward(const struct stage *stage, const struct context *context, const struct stage_run *run)
{
    const struct context own = context_of(stage, context);
    for (int k = 0; k < stage->layer_count; k++) {
        struct passage passage = passage_of(stage, run, k, false);
        const struct layer *layer = stage->layers[k].layer;
        if (run->layer_begin)
            run->layer_begin(run->of, stage->local_layer + k);
        layer->kind->forward(layer, &own, &passage);
        show(stage, run, k, PASS_FORWARD, &passage);
    }
    hand_on(stage, context, run, &stage->crossings[stage->layer_count], false);
}

static void backward(const struct stage *stage, const struct context *context, const struct stage_run *run, bool input,
                     bool weight)
{
    const struct context own = context_of(stage, context);
    for (int k = stage->layer_count - 1; k >= 0; k--) {
        struct passage passage = passage_of(stage, run, k, true);
        const struct layer *layer = stage->layers[k].layer;
        passage.accumulate = run->accumulate_input;
        if (input) {
            layer->kind->backward_input(layer, &own, &passage);
            show(stage, run, k, PASS_INPUT, &passage);
        }
        passage.accumulate = run->accumulate_weight;
        if (weight) {
            layer->kind->backward_weight(layer, &own, &passage);
            show(stage, run, k, PASS_WEIGHT, &passage);
        }
        if (weight && run->layer_done)
            run->layer_done(run->of, stage->local_layer + k);
    }
    if (input)
        hand_on(stage, context, run, &stage->crossings[0], true);
}

void stage_backward(const struct stage *stage, const struct context *context, const struct stage_run *run)
{
    backward(stage, context, run, true, true);
}

void stage_backward_input(const struct stage *stage, const struct context *context, const struct stage_run *run)
{
    backward(stage, context, run, true, false);
}

void stage_backward_weight(const struct stage *stage, const struct context *context, const struct stage_run *run)
{
    backward(stage, context, run, false, true);
}
