/* What the files of the CPU's device table share: their rows of the table (described in kernels/kernels.h), the stream
 * and the division of work among OpenMP threads.
 *
 * Every thread's part of a kernel follows from the shape and the number of threads alone, and so do the results' bits.
 * Where the number of threads does not matter to them the file says so. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/kernels.h"

/* A kernel with fewer elements than this is done by one thread: waking others would take longer. */
#define CPU_PARALLEL_FROM 16384

/* Work is done when a kernel returns, so the queue holds nothing but memory for sums of single threads. */
struct stream {
    float *scratch;
    size_t scratch_bytes;
};

/* `count` floats that stay valid until the next call with the same stream; contents undefined. Fatal when there is not
 * enough memory. */
float *cpu_scratch(struct stream *stream, int64_t count);

/* A contiguous part of some count of things. */
struct share {
    int64_t begin, end;
};

/* The part of `count` things that falls to the calling thread of a parallel region: equal numbers of whole units but
 * for the last. */
struct share cpu_share(int64_t count, int64_t unit);

/* The same for part `part` of `parts`. */
struct share cpu_part(int64_t count, int64_t unit, int part, int parts);

/* cpu_matmul.c */

/* The BLAS keeps to one thread per caller: an OpenBLAS with threads of its own would start them within each of ours.
 * Chooses how bfloat16 is multiplied, once. */
void cpu_matmul_open(void);

/* For the tests: from now on bfloat16 is multiplied by oneDNN's kernels for it, whatever the processor, or widened to
 * float32. False when oneDNN is not there. */
bool cpu_matmul_choose(bool instructions);

void cpu_linear(struct stream *stream, enum element element, void *y, void *activated, const void *x, const void *w,
                const float *bias, int64_t rows, int64_t in, int64_t out, int64_t pitch);
void cpu_linear_input_gradient(struct stream *stream, enum element element, void *dx, const void *dy, const void *w,
                               int64_t rows, int64_t in, int64_t out, int64_t pitch);
void cpu_linear_weight_gradient(struct stream *stream, enum element element, float *dw, float *dbias, const void *dy,
                                const void *x, int64_t rows, int64_t in, int64_t out, int64_t pitch, bool accumulate);

/* cpu_elementwise.c */
void cpu_convert(struct stream *stream, enum element element, void *to, const float *from, int64_t count);
void cpu_add_residual(struct stream *stream, enum element element, void *y, const void *x, const void *r,
                      const float *bias, int64_t rows, int64_t width);
void cpu_gelu(struct stream *stream, enum element element, void *y, const void *x, int64_t count);
void cpu_gelu_gradient(struct stream *stream, enum element element, void *dx, const void *dy, const void *x,
                       int64_t count);
void cpu_column_sums(struct stream *stream, enum element element, float *db, const void *dy, int64_t rows,
                     int64_t width, int64_t pitch, bool accumulate);

/* cpu_norm.c */
void cpu_norm(struct stream *stream, enum element element, void *y, float *mean, float *rstd, const void *x,
              const float *weight, const float *bias, int64_t rows, int64_t width, double epsilon);
void cpu_add_residual_norm(struct stream *stream, enum element element, void *sum, void *y, float *mean, float *rstd,
                           const void *x, const void *r, const float *residual_bias, const float *weight,
                           const float *bias, int64_t rows, int64_t width, double epsilon);
void cpu_norm_gradient(struct stream *stream, enum element element, void *dx, float *dweight, float *dbias,
                       const void *dy, const void *residual, const void *x, const float *mean, const float *rstd,
                       const float *weight, int64_t rows, int64_t width, bool accumulate);

/* cpu_attention.c */
void cpu_attention(struct stream *stream, enum element element, void *output, float *logsumexp, const void *qkv,
                   const struct attention_shape *shape, void *workspace);
void cpu_attention_gradient(struct stream *stream, enum element element, void *dqkv, const void *doutput,
                            const void *qkv, const void *output, const float *logsumexp,
                            const struct attention_shape *shape, void *workspace);
size_t cpu_attention_workspace(enum element element, const struct attention_shape *shape);

/* cpu_embedding.c */
void cpu_embedding(struct stream *stream, enum element element, void *y, const int32_t *tokens, const void *table,
                   const void *position, int64_t rows, int64_t width, int64_t length, int64_t first, int64_t count);
void cpu_embedding_gradient(struct stream *stream, enum element element, float *dtable, const void *dy,
                            const int32_t *tokens, int64_t rows, int64_t width, int64_t first, int64_t count,
                            bool accumulate);
void cpu_position_gradient(struct stream *stream, enum element element, float *dposition, const void *dy, int64_t rows,
                           int64_t width, int64_t length, int64_t row_offset, bool accumulate);

/* cpu_cross_entropy.c */
void cpu_cross_entropy_statistics(struct stream *stream, enum element element, float *statistics, const void *logits,
                                  const int32_t *targets, int64_t rows, int64_t first, int64_t count, int64_t pitch);
void cpu_cross_entropy(struct stream *stream, enum element element, float *losses, void *gradient, const void *logits,
                       const int32_t *targets, const float *statistics, int64_t rows, int64_t first, int64_t count,
                       int64_t pitch, int parts, double scale);

/* cpu_optimizer.c */
void cpu_squares(struct stream *stream, enum element element, double *blocks, const void *x, int64_t count);
void cpu_adamw(struct stream *stream, float *weights, float *first_moment, float *second_moment, const float *gradients,
               void *computed, const struct optimizer_range *ranges, int64_t range_count, const struct adamw *step);

#endif
