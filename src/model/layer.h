/* A model is a sequence of layers, and this is all that the rest of the program knows of one.
 *
 * A layer declares its parameters, the tensors that cross its boundaries, the fields of the batch that it reads, what
 * it computes and what it stores; and it has a forward, an input gradient and a weight gradient. A full backward is the
 * input gradient followed by the weight gradient.
 *
 * Rows are tokens. A microbatch of n sequences has n * rows_per_sequence rows of a boundary tensor; with sequence
 * parallelism a tensor rank holds its share of them (share_of), otherwise all. */
#ifndef MODEL_LAYER_H
#define MODEL_LAYER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/settings.h"
#include "kernels/kernels.h"
#include "parallel/communicator.h"

#define LAYER_MAX_PARAMETERS 24
#define LAYER_MAX_BOUNDARIES 4
#define LAYER_MAX_FIELDS 4
#define PARAMETER_MAX_AXES 4

enum initializer {
    INITIALIZE_ZEROS,
    INITIALIZE_ONES,
    INITIALIZE_NORMAL
};

/* A logical parameter. Its tensor in the checkpoint is [stack_size, shape...] when it belongs to a stack. */
struct parameter {
    char path[96];  /* below /model: "blocks/attention/query/weight"; with its index it names the parameter */
    int stack_size; /* layers in its stack; 0: belongs to none */
    int index;      /* of this layer in the stack */
    int axes;
    int64_t shape[PARAMETER_MAX_AXES];
    int split;            /* axis that is split over the tensor ranks, -1: every one holds all of it */
    enum element element; /* in which the layers read it; the optimizer keeps float32 beside anything else */
    bool decay;           /* weight decay applies */
    enum initializer initializer;
    double deviation; /* of INITIALIZE_NORMAL */
    bool tied;        /* parameters with equal path and index in several layers are one: their gradients add up */
};

/* A tensor that crosses the boundary behind a layer. */
struct boundary {
    const char *name;
    int64_t rows_per_sequence, width;
    enum element element;
    bool written; /* by this layer; otherwise it passes through from the boundary before */
};

/* What a layer says of itself; the same on every rank. */
struct declaration {
    struct parameter parameters[LAYER_MAX_PARAMETERS];
    int parameter_count;
    const char *reads[LAYER_MAX_BOUNDARIES]; /* tensors of the boundary before that it reads */
    int read_count;
    struct boundary after[LAYER_MAX_BOUNDARIES]; /* the boundary behind it, whole: written and passing tensors */
    int after_count;
    const char *fields[LAYER_MAX_FIELDS]; /* of the batch: "inputs", "targets" [sequences, sequence] int32 */
    int field_count;
    bool loss; /* its forward writes the losses */
};

/* Under which circumstances a layer runs: what sizes and costs depend on besides the model. */
struct circumstances {
    int64_t sequences; /* in a full microbatch */
    int tensor, t;     /* number of tensor ranks, this one */
    bool sequence_parallel;
    enum recompute_choice recompute;
    const struct device *device; /* whose kernels' own workspace counts */
    int live; /* the largest number of microbatches between their forward and their backward on this stage */
};

/* Bytes for one microbatch on one rank. */
struct layer_bytes {
    size_t kept;      /* from forward to the end of the weight gradient */
    size_t pending;   /* from input gradient to weight gradient */
    size_t workspace; /* within one call */
};

/* Sums over the tensor ranks in one call: how many elements, in how many sums. A gather or a scatter alone is half a
 * sum. */
struct layer_sums {
    double elements, calls;
};

/* Floating-point operations for one full microbatch on one rank; recomputation belongs to the input gradient. The sums
 * are 0 on one tensor rank. */
struct layer_costs {
    double forward, input_gradient, weight_gradient;
    struct layer_sums forward_sums, input_sums, weight_sums;
};

/* What every call gets; the same for all layers and microbatches of a rank. */
struct context {
    const struct device *device;
    struct stream *stream;
    struct communicator *tensor; /* the tensor ranks */
    void *workspace;             /* of the largest layer */
    void *tensor_scratch;        /* context_tensor_scratch() bytes: for the sums over tensor ranks */
    int64_t *tensor_counts;      /* [tensor ranks] in host memory, for these sums too */
    struct circumstances circumstances;
    bool training;                 /* false: forward alone, nothing is kept */
    double loss_scale;             /* gradients are of loss_scale * sum of losses: 1 / tokens of the global batch */
    void (*progress)(void *of);    /* called between matmuls, so that messages move */
    void (*recomputing)(void *of); /* or NULL: called where a layer begins to recompute, and where it ends */
    void *progress_of;             /* of both */
};

