/* The layers of tests/two_stacks.h, from the kernels of the device and plain loops: for CPUs. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "two_stacks.h"

static const struct layer_kind source_kind, encoder_kind, fold_kind, entry_kind, decoder_kind, revise_kind, head_kind;

static struct boundary notes(bool written)
{
    return (struct boundary){"notes", SEQUENCE, WIDTH, ELEMENT_FLOAT32, written};
}

static struct boundary memory(bool written)
{
    return (struct boundary){"memory", GROUPS, FOLD * WIDTH, ELEMENT_FLOAT32, written};
}

static struct boundary stream(bool written)
{
    return (struct boundary){"stream", SEQUENCE, WIDTH, ELEMENT_FLOAT32, written};
}

static void add_after(struct declaration *out, struct boundary boundary)
{
    out->after[out->after_count++] = boundary;
}

static struct parameter *add_normal(struct declaration *out, const char *path, int split, const int64_t *shape,
                                    double deviation)
{
    struct parameter *parameter = declare_parameter(out, path, split, shape);
    parameter->initializer = INITIALIZE_NORMAL;
    parameter->deviation = deviation;
    parameter->decay = true;
    return parameter;
}

static void add_stacked(struct declaration *out, const char *path, int split, const int64_t *shape, int stack_size,
                        int index)
{
    struct parameter *parameter = add_normal(out, path, split, shape, 0.3);
    parameter->stack_size = stack_size;
    parameter->index = index;
}

/* The weight of three layers. */
static void add_tied(struct declaration *out)
{
    add_normal(out, "shared/token", 0, (int64_t[]){VOCABULARY, WIDTH, 0}, 0.5)->tied = true;
}

static bool reads_memory(const struct layer *layer)
{
    return layer->kind == &decoder_kind && layer->index % 2 == 0;
}

/* This rank's columns inside an encoder or decoder, and tokens of the vocabulary. */
static int64_t inner_of(const struct circumstances *circumstances)
{
    return share_of(INNER, circumstances->tensor, circumstances->t).count;
}

static struct share words_of(const struct circumstances *circumstances)
{
    return share_of(VOCABULARY, circumstances->tensor, circumstances->t);
}

static bool is_shared(const struct circumstances *circumstances)
{
    return circumstances->sequence_parallel && circumstances->tensor > 1;
}

/* Room for all rows of a tensor where a rank holds a share of them, else NULL. */
static float *whole_rows(const struct circumstances *circumstances, struct carve *carve, int64_t rows, int64_t width)
{
    return is_shared(circumstances) ? carve_floats(carve, rows * width) : NULL;
}

/* Source and entry: rows of the table, and behind the fold positions too. */

static void declare_source(const struct layer *layer, struct declaration *out)
{
    (void)layer;
    *out = (struct declaration){.fields = {"inputs"}, .field_count = 1};
    add_tied(out);
    add_after(out, notes(true));
}

static void declare_entry(const struct layer *layer, struct declaration *out)
{
    (void)layer;
    *out = (struct declaration){.fields = {"inputs"}, .field_count = 1};
    add_tied(out);
    add_normal(out, "entry/position", -1, (int64_t[]){SEQUENCE, WIDTH, 0}, 0.5);
    add_after(out, memory(false));
    add_after(out, stream(true));
}

static struct layer_bytes tokens_bytes(const struct layer *layer, const struct circumstances *circumstances)
{
    (void)layer;
    struct carve workspace = {0};
    whole_rows(circumstances, &workspace, circumstances->sequences * SEQUENCE, WIDTH);
    return (struct layer_bytes){.workspace = workspace.used};
}

static struct layer_costs tokens_costs(const struct layer *layer, const struct circumstances *circumstances)
{
    (void)layer;
    double elements = (double)(circumstances->sequences * SEQUENCE * WIDTH);
    return (struct layer_costs){.forward = elements, .weight_gradient = elements};
}

