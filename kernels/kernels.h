/* The one table of device operations: memory, streams, events and kernels. kernels/cpu fills it with BLAS, OpenMP and
 * SIMD; a build for another kind of device fills it again. Nothing else in the program touches device memory.
 *
 * Conventions
 * - Every kernel is queued on `stream` and is finished for the host after stream_wait or an event behind it. On the CPU
 *   a kernel has finished when it returns.
 * - Matrices are row-major without gaps, but for those with a `pitch`: what lies between their rows is neither read nor
 *   written. "rows" are tokens; every count may be 0.
 * - A weight is [out, in]: y = x W^T + bias.
 * - Arrays that are `void *` have elements of the type `element`: activations, their gradients, and the matrices and
 *   embeddings that they meet. All others are float32: biases, norms' weights, statistics, losses, gradients of
 * weights. Arithmetic and sums are in float32 or better; a result is rounded once, when it is stored, and what the same
 * call computes from it is computed from the rounded one, so that computing it again later gives the same bits.
 * - `accumulate`: false writes the result, true adds to what is there. Gradients of weights are written by the first
 *   microbatch of a step and accumulated by the later ones, so they need no clearing pass.
 * - Outputs do not overlap inputs unless the comment says so.
 * - Deterministic: for equal shapes and an equal number of threads the same bits come out on every call, wherever the
 *   buffers lie; those of a device's matmuls may depend on how they are aligned up to 16 bytes.
 * - Failures of the device end the job (fatal()); kernels return nothing. */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum element {
    ELEMENT_FLOAT32,
    ELEMENT_BFLOAT16 /* the upper half of a float32, rounded to nearest even; infinities and NaN stay what they are */
};

static inline size_t element_bytes(enum element element)
{
    return element == ELEMENT_BFLOAT16 ? 2 : 4;
}

struct stream; /* a queue of work */
struct event;  /* a point in a queue */

/* Shape of a multi-head attention over the fused projections. In `qkv` [rows, (heads + 2*kv_heads) * head_size] a row
 * holds all queries, then all keys, then all values of a token; rows = sequences * length, sequence after sequence.
 * Query head h reads key/value head h / (heads / kv_heads). Causal, scores scaled by 1/sqrt(head_size). */
struct attention_shape {
    int64_t sequences, length;
    int heads, kv_heads, head_size;
};

/* A range of parameters for the optimizer: `count` elements that follow one another, and where the first of them lies
 * in each arena. */
struct optimizer_range {
    int64_t count;
    int64_t weight, moment, gradient; /* elements from the arenas' starts; both moments lie alike */
    int64_t computed;                 /* bytes from the start of the weights that computations read */
    enum element element;             /* of these */
    bool decay;                       /* weight decay applies */
};

/* One AdamW step (Loshchilov and Hutter, 2019, algorithm 2): with g = gradient * scale,
 *   w -= learning_rate * weight_decay * w               (ranges with decay)
 *   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
 *   w -= learning_rate * (m / correction1) / (sqrt(v / correction2) + epsilon),   correction_i = 1 - beta_i^step */
struct adamw {
    double learning_rate, beta1, beta2, epsilon, weight_decay;
    double correction1, correction2;
    double scale; /* of the gradients: clipping */
};

/* Sums of squares are taken over blocks of this many consecutive elements and added in index order, whatever the
 * number of threads. */
#define SQUARES_BLOCK 16384

struct device {
    const char *name;

    /* Its memory is the host's, which reads and writes it like any other. */
    bool host_memory;

    /* Memory: 64-byte aligned at least, contents undefined; NULL when there is not enough. */
    void *(*allocate)(size_t bytes);
    void (*release)(void *memory, size_t bytes); /* NULL is allowed */
    /* The same for memory of the host that copies to and from the device go through without the host's help. */
    void *(*host_allocate)(size_t bytes);
    void (*host_release)(void *memory, size_t bytes);
    /* Device or host on either side. Memory of host_allocate belongs to the copy until it is done; other memory of the
     * host has been read, or written, when the call returns. */
    void (*copy)(struct stream *stream, void *to, const void *from, size_t bytes);
    void (*zero)(struct stream *stream, void *memory, size_t bytes);
    /* Bytes of the device's memory: all there is, of the whole node on the CPU; and what this process has taken, by its
     * libraries too: now, and at most so far. */
    size_t (*memory_size)(void);
    size_t (*memory_taken)(void);
    size_t (*memory_peak)(void);

