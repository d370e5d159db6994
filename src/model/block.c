/* gpt2's block: x2 = x + attention(norm(x)), y = x2 + mlp(norm(x2)).
 *
 * Tensor ranks split heads and MLP columns: queries, keys, values and `up` by output, `output` and `down` by input, so
 * one sum over the ranks closes each half (Shoeybi et al., 2019, section 3). With sequence parallelism norms and
 * residuals work on a share of the rows, and the sums become reduce-scatter and all-gather (Korthikanti et al., 2022,
 * section 4.2).
 *
 * Widths on one tensor rank: h hidden, q = heads * head_size, f = ffn_hidden. Rows: R all, S this rank's share. */
#include <math.h>

#include "model/gpt2.h"

enum {
    NORM1_WEIGHT,
    NORM1_BIAS,
    QKV_WEIGHT, /* queries, keys and values lie one after another: one [3q, h] matrix */
    KEY_WEIGHT,
    VALUE_WEIGHT,
    QKV_BIAS,
    KEY_BIAS,
    VALUE_BIAS,
    OUTPUT_WEIGHT,
    OUTPUT_BIAS,
    NORM2_WEIGHT,
    NORM2_BIAS,
    UP_WEIGHT,
    UP_BIAS,
    DOWN_WEIGHT,
    DOWN_BIAS
};

static void declare_matrix(struct declaration *out, const struct layer *layer, const char *path, int split,
                           const int64_t *shape, double deviation)
{
    const struct gpt2 *model = layer->model;
    struct parameter *parameter = declare_parameter(out, path, split, shape);
    parameter->stack_size = (int)model->layers;
    parameter->index = layer->index;
    parameter->element = model->element;
    parameter->decay = true;
    parameter->initializer = INITIALIZE_NORMAL;
    parameter->deviation = deviation;
}

static void declare_vector(struct declaration *out, const struct layer *layer, const char *path, int split,
                           const int64_t *shape, enum initializer initializer)
{
    const struct gpt2 *model = layer->model;
    struct parameter *parameter = declare_parameter(out, path, split, shape);
    parameter->stack_size = (int)model->layers;
    parameter->index = layer->index;
    parameter->initializer = initializer;
}

static void declare(const struct layer *layer, struct declaration *out)
{
    const struct gpt2 *model = layer->model;
    const int64_t h = model->hidden, f = model->ffn_hidden, n = model->heads, s = model->head_size;
    /* Projections that write into the residual stream are scaled down by the number of additions to it. */
    const double inner = model->init_std, outer = model->init_std / sqrt(2.0 * (double)model->layers);
    *out =
        (struct declaration){.reads = {"residual"}, .read_count = 1, .after = {gpt2_residual(model)}, .after_count = 1};
    declare_vector(out, layer, "blocks/attention_norm/weight", -1, (int64_t[]){h, 0}, INITIALIZE_ONES);
    declare_vector(out, layer, "blocks/attention_norm/bias", -1, (int64_t[]){h, 0}, INITIALIZE_ZEROS);
    declare_matrix(out, layer, "blocks/attention/query/weight", 0, (int64_t[]){n, s, h, 0}, inner);
    declare_matrix(out, layer, "blocks/attention/key/weight", 0, (int64_t[]){n, s, h, 0}, inner);
    declare_matrix(out, layer, "blocks/attention/value/weight", 0, (int64_t[]){n, s, h, 0}, inner);
    declare_vector(out, layer, "blocks/attention/query/bias", 0, (int64_t[]){n, s, 0}, INITIALIZE_ZEROS);
    declare_vector(out, layer, "blocks/attention/key/bias", 0, (int64_t[]){n, s, 0}, INITIALIZE_ZEROS);
    declare_vector(out, layer, "blocks/attention/value/bias", 0, (int64_t[]){n, s, 0}, INITIALIZE_ZEROS);
    declare_matrix(out, layer, "blocks/attention/output/weight", 1, (int64_t[]){h, n, s, 0}, outer);
    declare_vector(out, layer, "blocks/attention/output/bias", -1, (int64_t[]){h, 0}, INITIALIZE_ZEROS);
    declare_vector(out, layer, "blocks/mlp_norm/weight", -1, (int64_t[]){h, 0}, INITIALIZE_ONES);
    declare_vector(out, layer, "blocks/mlp_norm/bias", -1, (int64_t[]){h, 0}, INITIALIZE_ZEROS);
    declare_matrix(out, layer, "blocks/mlp/up/weight", 0, (int64_t[]){f, h, 0}, inner);
    declare_vector(out, layer, "blocks/mlp/up/bias", 0, (int64_t[]){f, 0}, INITIALIZE_ZEROS);
    declare_matrix(out, layer, "blocks/mlp/down/weight", 1, (int64_t[]){h, f, 0}, outer);
    declare_vector(out, layer, "blocks/mlp/down/bias", -1, (int64_t[]){h, 0}, INITIALIZE_ZEROS);
}

