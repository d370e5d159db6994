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

/* The BLAS keeps to one thread per caller: an OpenBLAS with threads of its own would start them within each of ours. */
void cpu_matmul_open(void);

void cpu_linear(struct stream *stream, float *y, float *activated, const float *x, const float *w, const float *bias,
                int64_t rows, int64_t in, int64_t out);
void cpu_linear_input_gradient(struct stream *stream, float *dx, const float *dy, const float *w, int64_t rows,
                               int64_t in, int64_t out);
void cpu_linear_weight_gradient(struct stream *stream, float *dw, float *dbias, const float *dy, const float *x,
                                int64_t rows, int64_t in, int64_t out, bool accumulate);

/* cpu_elementwise.c */
void cpu_add(struct stream *stream, float *a, const float *b, int64_t count);
void cpu_add_residual(struct stream *stream, float *y, const float *x, const float *r, const float *bias, int64_t rows,
                      int64_t width);
void cpu_gelu(struct stream *stream, float *y, const float *x, int64_t count);
void cpu_gelu_gradient(struct stream *stream, float *dx, const float *dy, const float *x, int64_t count);
void cpu_column_sums(struct stream *stream, float *db, const float *dy, int64_t rows, int64_t width, bool accumulate);

/* cpu_norm.c */
void cpu_norm(struct stream *stream, float *y, float *mean, float *rstd, const float *x, const float *weight,
              const float *bias, int64_t rows, int64_t width, double epsilon);
void cpu_add_residual_norm(struct stream *stream, float *sum, float *y, float *mean, float *rstd, const float *x,
                           const float *r, const float *residual_bias, const float *weight, const float *bias,
                           int64_t rows, int64_t width, double epsilon);
void cpu_norm_gradient(struct stream *stream, float *dx, float *dweight, float *dbias, const float *dy,
                       const float *residual, const float *x, const float *mean, const float *rstd, const float *weight,
                       int64_t rows, int64_t width, bool accumulate);

/* cpu_attention.c */
void cpu_attention(struct stream *stream, float *output, float *logsumexp, const float *qkv,
                   const struct attention_shape *shape, void *workspace);
void cpu_attention_gradient(struct stream *stream, float *dqkv, const float *doutput, const float *qkv,
                            const float *output, const float *logsumexp, const struct attention_shape *shape,
                            void *workspace);
size_t cpu_attention_workspace(const struct attention_shape *shape);

/* cpu_embedding.c */
void cpu_embedding(struct stream *stream, float *y, const int32_t *tokens, const float *table, const float *position,
                   int64_t rows, int64_t width, int64_t length, int64_t first, int64_t count);
void cpu_embedding_gradient(struct stream *stream, float *dtable, const float *dy, const int32_t *tokens, int64_t rows,
                            int64_t width, int64_t first, int64_t count, bool accumulate);
void cpu_position_gradient(struct stream *stream, float *dposition, const float *dy, int64_t rows, int64_t width,
                           int64_t length, int64_t row_offset, bool accumulate);

/* cpu_cross_entropy.c */
void cpu_cross_entropy_statistics(struct stream *stream, float *statistics, const float *logits, const int32_t *targets,
                                  int64_t rows, int64_t first, int64_t count);
void cpu_cross_entropy(struct stream *stream, float *losses, float *gradient, const float *logits,
                       const int32_t *targets, const float *statistics, int64_t rows, int64_t first, int64_t count,
                       int parts, double scale);

/* cpu_optimizer.c */
void cpu_squares(struct stream *stream, double *blocks, const float *x, int64_t count);
void cpu_adamw(struct stream *stream, float *weights, float *first_moment, float *second_moment, const float *gradients,
               const struct optimizer_range *ranges, int64_t range_count, const struct adamw *step);

#endif
