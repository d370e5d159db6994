#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_math.h"

VECTOR_FUNCTION void convert_part(enum element element, void *to, const float *from, struct share own)
{
    for (int64_t i = own.begin; i < own.end; i += LANES)
        vstore_next_as(element, to, i, own.end - i, vload_next(from + i, own.end - i, 0.0f));
}

void cpu_convert(struct stream *stream, enum element element, void *to, const float *from, int64_t count)
{
    (void)stream;
#pragma omp parallel if (count >= CPU_PARALLEL_FROM)
    FOR_ELEMENT(element, convert_part, to, from, cpu_share(count, LANES));
}

VECTOR_FUNCTION void add_residual_rows(enum element element, void *y, const void *x, const void *r, const float *bias,
                                       struct share own, int64_t width)
{
    for (int64_t row = own.begin; row < own.end; row++)
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t left = width - i, at = row * width + i;
            vfloat sum = vload_next_as(element, x, at, left, 0.0f);
            if (bias != NULL)
                sum += vload_next(bias + i, left, 0.0f);
            vstore_next_as(element, y, at, left, sum + vload_next_as(element, r, at, left, 0.0f));
        }
}

void cpu_add_residual(struct stream *stream, enum element element, void *y, const void *x, const void *r,
                      const float *bias, int64_t rows, int64_t width)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    FOR_ELEMENT(element, add_residual_rows, y, x, r, bias, cpu_share(rows, 1), width);
}

VECTOR_FUNCTION void gelu_part(enum element element, void *y, const void *x, struct share own)
{
    for (int64_t i = own.begin; i < own.end; i += LANES) {
        const int64_t left = own.end - i;
        vstore_next_as(element, y, i, left, vgelu(vload_next_as(element, x, i, left, 0.0f)));
    }
}

void cpu_gelu(struct stream *stream, enum element element, void *y, const void *x, int64_t count)
{
    (void)stream;
#pragma omp parallel if (count >= CPU_PARALLEL_FROM)
    FOR_ELEMENT(element, gelu_part, y, x, cpu_share(count, LANES));
}

VECTOR_FUNCTION void gelu_gradient_part(enum element element, void *dx, const void *dy, const void *x, struct share own)
{
    for (int64_t i = own.begin; i < own.end; i += LANES) {
        const int64_t left = own.end - i;
        const vfloat slope = vgelu_slope(vload_next_as(element, x, i, left, 0.0f));
        vstore_next_as(element, dx, i, left, vload_next_as(element, dy, i, left, 0.0f) * slope);
    }
}

void cpu_gelu_gradient(struct stream *stream, enum element element, void *dx, const void *dy, const void *x,
                       int64_t count)
{
    (void)stream;
#pragma omp parallel if (count >= CPU_PARALLEL_FROM)
    FOR_ELEMENT(element, gelu_gradient_part, dx, dy, x, cpu_share(count, LANES));
}

/* The sums of the columns of `own`, rows added in their order. */
VECTOR_FUNCTION void sum_columns(enum element element, float *db, const void *dy, int64_t rows, int64_t pitch,
                                 struct share own, bool accumulate)
{
    enum {
        PANEL = 8
    }; /* vectors of sums that stay in registers */
    int64_t column = own.begin;
    for (; column + PANEL * LANES <= own.end; column += PANEL * LANES) {
        vfloat sums[PANEL] = {{0}};
        for (int64_t row = 0; row < rows; row++)
#pragma GCC unroll 8
            for (int i = 0; i < PANEL; i++)
                sums[i] += vload_as(element, dy, row * pitch + column + i * LANES);
        for (int i = 0; i < PANEL; i++) {
            float *to = db + column + i * LANES;
            vstore(to, accumulate ? vload(to) + sums[i] : sums[i]);
        }
    }
    for (; column < own.end; column += LANES) {
        const int64_t left = own.end - column;
        vfloat sum = {0};
        for (int64_t row = 0; row < rows; row++)
            sum += vload_next_as(element, dy, row * pitch + column, left, 0.0f);
        vstore_next(db + column, left, accumulate ? vload_next(db + column, left, 0.0f) + sum : sum);
    }
}

/* Every thread has columns of its own, so the number of threads does not matter to the result. */
void cpu_column_sums(struct stream *stream, enum element element, float *db, const void *dy, int64_t rows,
                     int64_t width, int64_t pitch, bool accumulate)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    FOR_ELEMENT(element, sum_columns, db, dy, rows, pitch, cpu_share(width, LANES), accumulate);
}