/* Widths and rows on this tensor rank. */
struct sizes {
    int64_t h, q, f;
    int64_t all, mine; /* rows R, S */
    enum element element;
    bool shared; /* S differs from R: sums scatter, inputs are gathered */
    struct attention_shape attention;
};

static struct sizes sizes_of(const struct gpt2 *model, const struct circumstances *circumstances, int64_t sequences)
{
    struct sizes z = {.h = model->hidden, .all = sequences * model->sequence, .element = model->element};
    int64_t heads = model->heads / circumstances->tensor;
    z.q = heads * model->head_size;
    z.f = model->ffn_hidden / circumstances->tensor;
    z.mine = context_rows(circumstances, z.all).count;
    z.shared = circumstances->sequence_parallel && circumstances->tensor > 1;
    z.attention = (struct attention_shape){sequences, model->sequence, (int)heads, (int)heads, (int)model->head_size};
    return z;
}

/* What the backward needs of the forward. The results of matmuls and attention come first; `selective` recomputes
 * the rest. */
struct activations {
    void *qkv;                            /* [R, 3q] */
    void *attended;                       /* [R, q] */
    float *logsumexp;                     /* [sequences, heads, length] */
    void *middle;                         /* [S, h]: x2 */
    void *up;                             /* [R, f], before the GELU */
    float *mean1, *rstd1, *mean2, *rstd2; /* [S] */
    void *norm1, *norm2;                  /* [S, h] */
    void *gelu;                           /* [R, f] */
};

static struct activations lay_matmul_results(const struct sizes *z, struct carve *carve)
{
    return (struct activations){.qkv = carve_elements(carve, z->element, z->all * 3 * z->q),
                                .attended = carve_elements(carve, z->element, z->all * z->q),
                                .logsumexp = carve_floats(carve, z->all * z->attention.heads),
                                .middle = carve_elements(carve, z->element, z->mine * z->h),
                                .up = carve_elements(carve, z->element, z->all * z->f)};
}

static void lay_rest(const struct sizes *z, struct carve *carve, struct activations *a)
{
    a->mean1 = carve_floats(carve, z->mine);
    a->rstd1 = carve_floats(carve, z->mine);
    a->mean2 = carve_floats(carve, z->mine);
    a->rstd2 = carve_floats(carve, z->mine);
    a->norm1 = carve_elements(carve, z->element, z->mine * z->h);
    a->norm2 = carve_elements(carve, z->element, z->mine * z->h);
    a->gelu = carve_elements(carve, z->element, z->all * z->f);
}

/* Kept are all activations, those of matmuls, or none. The others lie in the workspace during the forward; the backward
 * recomputes them into the pending set, where the weight gradient finds them. */
static struct activations lay_activations(const struct sizes *z, enum recompute_choice recompute, struct carve *kept,
                                          struct carve *others)
{
    struct activations a = lay_matmul_results(z, recompute == RECOMPUTE_FULL ? others : kept);
    lay_rest(z, recompute == RECOMPUTE_NONE ? kept : others, &a);
    return a;
}

/* Gradients that the weight gradient needs. */
struct gradients {
    void *qkv;    /* [R, 3q] */
    void *middle; /* [S, h] */
    void *up;     /* [R, f] */
};

static struct gradients lay_gradients(const struct sizes *z, struct carve *pending)
{
    return (struct gradients){.qkv = carve_elements(pending, z->element, z->all * 3 * z->q),
                              .middle = carve_elements(pending, z->element, z->mine * z->h),
                              .up = carve_elements(pending, z->element, z->all * z->f)};
}

