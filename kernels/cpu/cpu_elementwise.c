#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_math.h"

void cpu_add(struct stream *stream, float *a, const float *b, int64_t count)
{
    (void)stream;
#pragma omp parallel if (count >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(count, LANES);
        for (int64_t i = own.begin; i < own.end; i += LANES) {
            const int64_t left = own.end - i;
            vstore_next(a + i, left, vload_next(a + i, left, 0.0f) + vload_next(b + i, left, 0.0f));
        }
    }
}

void cpu_add_residual(struct stream *stream, float *y, const float *x, const float *r, const float *bias, int64_t rows,
                      int64_t width)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(rows, 1);
        for (int64_t row = own.begin; row < own.end; row++)
            for (int64_t i = 0; i < width; i += LANES) {
                const int64_t left = width - i, at = row * width + i;
                vfloat sum = vload_next(x + at, left, 0.0f);
                if (bias != NULL)
                    sum += vload_next(bias + i, left, 0.0f);
                vstore_next(y + at, left, sum + vload_next(r + at, left, 0.0f));
            }
    }
}

void cpu_gelu(struct stream *stream, float *y, const float *x, int64_t count)
{
    (void)stream;
#pragma omp parallel if (count >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(count, LANES);
        for (int64_t i = own.begin; i < own.end; i += LANES) {
            const int64_t left = own.end - i;
            vstore_next(y + i, left, vgelu(vload_next(x + i, left, 0.0f)));
        }
    }
}

void cpu_gelu_gradient(struct stream *stream, float *dx, const float *dy, const float *x, int64_t count)
{
    (void)stream;
#pragma omp parallel if (count >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(count, LANES);
        for (int64_t i = own.begin; i < own.end; i += LANES) {
            const int64_t left = own.end - i;
            const vfloat slope = vgelu_slope(vload_next(x + i, left, 0.0f));
            vstore_next(dx + i, left, vload_next(dy + i, left, 0.0f) * slope);
        }
    }
}

/* The sums of columns [begin, end), rows added in their order. */
static void sum_columns(float *db, const float *dy, int64_t rows, int64_t width, int64_t begin, int64_t end,
                        bool accumulate)
{
    enum {
        PANEL = 8
    }; /* vectors of sums that stay in registers */
    int64_t column = begin;
    for (; column + PANEL * LANES <= end; column += PANEL * LANES) {
        vfloat sums[PANEL] = {{0}};
        for (int64_t row = 0; row < rows; row++)
#pragma GCC unroll 8
            for (int i = 0; i < PANEL; i++)
                sums[i] += vload(dy + row * width + column + i * LANES);
        for (int i = 0; i < PANEL; i++) {
            float *to = db + column + i * LANES;
            vstore(to, accumulate ? vload(to) + sums[i] : sums[i]);
        }
    }
    for (; column < end; column += LANES) {
        const int64_t left = end - column;
        vfloat sum = {0};
        for (int64_t row = 0; row < rows; row++)
            sum += vload_next(dy + row * width + column, left, 0.0f);
        vstore_next(db + column, left, accumulate ? vload_next(db + column, left, 0.0f) + sum : sum);
    }
}

/* Every thread has columns of its own, so the number of threads does not matter to the result. */
void cpu_column_sums(struct stream *stream, float *db, const float *dy, int64_t rows, int64_t width, bool accumulate)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(width, LANES);
        sum_columns(db, dy, rows, width, own.begin, own.end, accumulate);
    }
}
