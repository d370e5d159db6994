#include <omp.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_math.h"

/* Mean, inverse standard deviation and the normed row, whose elements start at `at`. The sums run in four vectors, in
 * float32, about the mean. */
VECTOR_FUNCTION void norm_row(enum element element, void *y, float *mean, float *rstd, const void *x, int64_t at,
                              const float *weight, const float *bias, int64_t width, double epsilon)
{
    enum {
        SUMS = 4
    };
    vfloat sums[SUMS] = {{0}};
    int64_t i = 0;
    for (; i + SUMS * LANES <= width; i += SUMS * LANES)
#pragma GCC unroll 4
        for (int s = 0; s < SUMS; s++)
            sums[s] += vload_as(element, x, at + i + s * LANES);
    for (; i < width; i += LANES)
        sums[0] += vload_next_as(element, x, at + i, width - i, 0.0f);
    const float average = vsum((sums[0] + sums[1]) + (sums[2] + sums[3])) / (float)width;

    vfloat squares[SUMS] = {{0}};
    for (i = 0; i + SUMS * LANES <= width; i += SUMS * LANES)
#pragma GCC unroll 4
        for (int s = 0; s < SUMS; s++) {
            const vfloat off = vload_as(element, x, at + i + s * LANES) - average;
            squares[s] += off * off;
        }
    for (; i < width; i += LANES) {
        const vfloat off = vload_next_as(element, x, at + i, width - i, average) - average;
        squares[0] += off * off;
    }
    const float variance = vsum((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)width;

    const float inverse = (float)(1.0 / sqrt((double)variance + epsilon));
    for (i = 0; i < width; i += LANES) {
        const int64_t left = width - i;
        const vfloat normed = (vload_next_as(element, x, at + i, left, 0.0f) - average) * inverse;
        vstore_next_as(element, y, at + i, left,
                       normed * vload_next(weight + i, left, 0.0f) + vload_next(bias + i, left, 0.0f));
    }
    *mean = average;
    *rstd = inverse;
}

VECTOR_FUNCTION void norm_rows(enum element element, void *y, float *mean, float *rstd, const void *x,
                               const float *weight, const float *bias, struct share own, int64_t width, double epsilon)
{
    for (int64_t row = own.begin; row < own.end; row++)
        norm_row(element, y, mean + row, rstd + row, x, row * width, weight, bias, width, epsilon);
}

void cpu_norm(struct stream *stream, enum element element, void *y, float *mean, float *rstd, const void *x,
              const float *weight, const float *bias, int64_t rows, int64_t width, double epsilon)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    FOR_ELEMENT(element, norm_rows, y, mean, rstd, x, weight, bias, cpu_share(rows, 1), width, epsilon);
}

/* The norm reads the sum from where it was stored, rounded. */
VECTOR_FUNCTION void add_and_norm_rows(enum element element, void *sum, void *y, float *mean, float *rstd,
                                       const void *x, const void *r, const float *residual_bias, const float *weight,
                                       const float *bias, struct share own, int64_t width, double epsilon)
{
    for (int64_t row = own.begin; row < own.end; row++) {
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t left = width - i, at = row * width + i;
            vfloat total = vload_next_as(element, x, at, left, 0.0f);
            if (residual_bias != NULL)
                total += vload_next(residual_bias + i, left, 0.0f);
            vstore_next_as(element, sum, at, left, total + vload_next_as(element, r, at, left, 0.0f));
        }
        norm_row(element, y, mean + row, rstd + row, sum, row * width, weight, bias, width, epsilon);
    }
}

void cpu_add_residual_norm(struct stream *stream, enum element element, void *sum, void *y, float *mean, float *rstd,
                           const void *x, const void *r, const float *residual_bias, const float *weight,
                           const float *bias, int64_t rows, int64_t width, double epsilon)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    FOR_ELEMENT(element, add_and_norm_rows, sum, y, mean, rstd, x, r, residual_bias, weight, bias, cpu_share(rows, 1),
                width, epsilon);
}

/* One row of the norm's gradient, whose elements start at `at`: with xhat = (x - mean) rstd and g = weight dy,
 * dx = rstd (g - mean(g) - xhat mean(g xhat)); dweight += dy xhat, dbias += dy. */
VECTOR_FUNCTION void norm_gradient_row(enum element element, void *dx, float *dweight, float *dbias, const void *dy,
                                       const void *residual, const void *x, int64_t at, float mean, float rstd,
                                       const float *weight, int64_t width)
{
    vfloat sum = {0}, product = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t left = width - i;
        const vfloat d = vload_next_as(element, dy, at + i, left, 0.0f);
        const vfloat xhat = (vload_next_as(element, x, at + i, left, mean) - mean) * rstd;
        const vfloat g = d * vload_next(weight + i, left, 0.0f);
        sum += g;
        product += g * xhat;
        vstore_next(dweight + i, left, vload_next(dweight + i, left, 0.0f) + d * xhat);
        vstore_next(dbias + i, left, vload_next(dbias + i, left, 0.0f) + d);
    }
    const float mean_g = vsum(sum) / (float)width, mean_product = vsum(product) / (float)width;
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t left = width - i;
        const vfloat xhat = (vload_next_as(element, x, at + i, left, mean) - mean) * rstd;
        const vfloat g = vload_next_as(element, dy, at + i, left, 0.0f) * vload_next(weight + i, left, 0.0f);
        vfloat gradient = (g - mean_g - xhat * mean_product) * rstd;
        if (residual != NULL)
            gradient += vload_next_as(element, residual, at + i, left, 0.0f);
        vstore_next_as(element, dx, at + i, left, gradient);
    }
}

VECTOR_FUNCTION void norm_gradient_rows(enum element element, void *dx, float *dweight, float *dbias, const void *dy,
                                        const void *residual, const void *x, const float *mean, const float *rstd,
                                        const float *weight, struct share own, int64_t width)
{
    for (int64_t row = own.begin; row < own.end; row++)
        norm_gradient_row(element, dx, dweight, dbias, dy, residual, x, row * width, mean[row], rstd[row], weight,
                          width);
}

/* (+)= the threads' sums [threads][2][width], added in the threads' order. */
static void add_partial_sums(float *dweight, float *dbias, const float *partial, int threads, int64_t width,
                             bool accumulate)
{
    for (int which = 0; which < 2; which++) {
        float *to = which == 0 ? dweight : dbias;
        for (int64_t i = 0; i < width; i++) {
            float sum = partial[which * width + i];
            for (int thread = 1; thread < threads; thread++)
                sum += partial[(2 * thread + which) * width + i];
            to[i] = accumulate ? to[i] + sum : sum;
        }
    }
}

void cpu_norm_gradient(struct stream *stream, enum element element, void *dx, float *dweight, float *dbias,
                       const void *dy, const void *residual, const void *x, const float *mean, const float *rstd,
                       const float *weight, int64_t rows, int64_t width, bool accumulate)
{
    const int threads = rows * width >= CPU_PARALLEL_FROM ? omp_get_max_threads() : 1;
    float *partial = cpu_scratch(stream, 2 * width * threads);
#pragma omp parallel num_threads(threads)
    {
        float *own_weight = partial + 2 * width * omp_get_thread_num(), *own_bias = own_weight + width;
        for (int64_t i = 0; i < 2 * width; i++)
            own_weight[i] = 0.0f;
        FOR_ELEMENT(element, norm_gradient_rows, dx, own_weight, own_bias, dy, residual, x, mean, rstd, weight,
                    cpu_share(rows, 1), width);
    }
    add_partial_sums(dweight, dbias, partial, threads, width, accumulate);
}