    /* Streams and events. An event tells when all work queued before event_record has ended. */
    struct stream *(*stream_open)(void);
    void (*stream_close)(struct stream *stream);
    void (*stream_wait)(struct stream *stream); /* the host waits until the stream is empty */
    struct event *(*event_open)(void);
    void (*event_close)(struct event *event);
    void (*event_record)(struct stream *stream, struct event *event);
    void (*event_wait)(struct stream *stream, struct event *event); /* the stream waits for the event */
    bool (*event_done)(struct event *event);
    double (*event_seconds)(struct event *event); /* when it happened, on base/trace.h's clock; waits for it */

    /* Matmuls. x [rows, in], w [out, in], y and dy [rows, out]. Rows of y and dy begin `pitch` >= out elements after
     * one another: a product whose `out` is odd may so have rows that a device can read at full speed. */

    /* y = x w^T (+ bias[out] unless NULL; a device may round it to an element first); where `activated` is not NULL,
     * which needs pitch = out, also activated = gelu(y), tanh form. */
    void (*linear)(struct stream *stream, enum element element, void *y, void *activated, const void *x, const void *w,
                   const float *bias, int64_t rows, int64_t in, int64_t out, int64_t pitch);
    /* dx = dy w. With out < pitch a device may take the last elements of the rows of dy, fewer than 16 bytes, for
     * themselves, and round what they give and what the others give to elements before it adds the two. */
    void (*linear_input_gradient)(struct stream *stream, enum element element, void *dx, const void *dy, const void *w,
                                  int64_t rows, int64_t in, int64_t out, int64_t pitch);
    /* dw (+)= dy^T x, and dbias[out] (+)= column sums of dy unless NULL. With rows = 0 and no accumulation: zeros. */
    void (*linear_weight_gradient)(struct stream *stream, enum element element, float *dw, float *dbias, const void *dy,
                                   const void *x, int64_t rows, int64_t in, int64_t out, int64_t pitch,
                                   bool accumulate);

    /* Elementwise over `count` elements, or rows x width. */

    /* to = from in the type `element` */
    void (*convert)(struct stream *stream, enum element element, void *to, const float *from, int64_t count);

    /* y = x + r (+ bias[width] unless NULL); y may be x or r */
    void (*add_residual)(struct stream *stream, enum element element, void *y, const void *x, const void *r,
                         const float *bias, int64_t rows, int64_t width);
    /* y = gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
    void (*gelu)(struct stream *stream, enum element element, void *y, const void *x, int64_t count);
    /* dx = dy gelu'(x); dx may be dy */
    void (*gelu_gradient)(struct stream *stream, enum element element, void *dx, const void *dy, const void *x,
                          int64_t count);
    /* db[width] (+)= sums of the columns of dy [rows, width], whose rows begin `pitch` elements after one another */
    void (*column_sums)(struct stream *stream, enum element element, float *db, const void *dy, int64_t rows,
                        int64_t width, int64_t pitch, bool accumulate);

    /* LayerNorm over the last axis (Ba et al., 2016); mean and rstd (1/sqrt(variance + epsilon)) [rows] are kept for
     * the gradient. Statistics in at least float32, two-pass or better. */
    void (*norm)(struct stream *stream, enum element element, void *y, float *mean, float *rstd, const void *x,
                 const float *weight, const float *bias, int64_t rows, int64_t width, double epsilon);
    /* First sum = x + r (+ residual_bias unless NULL), then y = norm(sum). sum may be x or r. */
    void (*add_residual_norm)(struct stream *stream, enum element element, void *sum, void *y, float *mean, float *rstd,
                              const void *x, const void *r, const float *residual_bias, const float *weight,
                              const float *bias, int64_t rows, int64_t width, double epsilon);
    /* dx = residual (unless NULL) + the norm's input gradient; dweight, dbias (+)= theirs. dx may be dy or residual. */
    void (*norm_gradient)(struct stream *stream, enum element element, void *dx, float *dweight, float *dbias,
                          const void *dy, const void *residual, const void *x, const float *mean, const float *rstd,
                          const float *weight, int64_t rows, int64_t width, bool accumulate);

    /* Attention without a length x length matrix in memory: blocked with an online softmax (Dao et al., 2022; Rabe and
     * Staats, 2021). output [rows, heads*head_size]; logsumexp [sequences, heads, length] is kept for the gradient,
     * which recomputes the scores. A device may round the softmax's weights, and gradients of the scores, to elements
     * before it multiplies with them. */
    void (*attention)(struct stream *stream, enum element element, void *output, float *logsumexp, const void *qkv,
                      const struct attention_shape *shape, void *workspace);
    void (*attention_gradient)(struct stream *stream, enum element element, void *dqkv, const void *doutput,
                               const void *qkv, const void *output, const float *logsumexp,
                               const struct attention_shape *shape, void *workspace);
    /* Bytes, for both directions. */
    size_t (*attention_workspace)(enum element element, const struct attention_shape *shape);