static void tokens_forward(const struct layer *layer, const struct context *context, const struct passage *p)
{
    const struct circumstances *c = &context->circumstances;
    const int out = layer->kind == &entry_kind ? 1 : 0;
    const int64_t rows = p->sequences * SEQUENCE;
    struct carve workspace = {.base = context->workspace};
    float *whole = whole_rows(c, &workspace, rows, WIDTH);
    if (!whole)
        whole = p->out[out];
    context->device->embedding(context->stream, ELEMENT_FLOAT32, whole, p->fields[0], p->weights[0],
                               layer->kind == &entry_kind && c->t == 0 ? p->weights[1] : NULL, rows, WIDTH, SEQUENCE,
                               words_of(c).first, words_of(c).count);
    context_tensor_sum(context, ELEMENT_FLOAT32, p->out[out], whole, rows, WIDTH);
}

static void tokens_backward_input(const struct layer *layer, const struct context *context, const struct passage *p)
{
    (void)layer, (void)context, (void)p; /* it reads no tensor */
}

static void tokens_backward_weight(const struct layer *layer, const struct context *context, const struct passage *p)
{
    const struct circumstances *c = &context->circumstances;
    const int64_t rows = p->sequences * SEQUENCE;
    const struct share mine = context_rows(c, rows);
    const float *dy = p->out_gradient[layer->kind == &entry_kind ? 1 : 0];
    struct carve workspace = {.base = context->workspace};
    float *whole = whole_rows(c, &workspace, rows, WIDTH);
    if (layer->kind == &entry_kind)
        context->device->position_gradient(context->stream, ELEMENT_FLOAT32, p->gradients[1], dy, mine.count, WIDTH,
                                           SEQUENCE, mine.first, p->accumulate);
    dy = context_tensor_gather(context, ELEMENT_FLOAT32, dy, whole, rows, WIDTH);
    context->device->embedding_gradient(context->stream, ELEMENT_FLOAT32, p->gradients[0], dy, p->fields[0], rows,
                                        WIDTH, words_of(c).first, words_of(c).count, p->accumulate);
}

/* Encoders and decoders: y = x + down gelu(up x + bias + cross m), m the memory of the token's group for those that
 * read it. Tensor ranks split the inner columns. */

enum {
    UP,
    BIAS,
    DOWN,
    ACROSS
};

static void declare_mix(const struct layer *layer, struct declaration *out)
{
    const bool decoder = layer->kind == &decoder_kind;
    const int count = decoder ? DECODERS : ENCODERS, i = layer->index;
    *out = (struct declaration){.reads = {decoder ? "stream" : "notes"}, .read_count = 1};
    add_stacked(out, decoder ? "decoder/up" : "encoder/up", 0, (int64_t[]){INNER, WIDTH, 0}, count, i);
    add_stacked(out, decoder ? "decoder/bias" : "encoder/bias", 0, (int64_t[]){INNER, 0}, count, i);
    add_stacked(out, decoder ? "decoder/down" : "encoder/down", 1, (int64_t[]){WIDTH, INNER, 0}, count, i);
    if (reads_memory(layer)) {
        out->reads[out->read_count++] = "memory";
        add_stacked(out, "decoder/cross", 0, (int64_t[]){INNER, FOLD * WIDTH, 0}, READERS, i / 2);
    }
    if (decoder && i < DECODERS - 1)
        add_after(out, memory(false));
    add_after(out, decoder ? stream(true) : notes(true));
}

struct mix {
    int64_t rows, groups, inner; /* all rows, this rank's columns */
    int64_t mine, mine_groups;   /* this rank's rows */
    int out;                     /* place of its tensor in the boundary behind it */
    float *up, *active;          /* [rows, inner] before and behind the GELU */
    float *dup, *dcross;         /* [rows, inner], [groups, inner] gradients before the GELU and summed over groups */
    float *cross;                /* [groups, inner] */
    float *x, *m, *y;            /* whole rows, and whole groups, where a rank holds a share */
    float *dx, *dm;              /* [mine, width], [mine_groups, fold * width] */
};

