/* One kind of layer on this tensor rank, with weights and inputs of golden/layers.h5 (made by make_golden.py) in memory
 * of the device. Buffers are full of NaN before they are used: what a layer reads, it must have written. */
#ifndef TESTS_LAYER_TRIAL_H
#define TESTS_LAYER_TRIAL_H

#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/gpt2.h"

static inline hid_t open_golden(void)
{
    const char *folder = getenv("srcdir");
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/golden/layers.h5", folder ? folder : ".");
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (file < 0)
        fatal("cannot open %s", path);
    return file;
}

/* The elements of the dataset <group>/<name>, converted to `type` of `size` bytes. */
static inline void *read_golden(hid_t file, const char *group, const char *name, hid_t type, size_t size)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", group, name);
    hid_t set = H5Dopen2(file, path, H5P_DEFAULT), space = set < 0 ? -1 : H5Dget_space(set);
    hssize_t count = space < 0 ? -1 : H5Sget_simple_extent_npoints(space);
    if (count < 0)
        fatal("golden/layers.h5 has no %s", path);
    void *values = allocate((size_t)count, size);
    if (H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) < 0)
        fatal("cannot read %s", path);
    H5Sclose(space);
    H5Dclose(set);
    return values;
}

static inline double *read_doubles(hid_t file, const char *group, const char *name)
{
    return read_golden(file, group, name, H5T_NATIVE_DOUBLE, sizeof(double));
}

static inline double golden_number(hid_t file, const char *name)
{
    double value;
    hid_t attribute = H5Aopen(file, name, H5P_DEFAULT);
    if (attribute < 0 || H5Aread(attribute, H5T_NATIVE_DOUBLE, &value) < 0)
        fatal("golden/layers.h5 has no attribute %s", name);
    H5Aclose(attribute);
    return value;
}

/* The tensors of one kind of layer, whole. `in` and its gradient are NULL for the embedding, `out` and its gradient for
 * the head. */
struct golden {
    int64_t sequences;
    struct gpt2 model;
    double *in, *out, *out_gradient, *in_gradient, *losses;
    int32_t *tokens;
    double *weights[LAYER_MAX_PARAMETERS], *gradients[LAYER_MAX_PARAMETERS];
};

static inline void load_golden(struct golden *golden, const struct layer_kind *kind)
{
    hid_t file = open_golden();
    const char *name = kind->name;
    struct gpt2 *m = &golden->model;
    *golden = (struct golden){.sequences = (int64_t)golden_number(file, "sequences")};
    *m = (struct gpt2){.layers = 5,
                       .hidden = (int64_t)golden_number(file, "hidden"),
                       .heads = (int64_t)golden_number(file, "heads"),
                       .ffn_hidden = (int64_t)golden_number(file, "ffn_hidden"),
                       .sequence = (int64_t)golden_number(file, "sequence"),
                       .vocabulary = (int64_t)golden_number(file, "vocabulary"),
                       .norm_epsilon = golden_number(file, "norm_epsilon")};
    m->head_size = m->hidden / m->heads;
    struct layer layer = {kind, m, 2};
    struct declaration declaration;
    kind->declare(&layer, &declaration);
    if (declaration.read_count > 0) {
        golden->in = read_doubles(file, name, "in");
        golden->in_gradient = read_doubles(file, name, "in_gradient");
    }
    if (declaration.after_count > 0) {
        golden->out = read_doubles(file, name, "out");
        golden->out_gradient = read_doubles(file, name, "out_gradient");
    }
    if (declaration.loss)
        golden->losses = read_doubles(file, name, "losses");
    if (declaration.field_count > 0)
        golden->tokens = read_golden(file, "/", declaration.fields[0], H5T_NATIVE_INT32, sizeof *golden->tokens);
    char group[64];
    for (int i = 0; i < declaration.parameter_count; i++) {
        const char *path = declaration.parameters[i].path;
        snprintf(group, sizeof group, "%s/weights", name);
        golden->weights[i] = read_doubles(file, group, path);
        snprintf(group, sizeof group, "%s/gradients", name);
        golden->gradients[i] = read_doubles(file, group, path);
    }
    H5Fclose(file);
}

static inline void free_golden(struct golden *golden)
{
    free(golden->in);
    free(golden->out);
    free(golden->out_gradient);
    free(golden->in_gradient);
    free(golden->losses);
    free(golden->tokens);
    for (int i = 0; i < LAYER_MAX_PARAMETERS; i++) {
        free(golden->weights[i]);
        free(golden->gradients[i]);
    }
}

