/* Families of models: from the settings to a sequence of layers. A new family is a file of layers and a row here. */
#ifndef MODEL_FAMILY_H
#define MODEL_FAMILY_H

#include "base/error.h"
#include "model/layer.h"

struct model {
    int layer_count;                  /* at least 2 */
    struct layer *layers;             /* in order */
    struct declaration *declarations; /* of each layer */
    int64_t sequence;                 /* tokens of one sequence */
    void *description;                /* the family's own */
};

/* The model of settings->model. Returns 0, or -1 with *err for a family that is not built or settings that contradict
 * each other; *model is to be released with model_destroy only after success. Local. */
int model_create(struct model *model, const struct settings *settings, struct err *err);
void model_destroy(struct model *model);

/* The number of blocks among the layers first ... last - 1, as stage_layers and balance = 'uniform' count them: every
 * layer but the model's first and last is one. */
int model_blocks(const struct model *model, int first, int last);

/* Completes a model whose layers, layer_count and sequence are set: declarations, and checks of what they say. For
 * families. */
int model_declare(struct model *model, struct err *err);

#endif