/* The forward has what is not kept in the workspace, the backward in the pending set. */
static struct mix lay_mix(const struct layer *layer, const struct circumstances *c, int64_t sequences,
                          struct carve *kept, struct carve *others, struct carve *pending, struct carve *workspace)
{
    struct mix z = {.rows = sequences * SEQUENCE, .groups = sequences * GROUPS, .inner = inner_of(c)};
    z.mine = context_rows(c, z.rows).count;
    z.mine_groups = context_rows(c, z.groups).count;
    z.out = layer->kind == &decoder_kind && layer->index < DECODERS - 1 ? 1 : 0;
    z.up = carve_floats(c->recompute == RECOMPUTE_FULL ? others : kept, z.rows * z.inner);
    z.active = carve_floats(c->recompute == RECOMPUTE_NONE ? kept : others, z.rows * z.inner);
    z.dup = carve_floats(pending, z.rows * z.inner);
    z.dcross = carve_floats(pending, z.groups * z.inner);
    z.cross = carve_floats(workspace, z.groups * z.inner);
    z.x = whole_rows(c, workspace, z.rows, WIDTH);
    z.m = whole_rows(c, workspace, z.groups, FOLD * WIDTH);
    z.y = whole_rows(c, workspace, z.rows, WIDTH);
    z.dx = carve_floats(workspace, z.mine * WIDTH);
    z.dm = carve_floats(workspace, z.mine_groups * FOLD * WIDTH);
    return z;
}

static struct layer_bytes mix_bytes(const struct layer *layer, const struct circumstances *circumstances)
{
    struct carve kept = {0}, others = {0}, pending = {0}, workspace = {0};
    lay_mix(layer, circumstances, circumstances->sequences, &kept, &others, &pending, &workspace);
    return (struct layer_bytes){kept.used, others.used + pending.used, workspace.used + others.used + pending.used};
}

static struct layer_costs mix_costs(const struct layer *layer, const struct circumstances *circumstances)
{
    double rows = (double)(circumstances->sequences * SEQUENCE), inner = (double)inner_of(circumstances);
    double product = 4 * rows * inner * WIDTH + (reads_memory(layer) ? 2 * rows * inner * WIDTH : 0);
    return (struct layer_costs){.forward = product, .input_gradient = product, .weight_gradient = product};
}

static void activate(const struct layer *layer, const struct context *context, const struct passage *p,
                     const struct mix *z)
{
    const struct device *device = context->device;
    const float *x = context_tensor_gather(context, ELEMENT_FLOAT32, p->in[0], z->x, z->rows, WIDTH);
    device->linear(context->stream, ELEMENT_FLOAT32, z->up, NULL, x, p->weights[UP], p->weights[BIAS], z->rows, WIDTH,
                   z->inner, z->inner);
    if (reads_memory(layer)) {
        const float *m = context_tensor_gather(context, ELEMENT_FLOAT32, p->in[1], z->m, z->groups, FOLD * WIDTH);
        device->linear(context->stream, ELEMENT_FLOAT32, z->cross, NULL, m, p->weights[ACROSS], NULL, z->groups,
                       FOLD * WIDTH, z->inner, z->inner);
        for (int64_t row = 0; row < z->rows; row++)
            for (int64_t i = 0; i < z->inner; i++)
                z->up[row * z->inner + i] += z->cross[row / FOLD * z->inner + i];
    }
    device->gelu(context->stream, ELEMENT_FLOAT32, z->active, z->up, z->rows * z->inner);
    context_progress(context);
}

static void mix_forward(const struct layer *layer, const struct context *context, const struct passage *p)
{
    const struct circumstances *c = &context->circumstances;
    struct carve kept = {.base = p->kept}, work = {.base = context->workspace};
    const struct mix z = lay_mix(layer, c, p->sequences, &kept, &work, &work, &work);
    activate(layer, context, p, &z);
    float *y = p->out[z.out], *whole = is_shared(c) ? z.y : y;
    context->device->linear(context->stream, ELEMENT_FLOAT32, whole, NULL, z.active, p->weights[DOWN], NULL, z.rows,
                            z.inner, WIDTH, WIDTH);
    context_tensor_sum(context, ELEMENT_FLOAT32, y, whole, z.rows, WIDTH);
    const float *x = p->in[0];
    for (int64_t i = 0; i < z.mine * WIDTH; i++)
        y[i] += x[i];
}