/* A layer on this tensor rank with its memory. */
struct trial {
    const struct golden *golden;
    struct layer layer;
    struct declaration declaration;
    struct context context;
    struct layer_bytes bytes;
    size_t scratch_bytes;
    float *weights, *gradients; /* shares of all parameters one after another */
    int64_t offset[LAYER_MAX_PARAMETERS + 1];
    const void *weight_of[LAYER_MAX_PARAMETERS];
    float *gradient_of[LAYER_MAX_PARAMETERS];
    double *worst; /* the largest error of each kind of check so far; the caller's */
};

/* Memory of the device full of NaN. */
static inline void poison(const struct trial *trial, void *memory, size_t bytes)
{
    void *host = allocate(bytes + 1, 1);
    memset(host, 0xff, bytes);
    trial->context.device->copy(trial->context.stream, memory, host, bytes);
    trial->context.device->stream_wait(trial->context.stream);
    free(host);
}

static inline void *take(const struct trial *trial, size_t bytes)
{
    void *memory = trial->context.device->allocate(bytes + 64);
    if (!memory)
        fatal("out of memory");
    poison(trial, memory, bytes + 64);
    return memory;
}

static inline void give(const struct trial *trial, void *memory, size_t bytes)
{
    trial->context.device->release(memory, bytes + 64);
}

static inline void upload(const struct trial *trial, float *memory, const double *values, int64_t count)
{
    float *host = allocate((size_t)count + 1, sizeof *host);
    for (int64_t i = 0; i < count; i++)
        host[i] = (float)values[i];
    trial->context.device->copy(trial->context.stream, memory, host, (size_t)count * sizeof *host);
    trial->context.device->stream_wait(trial->context.stream);
    free(host);
}

static inline double *download(const struct trial *trial, const float *memory, int64_t count)
{
    float *host = allocate((size_t)count + 1, sizeof *host);
    double *values = allocate((size_t)count + 1, sizeof *values);
    trial->context.device->copy(trial->context.stream, host, memory, (size_t)count * sizeof *host);
    trial->context.device->stream_wait(trial->context.stream);
    for (int64_t i = 0; i < count; i++)
        values[i] = host[i];
    free(host);
    return values;
}

/* This tensor rank's share of a parameter; *count elements, freed by the caller. */
static inline double *cut(const struct trial *trial, int parameter, const double *whole, int64_t *count)
{
    const struct parameter *p = &trial->declaration.parameters[parameter];
    const struct circumstances *c = &trial->context.circumstances;
    int64_t outer = 1, inner = 1, size = p->split < 0 ? 1 : p->shape[p->split];
    for (int axis = 0; axis < p->axes; axis++) {
        outer *= axis < p->split ? p->shape[axis] : 1;
        inner *= axis > p->split ? p->shape[axis] : 1;
    }
    struct share share = p->split < 0 ? (struct share){0, 1} : share_of(size, c->tensor, c->t);
    *count = outer * share.count * inner;
    double *values = allocate((size_t)*count + 1, sizeof *values);
    for (int64_t i = 0; i < outer; i++)
        memcpy(values + i * share.count * inner, whole + (i * size + share.first) * inner,
               (size_t)(share.count * inner) * sizeof *values);
    return values;
}

static inline void load_weights(struct trial *trial)
{
    for (int i = 0; i < trial->declaration.parameter_count; i++) {
        int64_t count;
        double *share = cut(trial, i, trial->golden->weights[i], &count);
        upload(trial, trial->weights + trial->offset[i], share, count);
        free(share);
    }
}

static inline void begin_trial(struct trial *trial, const struct golden *golden, const struct layer_kind *kind,
                               struct communicator *tensor, const struct circumstances *circumstances)
{
    const struct gpt2 *m = &golden->model;
    const struct device *device = circumstances->device;
    *trial = (struct trial){.golden = golden, .layer = {kind, m, 2}};
    trial->context = (struct context){.device = device,
                                      .stream = device->stream_open(),
                                      .tensor = tensor,
                                      .circumstances = *circumstances,
                                      .training = true,
                                      .loss_scale = 1 / (double)(golden->sequences * m->sequence)};
    kind->declare(&trial->layer, &trial->declaration);
    trial->bytes = kind->bytes(&trial->layer, circumstances);
    trial->context.workspace = take(trial, trial->bytes.workspace);
    trial->scratch_bytes = context_tensor_scratch(tensor, ELEMENT_FLOAT32, golden->sequences * m->sequence, m->hidden);
    trial->context.tensor_scratch = take(trial, trial->scratch_bytes);
    trial->context.tensor_counts = allocate((size_t)tensor->size, sizeof(int64_t));
    for (int i = 0; i < trial->declaration.parameter_count; i++) {
        int64_t count;
        free(cut(trial, i, golden->weights[i], &count));
        trial->offset[i + 1] = trial->offset[i] + count;
    }
    size_t bytes = (size_t)trial->offset[trial->declaration.parameter_count] * sizeof(float);
    trial->weights = take(trial, bytes);
    trial->gradients = take(trial, bytes);
    for (int i = 0; i < trial->declaration.parameter_count; i++) {
        trial->weight_of[i] = trial->weights + trial->offset[i];
        trial->gradient_of[i] = trial->gradients + trial->offset[i];
    }
    load_weights(trial);
}