/* Buffers of one call. */
struct workspace {
    void *whole1, *whole2; /* [R, h]: gathered rows, or rows before a scattering sum; NULL unless z.shared */
    void *rows;            /* [S, h]: gradient behind a norm */
    void *attended;        /* [R, q]: gradient of the attention's output */
    void *attention;       /* of the attention kernels */
};

static struct workspace lay_workspace(const struct sizes *z, const struct device *device, struct carve *carve)
{
    struct workspace w = {0};
    if (z->shared) {
        w.whole1 = carve_elements(carve, z->element, z->all * z->h);
        w.whole2 = carve_elements(carve, z->element, z->all * z->h);
    }
    w.rows = carve_elements(carve, z->element, z->mine * z->h);
    w.attended = carve_elements(carve, z->element, z->all * z->q);
    w.attention = carve_bytes(carve, device->attention_workspace(z->element, &z->attention));
    return w;
}

static struct layer_bytes bytes(const struct layer *layer, const struct circumstances *circumstances)
{
    struct sizes z = sizes_of(layer->model, circumstances, circumstances->sequences);
    struct carve kept = {0}, pending = {0}, workspace = {0}, forward = {0}, none = {0};
    lay_activations(&z, circumstances->recompute, &kept, &pending);
    lay_gradients(&z, &pending);
    lay_workspace(&z, circumstances->device, &workspace);
    lay_activations(&z, circumstances->recompute, &none, &forward);
    return (struct layer_bytes){kept.used, pending.used, workspace.used + forward.used};
}

static struct layer_costs costs(const struct layer *layer, const struct circumstances *circumstances)
{
    struct sizes z = sizes_of(layer->model, circumstances, circumstances->sequences);
    const double rows = (double)z.all, h = (double)z.h, q = (double)z.q, f = (double)z.f;
    const double projections = 2 * rows * 4 * q * h, mlp = 2 * rows * 2 * h * f;
    /* Scores and their use, half of them masked; the gradient recomputes the scores and has four more products. */
    const double attention = 2 * rows * (double)z.attention.length * q;
    struct layer_costs out = {.forward = projections + mlp + attention,
                              .input_gradient = projections + mlp + 2.5 * attention,
                              .weight_gradient = projections + mlp};
    if (circumstances->recompute == RECOMPUTE_FULL)
        out.input_gradient += projections + mlp / 2 + attention;
    if (circumstances->tensor == 1)
        return out;
    /* A sum, or a gather and a scatter, closes each half; the weight gradient gathers again what is shared out. */
    out.forward_sums.calls = out.input_sums.calls = 2;
    if (circumstances->recompute == RECOMPUTE_FULL)
        out.input_sums.calls += z.shared ? 1.5 : 1;
    out.weight_sums.calls = z.shared ? 2 : 0;
    out.forward_sums.elements = out.forward_sums.calls * rows * h;
    out.input_sums.elements = out.input_sums.calls * rows * h;
    out.weight_sums.elements = out.weight_sums.calls * rows * h;
    return out;
}

/* All activations from x. */
static void activate(const struct context *context, const struct passage *p, const struct sizes *z,
                     const struct activations *a, const struct workspace *w, double epsilon)
{
    const struct device *device = context->device;
    struct stream *stream = context->stream;
    device->norm(stream, z->element, a->norm1, a->mean1, a->rstd1, p->in[0], p->weights[NORM1_WEIGHT],
                 p->weights[NORM1_BIAS], z->mine, z->h, epsilon);
    const void *norm1 = context_tensor_gather(context, z->element, a->norm1, w->whole1, z->all, z->h);
    device->linear(stream, z->element, a->qkv, NULL, norm1, p->weights[QKV_WEIGHT], p->weights[QKV_BIAS], z->all, z->h,
                   3 * z->q, 3 * z->q);
    context_progress(context);
    device->attention(stream, z->element, a->attended, a->logsumexp, a->qkv, &z->attention, w->attention);
    context_progress(context);
    void *whole = z->shared ? w->whole1 : a->middle;
    device->linear(stream, z->element, whole, NULL, a->attended, p->weights[OUTPUT_WEIGHT], NULL, z->all, z->q, z->h,
                   z->h);
    context_tensor_sum(context, z->element, a->middle, whole, z->all, z->h);
    device->add_residual_norm(stream, z->element, a->middle, a->norm2, a->mean2, a->rstd2, p->in[0], a->middle,
                              p->weights[OUTPUT_BIAS], p->weights[NORM2_WEIGHT], p->weights[NORM2_BIAS], z->mine, z->h,
                              epsilon);
    context_progress(context);
    const void *norm2 = context_tensor_gather(context, z->element, a->norm2, w->whole1, z->all, z->h);
    device->linear(stream, z->element, a->up, a->gelu, norm2, p->weights[UP_WEIGHT], p->weights[UP_BIAS], z->all, z->h,
                   z->f, z->f);
    context_progress(context);
}

