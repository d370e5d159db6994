/* gpt2's head and loss: cross-entropy of norm(x) W^T against the targets. The vocabulary is split over the tensor
 * ranks; logits are never gathered, three numbers a row are (Shoeybi et al., 2019, section 3).
 *
 * Logits are the largest activation of a model: they are held for one microbatch at most. Where no more than one
 * microbatch is ever between forward and backward here, the forward leaves the logits' gradient in their place for the
 * backward; elsewhere the backward computes them again. */
#include "model/gpt2.h"

enum {
    NORM_WEIGHT,
    NORM_BIAS,
    HEAD_WEIGHT
};

static void declare(const struct layer *layer, struct declaration *out)
{
    const struct gpt2 *model = layer->model;
    *out = (struct declaration){
        .reads = {"residual"}, .read_count = 1, .fields = {"targets"}, .field_count = 1, .loss = true};
    struct parameter *norm = declare_parameter(out, "final_norm/weight", -1, (int64_t[]){model->hidden, 0});
    norm->initializer = INITIALIZE_ONES;
    declare_parameter(out, "final_norm/bias", -1, (int64_t[]){model->hidden, 0});
    struct parameter *head = declare_parameter(out, model->tied_embeddings ? "embedding/token" : "head/weight", 0,
                                               (int64_t[]){model->vocabulary, model->hidden, 0});
    head->element = model->element;
    head->decay = true;
    head->initializer = INITIALIZE_NORMAL;
    head->deviation = model->init_std;
    head->tied = model->tied_embeddings;
}

struct sizes {
    int64_t h, all, mine; /* hidden; rows: all, this tensor rank's share */
    struct share words;   /* of the vocabulary */
    int64_t pitch;        /* from one row of logits to the next */
    bool shared;          /* rows are shared out */
    bool keep_gradient;   /* the logits' gradient stays from forward to backward */
    enum element element;
};

static struct sizes sizes_of(const struct gpt2 *model, const struct circumstances *circumstances, int64_t sequences)
{
    enum {
        LINE = 64
    }; /* elements: rows of logits begin at multiples of 128 bytes */
    int64_t rows = sequences * model->sequence;
    struct share words = share_of(model->vocabulary, circumstances->tensor, circumstances->t);
    return (struct sizes){.h = model->hidden,
                          .all = rows,
                          .mine = context_rows(circumstances, rows).count,
                          .words = words,
                          .pitch = (words.count + LINE - 1) / LINE * LINE,
                          .shared = circumstances->sequence_parallel && circumstances->tensor > 1,
                          .keep_gradient = circumstances->live <= 1,
                          .element = model->element};
}

struct buffers {
    float *mean, *rstd; /* [S] */
    void *norm;         /* [S, h] */
    void *logits;       /* [R, words] with a pitch, then their gradient */
    float *losses;      /* [R]: where they are computed again, to be thrown away */
    float *statistics;  /* [T, R, 3] */
    void *whole;        /* [R, h]: gathered rows, or rows before a scattering sum; NULL unless shared */
    void *rows;         /* [S, h]: gradient behind the norm */
};

/* The norm's results are kept unless the mode recomputes them. */
static struct buffers lay_buffers(const struct sizes *z, const struct circumstances *circumstances, struct carve *kept,
                                  struct carve *pending, struct carve *workspace)
{
    struct buffers b = {0};
    struct carve *norm = circumstances->recompute == RECOMPUTE_NONE ? kept : pending;
    b.mean = carve_floats(norm, z->mine);
    b.rstd = carve_floats(norm, z->mine);
    b.norm = carve_elements(norm, z->element, z->mine * z->h);
    b.logits = carve_elements(z->keep_gradient ? kept : pending, z->element, z->all * z->pitch);
    b.losses = carve_floats(workspace, z->all);
    b.statistics = carve_floats(workspace, circumstances->tensor * z->all * 3);
    if (z->shared)
        b.whole = carve_elements(workspace, z->element, z->all * z->h);
    b.rows = carve_elements(workspace, z->element, z->mine * z->h);
    return b;
}

static struct layer_bytes bytes(const struct layer *layer, const struct circumstances *circumstances)
{
    struct sizes z = sizes_of(layer->model, circumstances, circumstances->sequences);
    struct carve kept = {0}, pending = {0}, workspace = {0};
    lay_buffers(&z, circumstances, &kept, &pending, &workspace);
    return (struct layer_bytes){kept.used, pending.used, workspace.used + pending.used}; /* pending's in the forward */
}