static void mix_backward_input(const struct layer *layer, const struct context *context, const struct passage *p)
{
    const struct device *device = context->device;
    const struct circumstances *c = &context->circumstances;
    struct carve kept = {.base = p->kept}, pending = {.base = p->pending}, work = {.base = context->workspace};
    const struct mix z = lay_mix(layer, c, p->sequences, &kept, &pending, &pending, &work);
    if (c->recompute == RECOMPUTE_FULL)
        activate(layer, context, p, &z);
    else if (c->recompute == RECOMPUTE_SELECTIVE)
        device->gelu(context->stream, ELEMENT_FLOAT32, z.active, z.up, z.rows * z.inner);
    const float *dy = context_tensor_gather(context, ELEMENT_FLOAT32, p->out_gradient[z.out], z.y, z.rows, WIDTH);
    device->linear_input_gradient(context->stream, ELEMENT_FLOAT32, z.dup, dy, p->weights[DOWN], z.rows, z.inner, WIDTH,
                                  WIDTH);
    device->gelu_gradient(context->stream, ELEMENT_FLOAT32, z.dup, z.dup, z.up, z.rows * z.inner);
    float *whole = is_shared(c) ? z.x : z.dx;
    device->linear_input_gradient(context->stream, ELEMENT_FLOAT32, whole, z.dup, p->weights[UP], z.rows, WIDTH,
                                  z.inner, z.inner);
    context_tensor_sum(context, ELEMENT_FLOAT32, z.dx, whole, z.rows, WIDTH);
    const float *straight = p->out_gradient[z.out];
    float *dx = p->in_gradient[0];
    for (int64_t i = 0; i < z.mine * WIDTH; i++)
        dx[i] = z.dx[i] + straight[i];
    context_progress(context);
    if (!reads_memory(layer))
        return;
    for (int64_t group = 0; group < z.groups; group++)
        for (int64_t i = 0; i < z.inner; i++) {
            z.dcross[group * z.inner + i] = 0;
            for (int64_t row = group * FOLD; row < (group + 1) * FOLD; row++)
                z.dcross[group * z.inner + i] += z.dup[row * z.inner + i];
        }
    whole = is_shared(c) ? z.m : z.dm;
    device->linear_input_gradient(context->stream, ELEMENT_FLOAT32, whole, z.dcross, p->weights[ACROSS], z.groups,
                                  FOLD * WIDTH, z.inner, z.inner);
    context_tensor_sum(context, ELEMENT_FLOAT32, z.dm, whole, z.groups, FOLD * WIDTH);
    const float *pass = p->pass_gradient[1];
    float *dm = p->in_gradient[1];
    for (int64_t i = 0; i < z.mine_groups * FOLD * WIDTH; i++)
        dm[i] = z.dm[i] + (pass ? pass[i] : 0);
}

static void mix_backward_weight(const struct layer *layer, const struct context *context, const struct passage *p)
{
    const struct device *device = context->device;
    struct carve kept = {.base = p->kept}, pending = {.base = p->pending}, work = {.base = context->workspace};
    const struct mix z = lay_mix(layer, &context->circumstances, p->sequences, &kept, &pending, &pending, &work);
    const float *dy = context_tensor_gather(context, ELEMENT_FLOAT32, p->out_gradient[z.out], z.y, z.rows, WIDTH);
    device->linear_weight_gradient(context->stream, ELEMENT_FLOAT32, p->gradients[DOWN], NULL, dy, z.active, z.rows,
                                   z.inner, WIDTH, WIDTH, p->accumulate);
    const float *x = context_tensor_gather(context, ELEMENT_FLOAT32, p->in[0], z.x, z.rows, WIDTH);
    device->linear_weight_gradient(context->stream, ELEMENT_FLOAT32, p->gradients[UP], p->gradients[BIAS], z.dup, x,
                                   z.rows, WIDTH, z.inner, z.inner, p->accumulate);
    if (!reads_memory(layer))
        return;
    const float *m = context_tensor_gather(context, ELEMENT_FLOAT32, p->in[1], z.m, z.groups, FOLD * WIDTH);
    device->linear_weight_gradient(context->stream, ELEMENT_FLOAT32, p->gradients[ACROSS], NULL, z.dcross, m, z.groups,
                                   FOLD * WIDTH, z.inner, z.inner, p->accumulate);
}