static void forward(const struct layer *layer, const struct context *context, const struct passage *p)
{
    const struct gpt2 *model = layer->model;
    const struct sizes z = sizes_of(model, &context->circumstances, p->sequences);
    struct carve kept = {.base = p->kept}, work = {.base = context->workspace};
    const struct workspace w = lay_workspace(&z, context->device, &work);
    const struct activations a = lay_activations(&z, context->circumstances.recompute, &kept, &work);
    activate(context, p, &z, &a, &w, model->norm_epsilon);
    void *whole = z.shared ? w.whole1 : p->out[0];
    context->device->linear(context->stream, z.element, whole, NULL, a.gelu, p->weights[DOWN_WEIGHT], NULL, z.all, z.f,
                            z.h, z.h);
    context_tensor_sum(context, z.element, p->out[0], whole, z.all, z.h);
    context->device->add_residual(context->stream, z.element, p->out[0], a.middle, p->out[0], p->weights[DOWN_BIAS],
                                  z.mine, z.h);
}

/* Brings back what the forward did not keep. */
static void recompute(const struct context *context, const struct passage *p, const struct sizes *z,
                      const struct activations *a, const struct workspace *w, double epsilon)
{
    const struct device *device = context->device;
    const bool told = context->recomputing && context->circumstances.recompute != RECOMPUTE_NONE;
    if (told)
        context->recomputing(context->progress_of);
    switch (context->circumstances.recompute) {
    case RECOMPUTE_NONE:
        break;
    case RECOMPUTE_SELECTIVE:
        device->norm(context->stream, z->element, a->norm1, a->mean1, a->rstd1, p->in[0], p->weights[NORM1_WEIGHT],
                     p->weights[NORM1_BIAS], z->mine, z->h, epsilon);
        device->norm(context->stream, z->element, a->norm2, a->mean2, a->rstd2, a->middle, p->weights[NORM2_WEIGHT],
                     p->weights[NORM2_BIAS], z->mine, z->h, epsilon);
        device->gelu(context->stream, z->element, a->gelu, a->up, z->all * z->f);
        break;
    case RECOMPUTE_FULL:
        activate(context, p, z, a, w, epsilon);
        break;
    }
    if (told)
        context->recomputing(context->progress_of);
}