static struct layer_costs costs(const struct layer *layer, const struct circumstances *circumstances)
{
    struct sizes z = sizes_of(layer->model, circumstances, circumstances->sequences);
    double product = 2 * (double)z.all * (double)z.h * (double)z.words.count;
    struct layer_costs out = {
        .forward = product, .input_gradient = z.keep_gradient ? product : 2 * product, .weight_gradient = product};
    if (circumstances->tensor == 1)
        return out;
    /* Three numbers a row from each rank are gathered for the loss; with rows shared out the norm is gathered too. */
    const double rows = (double)z.all * (double)z.h, gather = z.shared ? 0.5 : 0;
    const struct layer_sums loss = {gather * rows + 1.5 * circumstances->tensor * (double)z.all, gather + 0.5};
    out.forward_sums = loss;
    out.input_sums = (struct layer_sums){z.shared ? rows / 2 : rows, z.shared ? 0.5 : 1};
    if (!z.keep_gradient) {
        out.input_sums.elements += loss.elements;
        out.input_sums.calls += loss.calls;
    }
    out.weight_sums = (struct layer_sums){gather * rows, gather};
    return out;
}

static void normalize(const struct layer *layer, const struct context *context, const struct passage *p,
                      const struct sizes *z, const struct buffers *b)
{
    const struct gpt2 *model = layer->model;
    context->device->norm(context->stream, z->element, b->norm, b->mean, b->rstd, p->in[0], p->weights[NORM_WEIGHT],
                          p->weights[NORM_BIAS], z->mine, z->h, model->norm_epsilon);
}

/* losses [R] and, unless `gradient` is NULL, the logits' gradient in their place. */
static void cross_entropy(const struct context *context, const struct passage *p, const struct sizes *z,
                          const struct buffers *b, float *losses, void *gradient)
{
    const struct device *device = context->device;
    struct communicator *tensor = context->tensor;
    const void *norm = context_tensor_gather(context, z->element, b->norm, b->whole, z->all, z->h);
    device->linear(context->stream, z->element, b->logits, NULL, norm, p->weights[HEAD_WEIGHT], NULL, z->all, z->h,
                   z->words.count, z->pitch);
    context_progress(context);
    float *mine = b->statistics + tensor->rank * z->all * 3;
    device->cross_entropy_statistics(context->stream, z->element, mine, b->logits, p->fields[0], z->all, z->words.first,
                                     z->words.count, z->pitch);
    context_tensor_collect(context, b->statistics, z->all * 3);
    device->cross_entropy(context->stream, z->element, losses, gradient, b->logits, p->fields[0], b->statistics, z->all,
                          z->words.first, z->words.count, z->pitch, tensor->size, context->loss_scale);
    context_progress(context);
}

static void forward(const struct layer *layer, const struct context *context, const struct passage *p)
{
    const struct sizes z = sizes_of(layer->model, &context->circumstances, p->sequences);
    struct carve kept = {.base = p->kept}, workspace = {.base = context->workspace};
    const struct buffers b = lay_buffers(&z, &context->circumstances, &kept, &workspace, &workspace);
    normalize(layer, context, p, &z, &b);
    cross_entropy(context, p, &z, &b, p->losses, context->training && z.keep_gradient ? b.logits : NULL);
}

static struct buffers backward_buffers(const struct sizes *z, const struct context *context, const struct passage *p)
{
    struct carve kept = {.base = p->kept}, pending = {.base = p->pending}, workspace = {.base = context->workspace};
    return lay_buffers(z, &context->circumstances, &kept, &pending, &workspace);
}

static void backward_input(const struct layer *layer, const struct context *context, const struct passage *p)
{
    const struct sizes z = sizes_of(layer->model, &context->circumstances, p->sequences);
    const struct buffers b = backward_buffers(&z, context, p);
    if (context->circumstances.recompute != RECOMPUTE_NONE)
        normalize(layer, context, p, &z, &b);
    if (!z.keep_gradient)
        cross_entropy(context, p, &z, &b, b.losses, b.logits);
    void *whole = z.shared ? b.whole : b.rows;
    context->device->linear_input_gradient(context->stream, z.element, whole, b.logits, p->weights[HEAD_WEIGHT], z.all,
                                           z.h, z.words.count, z.pitch);
    context_progress(context);
    context_tensor_sum(context, z.element, b.rows, whole, z.all, z.h);
    context->device->norm_gradient(context->stream, z.element, p->in_gradient[0], p->gradients[NORM_WEIGHT],
                                   p->gradients[NORM_BIAS], b.rows, NULL, p->in[0], b.mean, b.rstd,
                                   p->weights[NORM_WEIGHT], z.mine, z.h, p->accumulate);
}

static void backward_weight(const struct layer *layer, const struct context *context, const struct passage *p)
{
    const struct sizes z = sizes_of(layer->model, &context->circumstances, p->sequences);
    const struct buffers b = backward_buffers(&z, context, p);
    const void *norm = context_tensor_gather(context, z.element, b.norm, b.whole, z.all, z.h);
    context->device->linear_weight_gradient(context->stream, z.element, p->gradients[HEAD_WEIGHT], NULL, b.logits, norm,
                                            z.all, z.h, z.words.count, z.pitch, p->accumulate);
    context_progress(context);
}

const struct layer_kind gpt2_head = {"head", declare, bytes, costs, forward, backward_input, backward_weight};
