#include <omp.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_math.h"

/* Mean, inverse standard deviation and the normed row. The sums run in four vectors, in float32, about the mean. */
static void norm_row(float *y, float *mean, float *rstd, const float *x, const float *weight, const float *bias,
                     int64_t width, double epsilon)
{
    enum {
        SUMS = 4
    };
    vfloat sums[SUMS] = {{0}};
    int64_t i = 0;
    for (; i + SUMS * LANES <= width; i += SUMS * LANES)
#pragma GCC unroll 4
        for (int s = 0; s < SUMS; s++)
            sums[s] += vload(x + i + s * LANES);
    for (; i < width; i += LANES)
        sums[0] += vload_next(x + i, width - i, 0.0f);
    const float average = vsum((sums[0] + sums[1]) + (sums[2] + sums[3])) / (float)width;

    vfloat squares[SUMS] = {{0}};
    for (i = 0; i + SUMS * LANES <= width; i += SUMS * LANES)
#pragma GCC unroll 4
        for (int s = 0; s < SUMS; s++) {
            const vfloat off = vload(x + i + s * LANES) - average;
            squares[s] += off * off;
        }
    for (; i < width; i += LANES) {
        const vfloat off = vload_next(x + i, width - i, average) - average;
        squares[0] += off * off;
    }
    const float variance = vsum((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)width;

    const float inverse = (float)(1.0 / sqrt((double)variance + epsilon));
    for (i = 0; i < width; i += LANES) {
        const int64_t left = width - i;
        const vfloat normed = (vload_next(x + i, left, 0.0f) - average) * inverse;
        vstore_next(y + i, left, normed * vload_next(weight + i, left, 0.0f) + vload_next(bias + i, left, 0.0f));
    }
    *mean = average;
    *rstd = inverse;
}

void cpu_norm(struct stream *stream, float *y, float *mean, float *rstd, const float *x, const float *weight,
              const float *bias, int64_t rows, int64_t width, double epsilon)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(rows, 1);
        for (int64_t row = own.begin; row < own.end; row++)
            norm_row(y + row * width, mean + row, rstd + row, x + row * width, weight, bias, width, epsilon);
    }
}

void cpu_add_residual_norm(struct stream *stream, float *sum, float *y, float *mean, float *rstd, const float *x,
                           const float *r, const float *residual_bias, const float *weight, const float *bias,
                           int64_t rows, int64_t width, double epsilon)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(rows, 1);
        for (int64_t row = own.begin; row < own.end; row++) {
            for (int64_t i = 0; i < width; i += LANES) {
                const int64_t left = width - i, at = row * width + i;
                vfloat total = vload_next(x + at, left, 0.0f);
                if (residual_bias != NULL)
                    total += vload_next(residual_bias + i, left, 0.0f);
                vstore_next(sum + at, left, total + vload_next(r + at, left, 0.0f));
            }
            norm_row(y + row * width, mean + row, rstd + row, sum + row * width, weight, bias, width, epsilon);
        }
    }
}

/* One row of the norm's gradient: with xhat = (x - mean) rstd and g = weight dy,
 * dx = rstd (g - mean(g) - xhat mean(g xhat)); dweight += dy xhat, dbias += dy. */
static void norm_gradient_row(float *dx, float *dweight, float *dbias, const float *dy, const float *residual,
                              const float *x, float mean, float rstd, const float *weight, int64_t width)
{
    vfloat sum = {0}, product = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t left = width - i;
        const vfloat d = vload_next(dy + i, left, 0.0f);
        const vfloat xhat = (vload_next(x + i, left, mean) - mean) * rstd;
        const vfloat g = d * vload_next(weight + i, left, 0.0f);
        sum += g;
        product += g * xhat;
        vstore_next(dweight + i, left, vload_next(dweight + i, left, 0.0f) + d * xhat);
        vstore_next(dbias + i, left, vload_next(dbias + i, left, 0.0f) + d);
    }
    const float mean_g = vsum(sum) / (float)width, mean_product = vsum(product) / (float)width;
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t left = width - i;
        const vfloat xhat = (vload_next(x + i, left, mean) - mean) * rstd;
        const vfloat g = vload_next(dy + i, left, 0.0f) * vload_next(weight + i, left, 0.0f);
        vfloat gradient = (g - mean_g - xhat * mean_product) * rstd;
        if (residual != NULL)
            gradient += vload_next(residual + i, left, 0.0f);
        vstore_next(dx + i, left, gradient);
    }
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

void cpu_norm_gradient(struct stream *stream, float *dx, float *dweight, float *dbias, const float *dy,
                       const float *residual, const float *x, const float *mean, const float *rstd, const float *weight,
                       int64_t rows, int64_t width, bool accumulate)
{
    const int threads = rows * width >= CPU_PARALLEL_FROM ? omp_get_max_threads() : 1;
    float *partial = cpu_scratch(stream, 2 * width * threads);
#pragma omp parallel num_threads(threads)
    {
        float *own_weight = partial + 2 * width * omp_get_thread_num(), *own_bias = own_weight + width;
        for (int64_t i = 0; i < 2 * width; i++)
            own_weight[i] = 0.0f;
        const struct share own = cpu_share(rows, 1);
        for (int64_t row = own.begin; row < own.end; row++)
            norm_gradient_row(dx + row * width, own_weight, own_bias, dy + row * width,
                              residual == NULL ? NULL : residual + row * width, x + row * width, mean[row], rstd[row],
                              weight, width);
    }
    add_partial_sums(dweight, dbias, partial, threads, width, accumulate);
}
