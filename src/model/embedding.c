/* gpt2's embedding: y = token[input] + position. The token table is split over the tensor ranks by vocabulary; a rank
 * adds the rows it has and the sum over ranks completes them. */
#include "model/gpt2.h"

enum {
    TOKEN,
    POSITION
};

static void declare(const struct layer *layer, struct declaration *out)
{
    const struct gpt2 *model = layer->model;
    *out =
        (struct declaration){.after = {gpt2_residual(model)}, .after_count = 1, .fields = {"inputs"}, .field_count = 1};
    struct parameter *token =
        declare_parameter(out, "embedding/token", 0, (int64_t[]){model->vocabulary, model->hidden, 0});
    token->element = model->element;
    token->decay = true;
    token->initializer = INITIALIZE_NORMAL;
    token->deviation = model->init_std;
    token->tied = model->tied_embeddings;
    struct parameter *position =
        declare_parameter(out, "embedding/position", -1, (int64_t[]){model->sequence, model->hidden, 0});
    position->element = model->element;
    position->decay = true;
    position->initializer = INITIALIZE_NORMAL;
    position->deviation = model->init_std;
}

/* All rows before the sum over tensor ranks, or all rows' gradient: only needed where a rank keeps a share of them. */
static void *whole_rows(const struct gpt2 *model, const struct circumstances *circumstances, struct carve *carve)
{
    return circumstances->sequence_parallel && circumstances->tensor > 1
               ? carve_elements(carve, model->element, circumstances->sequences * model->sequence * model->hidden)
               : NULL;
}

static struct layer_bytes bytes(const struct layer *layer, const struct circumstances *circumstances)
{
    struct carve workspace = {0};
    whole_rows(layer->model, circumstances, &workspace);
    return (struct layer_bytes){.workspace = workspace.used};
}

static struct layer_costs costs(const struct layer *layer, const struct circumstances *circumstances)
{
    const struct gpt2 *model = layer->model;
    double elements = (double)(circumstances->sequences * model->sequence) * (double)model->hidden;
    struct layer_costs out = {.forward = elements, .weight_gradient = 2 * elements};
    if (circumstances->tensor == 1)
        return out;
    const double half = circumstances->sequence_parallel ? 0.5 : 0;
    out.forward_sums = (struct layer_sums){(1 - half) * elements, 1 - half};
    out.weight_sums = (struct layer_sums){half * elements, half};
    return out;
}

static void forward(const struct layer *layer, const struct context *context, const struct passage *passage)
{
    const struct gpt2 *model = layer->model;
    const struct circumstances *circumstances = &context->circumstances;
    struct carve carve = {.base = context->workspace};
    void *whole = whole_rows(model, circumstances, &carve);
    if (!whole)
        whole = passage->out[0];
    int64_t rows = passage->sequences * model->sequence;
    struct share words = share_of(model->vocabulary, circumstances->tensor, circumstances->t);
    /* One rank alone adds the position: zeros from the others leave the sum's bits as they are. */
    context->device->embedding(context->stream, model->element, whole, passage->fields[0], passage->weights[TOKEN],
                               circumstances->t == 0 ? passage->weights[POSITION] : NULL, rows, model->hidden,
                               model->sequence, words.first, words.count);
    context_tensor_sum(context, model->element, passage->out[0], whole, rows, model->hidden);
}

static void backward_input(const struct layer *layer, const struct context *context, const struct passage *passage)
{
    (void)layer, (void)context, (void)passage; /* nothing is before it */
}

static void backward_weight(const struct layer *layer, const struct context *context, const struct passage *passage)
{
    const struct gpt2 *model = layer->model;
    const struct circumstances *circumstances = &context->circumstances;
    struct carve carve = {.base = context->workspace};
    void *whole = whole_rows(model, circumstances, &carve);
    int64_t rows = passage->sequences * model->sequence;
    struct share mine = context_rows(circumstances, rows);
    struct share words = share_of(model->vocabulary, circumstances->tensor, circumstances->t);
    const void *dy = passage->out_gradient[0];
    context->device->position_gradient(context->stream, model->element, passage->gradients[POSITION], dy, mine.count,
                                       model->hidden, model->sequence, mine.first, passage->accumulate);
    dy = context_tensor_gather(context, model->element, dy, whole, rows, model->hidden);
    context->device->embedding_gradient(context->stream, model->element, passage->gradients[TOKEN], dy,
                                        passage->fields[0], rows, model->hidden, words.first, words.count,
                                        passage->accumulate);
}

const struct layer_kind gpt2_embedding = {"embedding", declare, bytes, costs, forward, backward_input, backward_weight};