static void backward_input(const struct layer *layer, const struct context *context, const struct passage *p)
{
    const struct gpt2 *model = layer->model;
    const struct device *device = context->device;
    struct stream *stream = context->stream;
    const struct sizes z = sizes_of(model, &context->circumstances, p->sequences);
    struct carve kept = {.base = p->kept}, pending = {.base = p->pending}, work = {.base = context->workspace};
    const struct workspace w = lay_workspace(&z, device, &work);
    const struct activations a = lay_activations(&z, context->circumstances.recompute, &kept, &pending);
    const struct gradients g = lay_gradients(&z, &pending);
    recompute(context, p, &z, &a, &w, model->norm_epsilon);

    const void *dy = context_tensor_gather(context, z.element, p->out_gradient[0], w.whole1, z.all, z.h);
    device->linear_input_gradient(stream, z.element, g.up, dy, p->weights[DOWN_WEIGHT], z.all, z.f, z.h, z.h);
    context_progress(context);
    device->gelu_gradient(stream, z.element, g.up, g.up, a.up, z.all * z.f);
    void *whole = z.shared ? w.whole1 : w.rows;
    device->linear_input_gradient(stream, z.element, whole, g.up, p->weights[UP_WEIGHT], z.all, z.h, z.f, z.f);
    context_progress(context);
    context_tensor_sum(context, z.element, w.rows, whole, z.all, z.h);
    device->norm_gradient(stream, z.element, g.middle, p->gradients[NORM2_WEIGHT], p->gradients[NORM2_BIAS], w.rows,
                          p->out_gradient[0], a.middle, a.mean2, a.rstd2, p->weights[NORM2_WEIGHT], z.mine, z.h,
                          p->accumulate);

    const void *dmiddle = context_tensor_gather(context, z.element, g.middle, w.whole1, z.all, z.h);
    device->linear_input_gradient(stream, z.element, w.attended, dmiddle, p->weights[OUTPUT_WEIGHT], z.all, z.q, z.h,
                                  z.h);
    context_progress(context);
    device->attention_gradient(stream, z.element, g.qkv, w.attended, a.qkv, a.attended, a.logsumexp, &z.attention,
                               w.attention);
    context_progress(context);
    device->linear_input_gradient(stream, z.element, whole, g.qkv, p->weights[QKV_WEIGHT], z.all, z.h, 3 * z.q,
                                  3 * z.q);
    context_progress(context);
    context_tensor_sum(context, z.element, w.rows, whole, z.all, z.h);
    device->norm_gradient(stream, z.element, p->in_gradient[0], p->gradients[NORM1_WEIGHT], p->gradients[NORM1_BIAS],
                          w.rows, g.middle, p->in[0], a.mean1, a.rstd1, p->weights[NORM1_WEIGHT], z.mine, z.h,
                          p->accumulate);
}

static void backward_weight(const struct layer *layer, const struct context *context, const struct passage *p)
{
    const struct device *device = context->device;
    struct stream *stream = context->stream;
    const struct sizes z = sizes_of(layer->model, &context->circumstances, p->sequences);
    struct carve kept = {.base = p->kept}, pending = {.base = p->pending}, work = {.base = context->workspace};
    const struct workspace w = lay_workspace(&z, device, &work);
    const struct activations a = lay_activations(&z, context->circumstances.recompute, &kept, &pending);
    const struct gradients g = lay_gradients(&z, &pending);

    const void *dy = context_tensor_gather(context, z.element, p->out_gradient[0], w.whole1, z.all, z.h);
    device->linear_weight_gradient(stream, z.element, p->gradients[DOWN_WEIGHT], NULL, dy, a.gelu, z.all, z.f, z.h, z.h,
                                   p->accumulate);
    device->column_sums(stream, z.element, p->gradients[DOWN_BIAS], p->out_gradient[0], z.mine, z.h, z.h,
                        p->accumulate);
    context_progress(context);
    const void *norm2 = context_tensor_gather(context, z.element, a.norm2, w.whole2, z.all, z.h);
    device->linear_weight_gradient(stream, z.element, p->gradients[UP_WEIGHT], p->gradients[UP_BIAS], g.up, norm2,
                                   z.all, z.h, z.f, z.f, p->accumulate);
    context_progress(context);
    const void *dmiddle = context_tensor_gather(context, z.element, g.middle, w.whole1, z.all, z.h);
    device->linear_weight_gradient(stream, z.element, p->gradients[OUTPUT_WEIGHT], NULL, dmiddle, a.attended, z.all,
                                   z.q, z.h, z.h, p->accumulate);
    device->column_sums(stream, z.element, p->gradients[OUTPUT_BIAS], g.middle, z.mine, z.h, z.h, p->accumulate);
    context_progress(context);
    const void *norm1 = context_tensor_gather(context, z.element, a.norm1, w.whole2, z.all, z.h);
    device->linear_weight_gradient(stream, z.element, p->gradients[QKV_WEIGHT], p->gradients[QKV_BIAS], g.qkv, norm1,
                                   z.all, z.h, 3 * z.q, 3 * z.q, p->accumulate);
    context_progress(context);
}

const struct layer_kind gpt2_block = {"block", declare, bytes, costs, forward, backward_input, backward_weight};
