#include "kernels/adamw.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_math.h"

/* The order of the sum follows from the block's length alone. */
VECTOR_FUNCTION double sum_of_squares(enum element element, const void *x, int64_t begin, int64_t count)
{
    enum {
        SUMS = 16
    };
    double sums[SUMS] = {0};
    for (int64_t i = 0; i < count; i += SUMS) {
        float numbers[SUMS]; /* zeros behind the end add nothing */
#pragma GCC unroll 4
        for (int64_t at = 0; at < SUMS; at += LANES)
            vstore(numbers + at,
                   i + at < count ? vload_next_as(element, x, begin + i + at, count - i - at, 0.0f) : vset(0.0f));
        for (int s = 0; s < SUMS; s++)
            sums[s] += (double)numbers[s] * (double)numbers[s];
    }
    for (int half = SUMS / 2; half > 0; half /= 2)
        for (int s = 0; s < half; s++)
            sums[s] += sums[s + half];
    return sums[0];
}

void cpu_squares(struct stream *stream, enum element element, double *blocks, const void *x, int64_t count)
{
    (void)stream;
    const int64_t block_count = (count + SQUARES_BLOCK - 1) / SQUARES_BLOCK;
#pragma omp parallel for schedule(static) if (block_count > 1)
    for (int64_t block = 0; block < block_count; block++) {
        const int64_t begin = block * SQUARES_BLOCK, left = count - begin;
        blocks[block] = FOR_ELEMENT(element, sum_of_squares, x, begin, left < SQUARES_BLOCK ? left : SQUARES_BLOCK);
    }
}

/* The new weights are also stored in `computed` as elements, unless it is NULL. */
VECTOR_FUNCTION void adamw_part(enum element element, float *weights, float *first_moment, float *second_moment,
                                const float *gradients, void *computed, int64_t count, const struct adamw_factors *f)
{
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t left = count - i;
        const vfloat g = vload_next(gradients + i, left, 0.0f) * f->scale;
        const vfloat m = vload_next(first_moment + i, left, 0.0f) * f->beta1 + g * f->rest1;
        const vfloat v = vload_next(second_moment + i, left, 0.0f) * f->beta2 + g * g * f->rest2;
        const vfloat update = m * f->rate / (vsqrt(v) * f->root + f->epsilon);
        vstore_next(first_moment + i, left, m);
        vstore_next(second_moment + i, left, v);
        const vfloat w = vload_next(weights + i, left, 0.0f) * f->keep - update;
        vstore_next(weights + i, left, w);
        if (computed != NULL)
            vstore_next_as(element, computed, i, left, w);
    }
}

/* Elements begin ... end-1 of a range. */
static void adamw_range(float *weights, float *first_moment, float *second_moment, const float *gradients,
                        void *computed, const struct optimizer_range *range, int64_t begin, int64_t end,
                        const struct adamw_factors *f)
{
    const int64_t moment = range->moment + begin;
    const size_t before = (size_t)begin * element_bytes(range->element);
    FOR_ELEMENT(range->element, adamw_part, weights + range->weight + begin, first_moment + moment,
                second_moment + moment, gradients + range->gradient + begin,
                computed == NULL ? NULL : (char *)computed + range->computed + before, end - begin, f);
}

void cpu_adamw(struct stream *stream, float *weights, float *first_moment, float *second_moment, const float *gradients,
               void *computed, const struct optimizer_range *ranges, int64_t range_count, const struct adamw *step)
{
    (void)stream;
    const struct adamw_factors decaying = adamw_fold(step);
    struct adamw_factors constant = decaying;
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
            if (begin < end)
                adamw_range(weights, first_moment, second_moment, gradients, computed, &ranges[range], begin, end,
                            ranges[range].decay ? &decaying : &constant);
            before += count;
        }
    }
}