static inline void end_trial(struct trial *trial)
{
    size_t bytes = (size_t)trial->offset[trial->declaration.parameter_count] * sizeof(float);
    give(trial, trial->context.workspace, trial->bytes.workspace);
    give(trial, trial->context.tensor_scratch, trial->scratch_bytes);
    free(trial->context.tensor_counts);
    give(trial, trial->weights, bytes);
    give(trial, trial->gradients, bytes);
    trial->context.device->stream_close(trial->context.stream);
}

/* Some of the sequences going through the layer, with buffers of their own. */
struct part {
    struct passage passage;
    struct share all, mine; /* rows of the part, those of this tensor rank; places among all of the fixture */
    int64_t count;          /* elements of a boundary tensor on this rank */
    float *in, *out, *out_gradient, *in_gradient, *losses;
    int32_t *tokens;
};

static inline float *take_floats(const struct trial *trial, int64_t count, const double *values)
{
    float *memory = take(trial, (size_t)count * sizeof *memory);
    if (values)
        upload(trial, memory, values, count);
    return memory;
}

static inline void begin_part(struct part *part, const struct trial *trial, int64_t first, int64_t sequences,
                              bool accumulate)
{
    const struct golden *golden = trial->golden;
    const struct gpt2 *m = &golden->model;
    *part = (struct part){.all = {first * m->sequence, sequences * m->sequence}};
    part->mine = context_rows(&trial->context.circumstances, part->all.count);
    part->mine.first += part->all.first;
    part->count = part->mine.count * m->hidden;
    const int64_t offset = part->mine.first * m->hidden;
    part->in = take_floats(trial, part->count, golden->in ? golden->in + offset : NULL);
    part->out_gradient = take_floats(trial, part->count, golden->out_gradient ? golden->out_gradient + offset : NULL);
    part->out = take_floats(trial, part->count, NULL);
    part->in_gradient = take_floats(trial, part->count, NULL);
    part->losses = take_floats(trial, part->all.count, NULL);
    part->tokens = take(trial, (size_t)part->all.count * sizeof(int32_t));
    if (golden->tokens)
        trial->context.device->copy(trial->context.stream, part->tokens, golden->tokens + part->all.first,
                                    (size_t)part->all.count * sizeof(int32_t));
    part->passage = (struct passage){.sequences = sequences,
                                     .in = {part->in},
                                     .out = {part->out},
                                     .out_gradient = {part->out_gradient},
                                     .in_gradient = {part->in_gradient},
                                     .fields = {part->tokens},
                                     .losses = part->losses,
                                     .weights = trial->weight_of,
                                     .gradients = trial->gradient_of,
                                     .kept = take(trial, trial->bytes.kept),
                                     .pending = take(trial, trial->bytes.pending),
                                     .accumulate = accumulate};
}

static inline void end_part(struct part *part, const struct trial *trial)
{
    float *const tensors[] = {part->in, part->out, part->out_gradient, part->in_gradient};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
        give(trial, tensors[i], (size_t)part->count * sizeof(float));
    give(trial, part->losses, (size_t)part->all.count * sizeof(float));
    give(trial, part->tokens, (size_t)part->all.count * sizeof(int32_t));
    give(trial, part->passage.kept, trial->bytes.kept);
    give(trial, part->passage.pending, trial->bytes.pending);
}

typedef void call_fn(const struct layer *layer, const struct context *context, const struct passage *passage);

/* Nothing may be left to a call in the workspace by the one before. */
static inline void call(const struct trial *trial, call_fn *function, const struct part *part)
{
    poison(trial, trial->context.workspace, trial->bytes.workspace);
    function(&trial->layer, &trial->context, &part->passage);
}

#endif
