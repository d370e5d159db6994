#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_math.h"

enum {
    LARGEST,
    SUM,
    TARGET,
    STATISTICS
}; /* the columns of the statistics */

static float largest_of(const float *x, int64_t count)
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
            largest[part] = vmax(vload(x + i + part * LANES), largest[part]);
    for (; i < count; i += LANES)
        largest[0] = vmax(vload_next(x + i, count - i, -INFINITY), largest[0]);
    return vlargest(vmax(vmax(largest[0], largest[1]), vmax(largest[2], largest[3])));
}

static float sum_of_exp(const float *x, float largest, int64_t count)
{
    enum {
        PARTS = 4
    };
    vfloat sums[PARTS] = {{0}};
    int64_t i = 0;
    for (; i + PARTS * LANES <= count; i += PARTS * LANES)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++)
            sums[part] += vexp(vload(x + i + part * LANES) - largest);
    for (; i < count; i += LANES)
        sums[0] += vexp(vload_next(x + i, count - i, -INFINITY) - largest);
    return vsum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

void cpu_cross_entropy_statistics(struct stream *stream, float *statistics, const float *logits, const int32_t *targets,
                                  int64_t rows, int64_t first, int64_t count)
{
    (void)stream;
#pragma omp parallel if (rows * count >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(rows, 1);
        for (int64_t row = own.begin; row < own.end; row++) {
            const float *x = logits + row * count;
            const int64_t target = targets[row] - first;
            float *to = statistics + row * STATISTICS;
            to[LARGEST] = largest_of(x, count);
            to[SUM] = sum_of_exp(x, to[LARGEST], count);
            to[TARGET] = target >= 0 && target < count ? x[target] : 0.0f;
        }
    }
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

void cpu_cross_entropy(struct stream *stream, float *losses, float *gradient, const float *logits,
                       const int32_t *targets, const float *statistics, int64_t rows, int64_t first, int64_t count,
                       int parts, double scale)
{
    (void)stream;
#pragma omp parallel if (rows * count >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(rows, 1);
        for (int64_t row = own.begin; row < own.end; row++) {
            float joined[STATISTICS];
            join_statistics(joined, statistics, row, rows, parts);
            losses[row] = logf(joined[SUM]) + (joined[LARGEST] - joined[TARGET]);
            if (gradient == NULL)
                continue;
            const float *x = logits + row * count;
            float *dx = gradient + row * count;
            const float factor = (float)(scale / (double)joined[SUM]);
            for (int64_t i = 0; i < count; i += LANES) {
                const int64_t left = count - i;
                vstore_next(dx + i, left, vexp(vload_next(x + i, left, 0.0f) - joined[LARGEST]) * factor);
            }
            const int64_t target = targets[row] - first;
            if (target >= 0 && target < count)
                dx[target] -= (float)scale;
        }
    }
}
