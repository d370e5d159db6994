/* What the files of the CUDA device table share: their rows of the table (described in kernels/kernels.h), the stream,
 * and checks of what the libraries return.
 *
 * Every kernel's part of the work and the order of its sums follow from the shape alone, never from the order in which
 * blocks run or from where buffers lie; there are no atomic additions. So equal calls give equal bits. The matrix
 * products are the library's: their bits follow from shape, alignment (up to 16 bytes), library and kind of device. */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include <cuda_runtime_api.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Device memory that belongs to a stream, for whatever runs in it at the moment: products of the library, partial sums.
 * The size that NVIDIA recommends to cuBLAS on Hopper. */
#define CUDA_WORKSPACE ((size_t)32 << 20)

/* Behind it, biases as elements. */
#define CUDA_BIAS_BYTES ((size_t)1 << 20)

struct stream {
    cudaStream_t queue;
    char *workspace; /* CUDA_WORKSPACE + CUDA_BIAS_BYTES, or NULL: for kernels that need none */
};

/* A stream without a workspace, for transfers and what is done with elements one by one. Its blocks go ahead of those
 * that wait on other streams, so that the transfers of a rank do not end late for the sake of its own computations.
 * Closed as any other. */
struct stream *cuda_stream_open_urgent(void);

/* Ends the job with the library's own message where a call failed. */
#define CUDA_CHECK(call) cuda_check((call), #call, __FILE__, __LINE__)
void cuda_check(cudaError_t status, const char *call, const char *file, int line);

/* Whether products of float32 may round their factors to TF32. */
bool cuda_tf32(void);

/* cuda_matmul.c */
void cuda_linear(struct stream *stream, enum element element, void *y, void *activated, const void *x, const void *w,
                 const float *bias, int64_t rows, int64_t in, int64_t out, int64_t pitch);
void cuda_linear_input_gradient(struct stream *stream, enum element element, void *dx, const void *dy, const void *w,
                                int64_t rows, int64_t in, int64_t out, int64_t pitch);
void cuda_linear_weight_gradient(struct stream *stream, enum element element, float *dw, float *dbias, const void *dy,
                                 const void *x, int64_t rows, int64_t in, int64_t out, int64_t pitch, bool accumulate);

/* cuda_elementwise.cu */
void cuda_convert(struct stream *stream, enum element element, void *to, const float *from, int64_t count);
void cuda_add_residual(struct stream *stream, enum element element, void *y, const void *x, const void *r,
                       const float *bias, int64_t rows, int64_t width);
void cuda_gelu(struct stream *stream, enum element element, void *y, const void *x, int64_t count);
void cuda_gelu_gradient(struct stream *stream, enum element element, void *dx, const void *dy, const void *x,
                        int64_t count);
void cuda_column_sums(struct stream *stream, enum element element, float *db, const void *dy, int64_t rows,
                      int64_t width, int64_t pitch, bool accumulate);

/* Each row of y [rows, width] = bias, or zeros where it is NULL; rows begin `pitch` elements after one another. */
void cuda_repeat(struct stream *stream, enum element element, void *y, const float *bias, int64_t rows, int64_t width,
                 int64_t pitch);

/* The columns first ... out-1 of y = x w^T (+ bias unless NULL), as of `linear`; they are few. */
void cuda_linear_columns(struct stream *stream, enum element element, void *y, const void *x, const void *w,
                         const float *bias, int64_t rows, int64_t in, int64_t first, int64_t out, int64_t pitch);

/* to[i] (+)= the sum of from[part][i] over `parts` parts, which lie `stride` elements apart, for i < width, and unless
 * it is NULL second[i] (+)= that of from[part][width + i]. The order of the sum follows from `parts`. */
void cuda_join_sums(struct stream *stream, float *to, float *second, const float *from, int64_t parts, int64_t stride,
                    int64_t width, bool accumulate);

/* cuda_norm.cu */
void cuda_norm(struct stream *stream, enum element element, void *y, float *mean, float *rstd, const void *x,
               const float *weight, const float *bias, int64_t rows, int64_t width, double epsilon);
void cuda_add_residual_norm(struct stream *stream, enum element element, void *sum, void *y, float *mean, float *rstd,
                            const void *x, const void *r, const float *residual_bias, const float *weight,
                            const float *bias, int64_t rows, int64_t width, double epsilon);
void cuda_norm_gradient(struct stream *stream, enum element element, void *dx, float *dweight, float *dbias,
                        const void *dy, const void *residual, const void *x, const float *mean, const float *rstd,
                        const float *weight, int64_t rows, int64_t width, bool accumulate);

/* cuda_attention.cu */
void cuda_attention(struct stream *stream, enum element element, void *output, float *logsumexp, const void *qkv,
                    const struct attention_shape *shape, void *workspace);
void cuda_attention_gradient(struct stream *stream, enum element element, void *dqkv, const void *doutput,
                             const void *qkv, const void *output, const float *logsumexp,
                             const struct attention_shape *shape, void *workspace);
size_t cuda_attention_workspace(enum element element, const struct attention_shape *shape);

/* cuda_embedding.cu */
void cuda_embedding(struct stream *stream, enum element element, void *y, const int32_t *tokens, const void *table,
                    const void *position, int64_t rows, int64_t width, int64_t length, int64_t first, int64_t count);
void cuda_embedding_gradient(struct stream *stream, enum element element, float *dtable, const void *dy,
                             const int32_t *tokens, int64_t rows, int64_t width, int64_t first, int64_t count,
                             bool accumulate);
void cuda_position_gradient(struct stream *stream, enum element element, float *dposition, const void *dy, int64_t rows,
                            int64_t width, int64_t length, int64_t row_offset, bool accumulate);

/* cuda_cross_entropy.cu */
void cuda_cross_entropy_statistics(struct stream *stream, enum element element, float *statistics, const void *logits,
                                   const int32_t *targets, int64_t rows, int64_t first, int64_t count, int64_t pitch);
void cuda_cross_entropy(struct stream *stream, enum element element, float *losses, void *gradient, const void *logits,
                        const int32_t *targets, const float *statistics, int64_t rows, int64_t first, int64_t count,
                        int64_t pitch, int parts, double scale);

/* cuda_optimizer.cu */
void cuda_squares(struct stream *stream, enum element element, double *blocks, const void *x, int64_t count);
void cuda_adamw(struct stream *stream, float *weights, float *first_moment, float *second_moment,
                const float *gradients, void *computed, const struct optimizer_range *ranges, int64_t range_count,
                const struct adamw *step);

#ifdef __cplusplus
}
#endif

#endif