    /* y[row] = table[token - first] where first <= token < first + count, else 0; plus position[row % length] unless
     * position is NULL. tokens [rows], table [count, width], position [length, width]. */
    void (*embedding)(struct stream *stream, enum element element, void *y, const int32_t *tokens, const void *table,
                      const void *position, int64_t rows, int64_t width, int64_t length, int64_t first, int64_t count);
    /* dtable (+)= and dposition (+)=, rows added in their order; the position of a row is (row_offset + row) %
     * length. Without accumulation all of dtable or dposition is written. */
    void (*embedding_gradient)(struct stream *stream, enum element element, float *dtable, const void *dy,
                               const int32_t *tokens, int64_t rows, int64_t width, int64_t first, int64_t count,
                               bool accumulate);
    void (*position_gradient)(struct stream *stream, enum element element, float *dposition, const void *dy,
                              int64_t rows, int64_t width, int64_t length, int64_t row_offset, bool accumulate);

    /* Cross-entropy over a vocabulary that may be split over tensor ranks; this rank has tokens first ... first+count-1
     * in logits [rows, count], whose rows begin `pitch` elements after one another, as do those of the gradient.
     * statistics [rows][3] of this rank: largest logit (-inf where count is 0), sum of exp(logit - largest), and the
     * target's logit (0 where another rank has it). */
    void (*cross_entropy_statistics)(struct stream *stream, enum element element, float *statistics, const void *logits,
                                     const int32_t *targets, int64_t rows, int64_t first, int64_t count, int64_t pitch);
    /* From the statistics [parts][rows][3] of all parts: losses[row] = -log softmax(target), and, unless gradient is
     * NULL, gradient = scale * (softmax - one_hot(target)); gradient may be logits. */
    void (*cross_entropy)(struct stream *stream, enum element element, float *losses, void *gradient,
                          const void *logits, const int32_t *targets, const float *statistics, int64_t rows,
                          int64_t first, int64_t count, int64_t pitch, int parts, double scale);

    /* Sums of squares in float64 of each block of SQUARES_BLOCK elements of x: blocks [ceil(count/SQUARES_BLOCK)], in
     * memory of host_allocate. */
    void (*squares)(struct stream *stream, enum element element, double *blocks, const void *x, int64_t count);

    /* The step for all ranges; unless computed is NULL the new weights are also stored there, for computations. */
    void (*adamw)(struct stream *stream, float *weights, float *first_moment, float *second_moment,
                  const float *gradients, void *computed, const struct optimizer_range *ranges, int64_t range_count,
                  const struct adamw *step);
};

/* The CPU's table. `threads` OpenMP threads are used from then on by the calling process. */
const struct device *device_cpu(int threads);

/* The libraries that the CPU kernels use, for --version: for example "OpenBLAS 0.3.21 with oneDNN 2.7.4". */
const char *device_cpu_libraries(void);

/* How the CPU kernels multiply bfloat16: for example "oneDNN, avx512_core_bf16" or "widened to float32: this processor
 * has no bf16 instructions". */
const char *device_cpu_bf16(void);

struct err;

/* What tells one device from all others of a job, and its name for people. */
struct device_identity {
    unsigned char unique[16];
    char name[256];
};

/* The CUDA devices that this process sees; with 0 goes the reason in *err. */
int device_cuda_count(struct err *err);

/* The table of one CUDA device, which is this process's from then on: number `node_rank` of those that it sees, or,
 * where it sees one alone, that one; NULL with *err where there is none for it, or the libraries are not there.
 * node_size: ranks on this node. tf32: products of float32 may round their factors to TF32. Local; that no two ranks
 * have the same device is for the caller to see, from the identities. */
const struct device *device_cuda(int node_rank, int node_size, bool tf32, struct device_identity *identity,
                                 struct err *err);

/* Its table for those who plan memory: host_memory and attention_workspace() alone may be asked. NULL in a build
 * without CUDA. */
const struct device *device_cuda_outline(void);

/* The libraries that the CUDA kernels were built with, for --version; "none" in a build without them. */
const char *device_cuda_libraries(void);

#ifdef __cplusplus
}
#endif

#endif
