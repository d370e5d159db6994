#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_math.h"

/* The order of the sum follows from the block's length alone. */
static double sum_of_squares(const float *x, int64_t count)
{
    enum {
        SUMS = 16
    };
    double sums[SUMS] = {0};
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS)
        for (int s = 0; s < SUMS; s++)
            sums[s] += (double)x[i + s] * (double)x[i + s];
    for (; i < count; i++)
        sums[0] += (double)x[i] * (double)x[i];
    for (int half = SUMS / 2; half > 0; half /= 2)
        for (int s = 0; s < half; s++)
            sums[s] += sums[s + half];
    return sums[0];
}

void cpu_squares(struct stream *stream, double *blocks, const float *x, int64_t count)
{
    (void)stream;
    const int64_t block_count = (count + SQUARES_BLOCK - 1) / SQUARES_BLOCK;
#pragma omp parallel for schedule(static) if (block_count > 1)
    for (int64_t block = 0; block < block_count; block++) {
        const int64_t begin = block * SQUARES_BLOCK, left = count - begin;
        blocks[block] = sum_of_squares(x + begin, left < SQUARES_BLOCK ? left : SQUARES_BLOCK);
    }
}

/* The step's numbers as the loop needs them, folded in float64. */
struct factors {
    float scale, keep;  /* of the gradient; of the weight */
    float beta1, rest1; /* rest = 1 - beta */
    float beta2, rest2;
    float rate;          /* learning_rate / correction1 */
    float root, epsilon; /* root = 1 / sqrt(correction2) */
};

static void adamw_part(float *weights, float *first_moment, float *second_moment, const float *gradients, int64_t count,
                       const struct factors *f)
{
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t left = count - i;
        const vfloat g = vload_next(gradients + i, left, 0.0f) * f->scale;
        const vfloat m = vload_next(first_moment + i, left, 0.0f) * f->beta1 + g * f->rest1;
        const vfloat v = vload_next(second_moment + i, left, 0.0f) * f->beta2 + g * g * f->rest2;
        const vfloat update = m * f->rate / (vsqrt(v) * f->root + f->epsilon);
        vstore_next(first_moment + i, left, m);
        vstore_next(second_moment + i, left, v);
        vstore_next(weights + i, left, vload_next(weights + i, left, 0.0f) * f->keep - update);
    }
}

void cpu_adamw(struct stream *stream, float *weights, float *first_moment, float *second_moment, const float *gradients,
               const struct optimizer_range *ranges, int64_t range_count, const struct adamw *step)
{
    (void)stream;
    const struct factors decaying = {
        .scale = (float)step->scale,
        .keep = (float)(1.0 - step->learning_rate * step->weight_decay),
        .beta1 = (float)step->beta1,
        .rest1 = (float)(1.0 - step->beta1),
        .beta2 = (float)step->beta2,
        .rest2 = (float)(1.0 - step->beta2),
        .rate = (float)(step->learning_rate / step->correction1),
        .root = (float)(1.0 / sqrt(step->correction2)),
        .epsilon = (float)step->epsilon,
    };
    struct factors constant = decaying;
    constant.keep = 1.0f;

    int64_t total = 0;
    for (int64_t range = 0; range < range_count; range++)
        total += ranges[range].count;
        /* The ranges, laid end to end, are cut into one part per thread. */
#pragma omp parallel if (total >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(total, LANES);
        int64_t before = 0;
        for (int64_t range = 0; range < range_count; range++) {
            const int64_t count = ranges[range].count;
            const int64_t begin = own.begin > before ? own.begin - before : 0;
            const int64_t end = own.end - before < count ? own.end - before : count;
            const int64_t moment = ranges[range].moment + begin;
            if (begin < end)
                adamw_part(weights + ranges[range].weight + begin, first_moment + moment, second_moment + moment,
                           gradients + ranges[range].gradient + begin, end - begin,
                           ranges[range].decay ? &decaying : &constant);
            before += count;
        }
    }
}
