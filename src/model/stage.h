/* A stage: a contiguous slice of the model's layers, run for one microbatch at a time in memory that is given to it. */
#ifndef MODEL_STAGE_H
#define MODEL_STAGE_H

#include "model/parameters.h"

/* Bytes for a full microbatch on this rank. */
struct stage_bytes {
    size_t input, output; /* messages: all boundary tensors before and behind the stage; 0 at the model's ends */
    size_t set;           /* an activation set: from forward to the end of the backward */
    size_t pending;       /* a pending set: from input gradient to weight gradient */
    size_t workspace;     /* within one call */
};

struct stage;

enum stage_pass {
    PASS_FORWARD,
    PASS_INPUT, /* input gradient */
    PASS_WEIGHT /* weight gradient */
};

/* What one layer has just computed, for those who look into it. */
struct stage_look {
    enum stage_pass pass;
    int layer, local_layer; /* in the model, among the rank's layers */
    int microbatch;
    const struct passage *passage;
};

/* What one microbatch needs at a stage; buffers of at least the sizes above, 64-byte aligned. */
struct stage_run {
    int64_t sequences;
    const char *input;        /* activations before the stage; until the end of the backward */
    char *output;             /* activations behind it, written by the forward */
    const char *out_gradient; /* gradient of the output; until the end of the backward */
    char *in_gradient;        /* gradient of the input, written by the (input) backward */
    char *set, *pending;
    const int32_t *const *fields; /* [stage_field_count] in the order of stage_field */
    float *losses;                /* [sequences * sequence] where the stage has the loss */
    bool accumulate_input;        /* false for the step's first (full or input) backward of the stage */
    bool accumulate_weight;       /* false for the step's first (full or weight) backward of the stage */
    int microbatch;               /* its number, for inspect */
    void (*inspect)(void *of, const struct stage_look *look); /* or NULL: called behind each computation of a layer */
    void (*layer_begin)(void *of, int local_layer);           /* or NULL: called before a layer's forward */
    void (*layer_done)(void *of, int local_layer); /* or NULL: called when a layer's weight gradient is finished */
    void *of;
};

/* `split`: input and weight gradients run apart, so every layer needs a pending area of its own; otherwise layers share
 * one. local_layer: the number of the slice's first layer among the rank's layers. Owned by the caller; stage_destroy
 * accepts NULL. */
struct stage *stage_create(const struct model *model, struct slice slice, const struct circumstances *circumstances,
                           bool split, const struct parameters *parameters, int local_layer);
void stage_destroy(struct stage *stage);

/* Sizes, before any memory is there. */
const struct stage_bytes *stage_bytes(const struct stage *stage);

/* Bytes of scratch for the sums over the tensor ranks of any of its boundary tensors. */
size_t stage_tensor_scratch(const struct stage *stage, const struct communicator *tensor);

/* Tells where the rank's arenas are: what computations read of the weights, and the gradients (NULL without training).
 */
void stage_attach(struct stage *stage, const char *computed, float *gradients);

/* Bytes of the messages before and behind the stage for a microbatch of `sequences`. */
size_t stage_input_bytes(const struct stage *stage, int64_t sequences);
size_t stage_output_bytes(const struct stage *stage, int64_t sequences);

/* Fields of the batch that the stage's layers read. */
int stage_field_count(const struct stage *stage);
const char *stage_field(const struct stage *stage, int field);

bool stage_has_loss(const struct stage *stage);
struct slice stage_slice(const struct stage *stage);

/* The computations. stage_backward is the input gradient followed by the weight gradient of each layer in turn. */
void stage_forward(const struct stage *stage, const struct context *context, const struct stage_run *run);
void stage_backward(const struct stage *stage, const struct context *context, const struct stage_run *run);
void stage_backward_input(const struct stage *stage, const struct context *context, const struct stage_run *run);
void stage_backward_weight(const struct stage *stage, const struct context *context, const struct stage_run *run);

#endif
