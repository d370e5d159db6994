/* The gpt2 family: token and position embeddings, pre-norm transformer blocks, final norm and head (Radford et al.,
 * 2019). */
#ifndef MODEL_GPT2_H
#define MODEL_GPT2_H

#include "model/layer.h"

struct gpt2 {
    int64_t layers, hidden, heads, head_size, ffn_hidden, sequence, vocabulary;
    bool tied_embeddings;
    enum element element; /* of activations, matrices and embeddings; biases and norms are float32 */
    double norm_epsilon, init_std;
};

/* The layer kinds, one file each. `model` of their layers is a struct gpt2. */
extern const struct layer_kind gpt2_embedding, gpt2_block, gpt2_head;

/* The tensor that goes from layer to layer: the residual stream [rows, hidden]. */
struct boundary gpt2_residual(const struct gpt2 *model);

#endif