/* One microbatch going through one layer. */
struct passage {
    int64_t sequences;                               /* in this microbatch, at most circumstances.sequences */
    const void *in[LAYER_MAX_BOUNDARIES];            /* as declared in reads; valid until the weight gradient */
    void *out[LAYER_MAX_BOUNDARIES];                 /* as declared in after; only the written ones */
    const void *out_gradient[LAYER_MAX_BOUNDARIES];  /* likewise; valid until the weight gradient */
    void *in_gradient[LAYER_MAX_BOUNDARIES];         /* as declared in reads: to be written */
    const void *pass_gradient[LAYER_MAX_BOUNDARIES]; /* likewise: what to add where the tensor also passes, or NULL */
    const int32_t *fields[LAYER_MAX_FIELDS];         /* as declared */
    float *losses;                                   /* [rows] of the layer that declares the loss */
    const void *const *weights;                      /* as declared in parameters, this tensor rank's shares */
    float *const *gradients;                         /* likewise */
    void *kept, *pending;
    bool accumulate; /* false for the first call of its kind in a step: gradients of weights are written, not added */
};

struct layer;

struct layer_kind {
    const char *name;
    void (*declare)(const struct layer *layer, struct declaration *out);
    struct layer_bytes (*bytes)(const struct layer *layer, const struct circumstances *circumstances);
    struct layer_costs (*costs)(const struct layer *layer, const struct circumstances *circumstances);
    void (*forward)(const struct layer *layer, const struct context *context, const struct passage *passage);
    void (*backward_input)(const struct layer *layer, const struct context *context, const struct passage *passage);
    void (*backward_weight)(const struct layer *layer, const struct context *context, const struct passage *passage);
};

struct layer {
    const struct layer_kind *kind;
    const void *model; /* the family's own description, shared by its layers */
    int index;         /* in the layer's stack */
};

/* The share of `count` things that rank t of T holds: ranks before the last ones have ceil(count / T). */
struct share {
    int64_t first, count;
};
struct share share_of(int64_t count, int ranks, int rank);

/* Rows of a boundary with `rows` rows that this tensor rank holds. */
struct share context_rows(const struct circumstances *circumstances, int64_t rows);

/* Bytes of a boundary tensor on this tensor rank for a microbatch of `sequences`. */
size_t boundary_bytes(const struct boundary *boundary, const struct circumstances *circumstances, int64_t sequences);

/* Lets messages move; to be called between matmuls. */
void context_progress(const struct context *context);

/* Sums over tensor ranks of whole [rows, width]: with sequence parallelism this rank's rows of the sum go to mine;
 * otherwise whole is replaced by the sum, and mine must be whole. */
void context_tensor_sum(const struct context *context, enum element element, void *mine, void *whole, int64_t rows,
                        int64_t width);

/* All rows from the tensor ranks' shares: with sequence parallelism gathers into whole and returns it, otherwise
 * returns mine. */
const void *context_tensor_gather(const struct context *context, enum element element, const void *mine, void *whole,
                                  int64_t rows, int64_t width);

/* Every tensor rank has written its part [rank] of all [tensor ranks, count]: afterwards all have all of it. */
void context_tensor_collect(const struct context *context, float *all, int64_t count);

/* Bytes of scratch for sums of up to rows * width elements over the tensor ranks. */
size_t context_tensor_scratch(const struct communicator *tensor, enum element element, int64_t rows, int64_t width);

/* Lays out buffers one after another at 64-byte boundaries. With base NULL it only counts, so that a layout function
 * gives both the pointers and the size. */
struct carve {
    char *base;
    size_t used;
};
void *carve_bytes(struct carve *carve, size_t bytes);
void *carve_elements(struct carve *carve, enum element element, int64_t count);
float *carve_floats(struct carve *carve, int64_t count);

/* Fills in one parameter; returns it for what is seldom set. `shape` ends with 0. */
struct parameter *declare_parameter(struct declaration *out, const char *path, int split, const int64_t *shape);

#endif
