#include "model/family.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/gpt2.h"

static const struct boundary *find_boundary(const struct declaration *declaration, const char *name)
{
    for (int i = 0; i < declaration->after_count; i++)
        if (strcmp(declaration->after[i].name, name) == 0)
            return &declaration->after[i];
    return NULL;
}

/* Every tensor that a layer reads or lets pass must cross the boundary before it, with one shape. */
static int check_boundaries(const struct model *model, int layer, struct err *err)
{
    static const struct declaration nothing;
    const struct declaration *before = layer > 0 ? &model->declarations[layer - 1] : &nothing;
    const struct declaration *here = &model->declarations[layer];
    const char *kind = model->layers[layer].kind->name;
    for (int i = 0; i < here->read_count; i++)
        if (!find_boundary(before, here->reads[i]))
            return err_set(err, "layer %d (%s) reads '%s', which no layer before it hands on", layer, kind,
                           here->reads[i]);
    for (int i = 0; i < here->after_count; i++) {
        const struct boundary *after = &here->after[i];
        const struct boundary *same = find_boundary(before, after->name);
        if (!after->written && (!same || same->width != after->width ||
                                same->rows_per_sequence != after->rows_per_sequence || same->element != after->element))
            return err_set(err, "layer %d (%s) lets '%s' pass, which does not come to it in that shape", layer, kind,
                           after->name);
    }
    for (int i = 0; i < before->after_count; i++) {
        const struct boundary *behind = find_boundary(here, before->after[i].name);
        bool used = behind && !behind->written;
        for (int j = 0; j < here->read_count; j++)
            used = used || strcmp(here->reads[j], before->after[i].name) == 0;
        if (!used)
            return err_set(err, "layer %d (%s) neither reads nor hands on '%s'", layer, kind, before->after[i].name);
    }
    return 0;
}

int model_blocks(const struct model *model, int first, int last)
{
    return last - first - (first == 0) - (last == model->layer_count);
}

int model_declare(struct model *model, struct err *err)
{
    model->declarations = allocate((size_t)model->layer_count, sizeof *model->declarations);
    for (int i = 0; i < model->layer_count; i++) {
        model->layers[i].kind->declare(&model->layers[i], &model->declarations[i]);
        if (check_boundaries(model, i, err) < 0)
            return -1;
    }
    if (model->declarations[model->layer_count - 1].after_count > 0)
        return err_set(err, "the last layer hands on a tensor that nobody takes");
    return 0;
}

struct boundary gpt2_residual(const struct gpt2 *model)
{
    return (struct boundary){"residual", model->sequence, model->hidden, model->element, true};
}

static int create_gpt2(struct model *model, const struct settings *settings, struct err *err)
{
    struct gpt2 *gpt2 = allocate(1, sizeof *gpt2);
    *gpt2 = (struct gpt2){.layers = settings->model.layers,
                          .hidden = settings->model.hidden,
                          .heads = settings->model.heads,
                          .head_size = settings->model.hidden / settings->model.heads,
                          .ffn_hidden =
                              settings->model.ffn_hidden ? settings->model.ffn_hidden : 4 * settings->model.hidden,
                          .sequence = settings->model.sequence,
                          .vocabulary = settings->model.vocabulary,
                          .tied_embeddings = settings->model.tied_embeddings,
                          .element = settings->run.precision == PRECISION_BF16 ? ELEMENT_BFLOAT16 : ELEMENT_FLOAT32,
                          .norm_epsilon = settings->model.norm_epsilon,
                          .init_std = settings->model.init_std};
    int blocks = (int)gpt2->layers;
    *model = (struct model){.layer_count = blocks + 2, .sequence = gpt2->sequence, .description = gpt2};
    model->layers = allocate((size_t)model->layer_count, sizeof *model->layers);
    model->layers[0] = (struct layer){&gpt2_embedding, gpt2, 0};
    for (int i = 0; i < blocks; i++)
        model->layers[1 + i] = (struct layer){&gpt2_block, gpt2, i};
    model->layers[blocks + 1] = (struct layer){&gpt2_head, gpt2, 0};
    return model_declare(model, err);
}

int model_create(struct model *model, const struct settings *settings, struct err *err)
{
    switch (settings->model.family) {
    case FAMILY_GPT2:
        return create_gpt2(model, settings, err);
    case FAMILY_LLAMA:
        break;
    }
    return err_set(err, "&model family = '%s' is not built yet; 'gpt2' is", family_names[settings->model.family]);
}

void model_destroy(struct model *model)
{
    free(model->layers);
    free(model->declarations);
    free(model->description);
    *model = (struct model){0};
}
