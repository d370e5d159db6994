#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_math.h"

enum {
    LARGEST,
    SUM,
    TARGET,
    STATISTICS
}; /* the columns of the statistics */

/* Of `count` elements from `at` on. */
VECTOR_FUNCTION float largest_of(enum element element, const void *x, int64_t at, int64_t count)
{
    enum {
        PARTS = 4
    };
    vfloat largest[PARTS];
    for (int part = 0; part < PARTS; part++)
        largest[part] = vset(-INFINITY);
    int64_t i = 0;
    for (; i + PARTS * LANES <= count; i += PARTS * LANES)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++)
            largest[part] = vmax(vload_as(element, x, at + i + part * LANES), largest[part]);
    for (; i < count; i += LANES)
        largest[0] = vmax(vload_next_as(element, x, at + i, count - i, -INFINITY), largest[0]);
    return vlargest(vmax(vmax(largest[0], largest[1]), vmax(largest[2], largest[3])));
}

VECTOR_FUNCTION float sum_of_exp(enum element element, const void *x, int64_t at, float largest, int64_t count)
{
    enum {
        PARTS = 4
    };
    vfloat sums[PARTS] = {{0}};
    int64_t i = 0;
    for (; i + PARTS * LANES <= count; i += PARTS * LANES)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++)
            sums[part] += vexp(vload_as(element, x, at + i + part * LANES) - largest);
    for (; i < count; i += LANES)
        sums[0] += vexp(vload_next_as(element, x, at + i, count - i, -INFINITY) - largest);
    return vsum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

VECTOR_FUNCTION void statistics_rows(enum element element, float *statistics, const void *logits,
                                     const int32_t *targets, struct share own, int64_t first, int64_t count,
                                     int64_t pitch)
{
    for (int64_t row = own.begin; row < own.end; row++) {
        const int64_t at = row * pitch, target = targets[row] - first;
        float *to = statistics + row * STATISTICS;
        to[LARGEST] = largest_of(element, logits, at, count);
        to[SUM] = sum_of_exp(element, logits, at, to[LARGEST], count);
        to[TARGET] = target >= 0 && target < count ? vload_next_as(element, logits, at + target, 1, 0.0f)[0] : 0.0f;
    }
}

void cpu_cross_entropy_statistics(struct stream *stream, enum element element, float *statistics, const void *logits,
                                  const int32_t *targets, int64_t rows, int64_t first, int64_t count, int64_t pitch)
{
    (void)stream;
#pragma omp parallel if (rows * count >= CPU_PARALLEL_FROM)
    FOR_ELEMENT(element, statistics_rows, statistics, logits, targets, cpu_share(rows, 1), first, count, pitch);
}

/* The statistics of a row over all parts [parts][rows][3]. */
static void join_statistics(float joined[STATISTICS], const float *statistics, int64_t row, int64_t rows, int parts)
{
    joined[LARGEST] = -INFINITY;
    for (int part = 0; part < parts; part++) {
        const float largest = statistics[(part * rows + row) * STATISTICS + LARGEST];
        joined[LARGEST] = largest > joined[LARGEST] ? largest : joined[LARGEST];
    }
    double sum = 0.0, target = 0.0;
    for (int part = 0; part < parts; part++) {
        const float *from = statistics + (part * rows + row) * STATISTICS;
        if (from[SUM] != 0.0f) /* a part without tokens has -inf for its largest */
            sum += (double)from[SUM] * exp((double)from[LARGEST] - (double)joined[LARGEST]);
        target += (double)from[TARGET];
    }
    joined[SUM] = (float)sum;
    joined[TARGET] = (float)target;
}

/* One row of the gradient, `count` elements from `at` on; `target` may be none of them. */
VECTOR_FUNCTION void gradient_row(enum element element, void *gradient, const void *logits, int64_t at, int64_t count,
                                  int64_t target, const float joined[STATISTICS], double scale)
{
    const float factor = (float)(scale / (double)joined[SUM]);
    const bool known = target >= 0 && target < count;
    float at_target = 0.0f; /* computed before the logit may be overwritten, and rounded once */
    if (known)
        at_target = (vexp(vload_next_as(element, logits, at + target, 1, 0.0f) - joined[LARGEST]) * factor)[0];
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t left = count - i;
        const vfloat x = vload_next_as(element, logits, at + i, left, 0.0f);
        vstore_next_as(element, gradient, at + i, left, vexp(x - joined[LARGEST]) * factor);
    }
    if (known)
        vstore_next_as(element, gradient, at + target, 1, vset(at_target - (float)scale));
}

VECTOR_FUNCTION void cross_entropy_rows(enum element element, float *losses, void *gradient, const void *logits,
                                        const int32_t *targets, const float *statistics, struct share own, int64_t rows,
                                        int64_t first, int64_t count, int64_t pitch, int parts, double scale)
{
    for (int64_t row = own.begin; row < own.end; row++) {
        float joined[STATISTICS];
        join_statistics(joined, statistics, row, rows, parts);
        losses[row] = logf(joined[SUM]) + (joined[LARGEST] - joined[TARGET]);
        if (gradient != NULL)
            gradient_row(element, gradient, logits, row * pitch, count, targets[row] - first, joined, scale);
    }
}

void cpu_cross_entropy(struct stream *stream, enum element element, float *losses, void *gradient, const void *logits,
                       const int32_t *targets, const float *statistics, int64_t rows, int64_t first, int64_t count,
                       int64_t pitch, int parts, double scale)
{
    (void)stream;
#pragma omp parallel if (rows * count >= CPU_PARALLEL_FROM)
    FOR_ELEMENT(element, cross_entropy_rows, losses, gradient, logits, targets, statistics, cpu_share(rows, 1), rows,
                first, count, pitch, parts, scale);
}