/* Fold: the rows of a group beside each other make one of the memory, m = x + x^2. Row by row they lie alike; only the
 * tensor ranks' shares differ. No parameters. */

static void declare_fold(const struct layer *layer, struct declaration *out)
{
    (void)layer;
    *out = (struct declaration){.reads = {"notes"}, .read_count = 1};
    add_after(out, memory(true));
}

static struct layer_bytes fold_bytes(const struct layer *layer, const struct circumstances *circumstances)
{
    return tokens_bytes(layer, circumstances);
}

/* Some blocks' worth, so that it gets a stage of its own where there are several, and a rank without parameters. */
static struct layer_costs fold_costs(const struct layer *layer, const struct circumstances *circumstances)
{
    (void)layer;
    double much = (double)(circumstances->sequences * SEQUENCE) * 20 * INNER * WIDTH;
    return (struct layer_costs){.forward = much, .input_gradient = 2 * much};
}

static void fold_forward(const struct layer *layer, const struct context *context, const struct passage *p)
{
    (void)layer;
    const struct circumstances *c = &context->circumstances;
    struct carve workspace = {.base = context->workspace};
    float *whole = whole_rows(c, &workspace, p->sequences * SEQUENCE, WIDTH);
    const float *x = context_tensor_gather(context, ELEMENT_FLOAT32, p->in[0], whole, p->sequences * SEQUENCE, WIDTH);
    const struct share mine = context_rows(c, p->sequences * GROUPS);
    x += mine.first * FOLD * WIDTH;
    float *m = p->out[0];
    for (int64_t i = 0; i < mine.count * FOLD * WIDTH; i++)
        m[i] = x[i] + x[i] * x[i];
}

static void fold_backward_input(const struct layer *layer, const struct context *context, const struct passage *p)
{
    (void)layer;
    const struct circumstances *c = &context->circumstances;
    struct carve workspace = {.base = context->workspace};
    float *whole = whole_rows(c, &workspace, p->sequences * GROUPS, FOLD * WIDTH);
    const float *dm =
        context_tensor_gather(context, ELEMENT_FLOAT32, p->out_gradient[0], whole, p->sequences * GROUPS, FOLD * WIDTH);
    const struct share mine = context_rows(c, p->sequences * SEQUENCE);
    dm += mine.first * WIDTH;
    const float *x = p->in[0];
    float *dx = p->in_gradient[0];
    for (int64_t i = 0; i < mine.count * WIDTH; i++)
        dx[i] = dm[i] * (1 + 2 * x[i]);
}

static void no_weight_gradient(const struct layer *layer, const struct context *context, const struct passage *p)
{
    (void)layer, (void)context, (void)p;
}

/* Revise: m' = m + gain m^2, element by element. */

static void declare_revise(const struct layer *layer, struct declaration *out)
{
    (void)layer;
    *out = (struct declaration){.reads = {"memory"}, .read_count = 1};
    add_normal(out, "revise/gain", -1, (int64_t[]){FOLD * WIDTH, 0}, 0.3)->decay = false;
    add_after(out, memory(true));
    add_after(out, stream(false));
}

static struct layer_bytes revise_bytes(const struct layer *layer, const struct circumstances *circumstances)
{
    (void)layer, (void)circumstances;
    return (struct layer_bytes){0};
}

static void revise_forward(const struct layer *layer, const struct context *context, const struct passage *p)
{
    (void)layer;
    const struct share mine = context_rows(&context->circumstances, p->sequences * GROUPS);
    const float *m = p->in[0], *gain = p->weights[0];
    float *revised = p->out[0];
    for (int64_t i = 0; i < mine.count * FOLD * WIDTH; i++)
        revised[i] = m[i] + gain[i % (FOLD * WIDTH)] * m[i] * m[i];
}

