/* A rank's parameters: which shares of which logical parameters its stages hold, and where these lie in the arenas of
 * weights and gradients. (Where the optimizer's moments lie: shards.h.)
 *
 * Arenas are float32 arrays with the same layout: layer after layer in the order of its stages, each layer's parameters
 * without gaps in the order of its declaration (so that queries, keys and values make one matrix), each layer starting
 * at a multiple of 16 elements. A tied parameter of which an earlier layer of this rank holds an end already uses that
 * end's weights; its gradients lie behind everything else, because each end accumulates its own.
 *
 * Where some parameters are read as something else than float32, what computations read is an arena of its own with the
 * same order: parameters of one element type that follow each other in a layer lie without gaps, each such run starts
 * at a multiple of 64 bytes. Otherwise computations read the arena of weights itself. */
#ifndef MODEL_PARAMETERS_H
#define MODEL_PARAMETERS_H

#include "model/family.h"

/* One parameter of one layer on this rank. */
struct parameter_share {
    const struct parameter *parameter;
    int layer;            /* in the model */
    int stage;            /* of the pipeline */
    int logical;          /* number of the logical parameter in the whole model; equal for the ends of a tie */
    int64_t weight;       /* offset in the arena of weights, elements */
    int64_t computed;     /* offset in what computations read, bytes */
    int64_t gradient;     /* offset in the arena of gradients; equal to weight for all but later ends of a tie */
    int64_t count;        /* elements of the share */
    int64_t outer, inner; /* elements before and behind the split axis */
    struct share split;   /* of the split axis; whole axis where nothing is split */
    int64_t split_size;   /* of the whole split axis */
    bool owner;           /* no earlier layer of the whole model holds this parameter: it counts in norms and files */
};

struct parameters {
    struct parameter_share *shares; /* layer by layer */
    int count;
    int *layer_first; /* [local layers + 1] index of a local layer's first share */
    int local_layers;
    int64_t weight_elements;   /* of the arena of weights */
    int64_t gradient_elements; /* of the arena of gradients: at least weight_elements */
    size_t computed_bytes;     /* of an arena of their own for computations; 0: they read the weights' */
    int logical_count;         /* logical parameters of the whole model */
};

/* A stage's slice of the model's layers. */
struct slice {
    int stage;
    int first, last; /* layers first ... last - 1 */
};

/* The parameters of the slices that a rank holds, on tensor rank t of T. */
void parameters_create(struct parameters *parameters, const struct model *model, const struct slice *slices,
                       int slice_count, int tensor, int t);
void parameters_destroy(struct parameters *parameters);

/* Whether two declarations are ends of one tied parameter. */
bool parameters_same(const struct parameter *a, const struct parameter *b);

/* The number of parameter `index` of a layer among the logical parameters of the whole model. */
int parameters_logical(const struct model *model, int layer, int index);

/* Numbers of elements in the whole model: each logical parameter once. */
int64_t parameters_total(const struct model *model);

/* Numbers of elements in layers first ... last - 1, each parameter once in each layer. */
int64_t parameters_in_layers(const struct model *model, int first, int last);

/* Writes the initial weights of elements first ... first + count - 1 of a share to host memory, keyed by (seed, name,
 * logical index): the same numbers on every grid. */
void parameters_initialize(const struct parameter_share *share, uint64_t seed, int64_t first, int64_t count,
                           float *weights);

#endif