static void revise_backward_input(const struct layer *layer, const struct context *context, const struct passage *p)
{
    (void)layer;
    const struct share mine = context_rows(&context->circumstances, p->sequences * GROUPS);
    const float *m = p->in[0], *gain = p->weights[0], *drevised = p->out_gradient[0];
    float *dm = p->in_gradient[0];
    for (int64_t i = 0; i < mine.count * FOLD * WIDTH; i++)
        dm[i] = drevised[i] * (1 + 2 * gain[i % (FOLD * WIDTH)] * m[i]);
}

static void revise_backward_weight(const struct layer *layer, const struct context *context, const struct passage *p)
{
    (void)layer;
    const struct share mine = context_rows(&context->circumstances, p->sequences * GROUPS);
    const float *m = p->in[0], *drevised = p->out_gradient[0];
    for (int64_t column = 0; column < FOLD * WIDTH; column++) {
        float sum = 0;
        for (int64_t i = column; i < mine.count * FOLD * WIDTH; i += FOLD * WIDTH)
            sum += drevised[i] * m[i] * m[i];
        p->gradients[0][column] = sum + (p->accumulate ? p->gradients[0][column] : 0);
    }
}

/* Head: cross-entropy of the stream times the table. Unless everything is computed again the forward leaves the logits'
 * gradient for the backward. */

static void declare_head(const struct layer *layer, struct declaration *out)
{
    (void)layer;
    *out = (struct declaration){
        .reads = {"stream"}, .read_count = 1, .fields = {"targets"}, .field_count = 1, .loss = true};
    add_tied(out);
}

struct head {
    int64_t rows;
    float *logits;          /* [rows, words], then their gradient */
    float *statistics;      /* [T, rows, 3] */
    float *losses;          /* [rows] computed again, to be thrown away */
    float *whole, *partial; /* [rows, width] all rows where they are shared; a gradient before its sum */
};

static struct head lay_head(const struct circumstances *c, int64_t sequences, struct carve *logits,
                            struct carve *workspace)
{
    struct head z = {.rows = sequences * SEQUENCE};
    z.logits = carve_floats(logits, z.rows * words_of(c).count);
    z.statistics = carve_floats(workspace, c->tensor * z.rows * 3);
    z.losses = carve_floats(workspace, z.rows);
    z.whole = whole_rows(c, workspace, z.rows, WIDTH);
    z.partial = whole_rows(c, workspace, z.rows, WIDTH);
    return z;
}

static struct layer_bytes head_bytes(const struct layer *layer, const struct circumstances *circumstances)
{
    (void)layer;
    struct carve logits = {0}, workspace = {0};
    lay_head(circumstances, circumstances->sequences, &logits, &workspace);
    bool keeps = circumstances->recompute != RECOMPUTE_FULL;
    return (struct layer_bytes){keeps ? logits.used : 0, keeps ? 0 : logits.used, workspace.used + logits.used};
}

static struct layer_costs head_costs(const struct layer *layer, const struct circumstances *circumstances)
{
    (void)layer;
    double product = 2.0 * (double)(circumstances->sequences * SEQUENCE * WIDTH * words_of(circumstances).count);
    return (struct layer_costs){.forward = product, .input_gradient = product, .weight_gradient = product};
}

static void cross_entropy(const struct context *context, const struct passage *p, const struct head *z, float *losses)
{
    const struct device *device = context->device;
    const struct share words = words_of(&context->circumstances);
    const float *x = context_tensor_gather(context, ELEMENT_FLOAT32, p->in[0], z->whole, z->rows, WIDTH);
    device->linear(context->stream, ELEMENT_FLOAT32, z->logits, NULL, x, p->weights[0], NULL, z->rows, WIDTH,
                   words.count, words.count);
    device->cross_entropy_statistics(context->stream, ELEMENT_FLOAT32,
                                     z->statistics + context->tensor->rank * z->rows * 3, z->logits, p->fields[0],
                                     z->rows, words.first, words.count, words.count);
    context_tensor_collect(context, z->statistics, z->rows * 3);
    device->cross_entropy(context->stream, ELEMENT_FLOAT32, losses, context->training ? z->logits : NULL, z->logits,
                          p->fields[0], z->statistics, z->rows, words.first, words.count, words.count,
                          context->tensor->size, context->loss_scale);
    context_progress(context);
}

static struct head backward_head(const struct context *context, const struct passage *p)
{
    const struct circumstances *c = &context->circumstances;
    struct carve logits = {.base = c->recompute == RECOMPUTE_FULL ? p->pending : p->kept};
    struct carve workspace = {.base = context->workspace};
    return lay_head(c, p->sequences, &logits, &workspace);
}

static void head_forward(const struct layer *layer, const struct context *context, const struct passage *p)
{
    (void)layer;
    const struct circumstances *c = &context->circumstances;
    struct carve kept = {.base = p->kept}, workspace = {.base = context->workspace};
    const struct head z = lay_head(c, p->sequences, c->recompute == RECOMPUTE_FULL ? &workspace : &kept, &workspace);
    cross_entropy(context, p, &z, p->losses);
}

static void head_backward_input(const struct layer *layer, const struct context *context, const struct passage *p)
{
    (void)layer;
    const struct circumstances *c = &context->circumstances;
    const struct head z = backward_head(context, p);
    if (c->recompute == RECOMPUTE_FULL)
        cross_entropy(context, p, &z, z.losses);
    float *whole = is_shared(c) ? z.partial : p->in_gradient[0];
    context->device->linear_input_gradient(context->stream, ELEMENT_FLOAT32, whole, z.logits, p->weights[0], z.rows,
                                           WIDTH, words_of(c).count, words_of(c).count);
    context_tensor_sum(context, ELEMENT_FLOAT32, p->in_gradient[0], whole, z.rows, WIDTH);
}

static void head_backward_weight(const struct layer *layer, const struct context *context, const struct passage *p)
{
    (void)layer;
    const struct head z = backward_head(context, p);
    const int64_t words = words_of(&context->circumstances).count;
    const float *x = context_tensor_gather(context, ELEMENT_FLOAT32, p->in[0], z.whole, z.rows, WIDTH);
    context->device->linear_weight_gradient(context->stream, ELEMENT_FLOAT32, p->gradients[0], NULL, z.logits, x,
                                            z.rows, WIDTH, words, words, p->accumulate);
}

static const struct layer_kind source_kind = {
    "source",       declare_source,        tokens_bytes,          tokens_costs,
    tokens_forward, tokens_backward_input, tokens_backward_weight};
static const struct layer_kind encoder_kind = {"encoder",   declare_mix,        mix_bytes,          mix_costs,
                                               mix_forward, mix_backward_input, mix_backward_weight};
static const struct layer_kind fold_kind = {"fold",       declare_fold,        fold_bytes,        fold_costs,
                                            fold_forward, fold_backward_input, no_weight_gradient};
static const struct layer_kind entry_kind = {"entry",        declare_entry,         tokens_bytes,          tokens_costs,
                                             tokens_forward, tokens_backward_input, tokens_backward_weight};
static const struct layer_kind decoder_kind = {"decoder",   declare_mix,        mix_bytes,          mix_costs,
                                               mix_forward, mix_backward_input, mix_backward_weight};
static const struct layer_kind revise_kind = {
    "revise",       declare_revise,        revise_bytes,          tokens_costs,
    revise_forward, revise_backward_input, revise_backward_weight};
static const struct layer_kind head_kind = {"head",       declare_head,        head_bytes,          head_costs,
                                            head_forward, head_backward_input, head_backward_weight};

static void add_layer(struct model *model, const struct layer_kind *kind, int index)
{
    model->layers[model->layer_count++] = (struct layer){kind, NULL, index};
}

int two_stacks_create(struct model *model, struct err *err)
{
    *model = (struct model){.sequence = SEQUENCE};
    model->layers = allocate(ENCODERS + DECODERS + 5, sizeof *model->layers);
    add_layer(model, &source_kind, 0);
    for (int i = 0; i < ENCODERS; i++)
        add_layer(model, &encoder_kind, i);
    add_layer(model, &fold_kind, 0);
    add_layer(model, &entry_kind, 0);
    for (int i = 0; i < DECODERS; i++) {
        if (i == REVISE_AFTER)
            add_layer(model, &revise_kind, 0);
        add_layer(model, &decoder_kind, i);
    }
    add_layer(model, &head_kind, 0);
    return model_declare(model, err);
}
