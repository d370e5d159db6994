#include "kernels/adamw.h"
#include "kernels/cuda/cuda_math.cuh"

enum {
    THREADS = 256,
    STEP_PACKS = 4,                        /* of float32, that a thread updates */
    STEP_BLOCK = THREADS * STEP_PACKS * 4, /* elements of a range that a block updates */
    RANGES = 48                            /* that one launch takes: they travel with its arguments */
};

/* A block's threads take packs in turn and add in double; the order of the sum follows from the block's length. */
template <typename T>
__global__ void __launch_bounds__(THREADS) squares(double *blocks, const T *x, int64_t count, bool wide)
{
    __shared__ double shared[32];
    const int64_t begin = blockIdx.x * (int64_t)SQUARES_BLOCK;
    const int64_t end = begin + SQUARES_BLOCK < count ? begin + SQUARES_BLOCK : count;
    double sum = 0.0;
    for (int64_t at = begin + threadIdx.x * (int64_t)PACK<T>; at < end; at += THREADS * PACK<T>) {
        float numbers[PACK<T>];
        load(numbers, x + at, end - at, wide);
        for (int i = 0; i < PACK<T>; i++)
            sum += (double)numbers[i] * (double)numbers[i];
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0)
        blocks[blockIdx.x] = sum;
}

template <typename T> static void square_blocks(struct stream *stream, double *blocks, const void *x, int64_t count)
{
    const int64_t room = (int64_t)(CUDA_WORKSPACE / sizeof(double)), all = parts_of(count, SQUARES_BLOCK);
    for (int64_t block = 0; block < all; block += room) {
        const int64_t now = least(all - block, room);
        LAUNCH(stream, squares<T>, dim3((unsigned)now), THREADS, 0, (double *)stream->workspace,
               (const T *)x + block * SQUARES_BLOCK, count - block * SQUARES_BLOCK, all_aligned(x));
        CUDA_CHECK(cudaMemcpyAsync(blocks + block, stream->workspace, (size_t)now * sizeof(double),
                                   cudaMemcpyDeviceToHost, stream->queue));
    }
}

void cuda_squares(struct stream *stream, enum element element, double *blocks, const void *x, int64_t count)
{
    BY_ELEMENT(element, square_blocks, stream, blocks, x, count);
}

struct arenas {
    float *weights, *first_moment, *second_moment;
    const float *gradients;
    char *computed;
};

/* Ranges of one launch and how many blocks those before each take. */
struct ranges {
    struct optimizer_range of[RANGES];
    int32_t before[RANGES + 1];
    int count;
};

__device__ static void store_computed(enum element element, char *to, const float (&from)[4], int64_t left)
{
    const bool wide = ((uintptr_t)to & 15) == 0;
    if (element == ELEMENT_FLOAT32)
        store(reinterpret_cast<float *>(to), from, left, wide);
    else if (left >= 4 && ((uintptr_t)to & 7) == 0)
        *reinterpret_cast<uint2 *>(to) = make_uint2(narrow_pair(from[0], from[1]), narrow_pair(from[2], from[3]));
    else
        for (int i = 0; i < 4; i++)
            if (i < left)
                reinterpret_cast<bfloat16 *>(to)[i] = narrow<bfloat16>(from[i]);
}

/* Every pack tests its addresses itself: ranges lie anywhere in the arenas. */
__global__ void __launch_bounds__(THREADS)
    update(struct arenas arenas, __grid_constant__ const struct ranges ranges, struct adamw_factors f)
{
    int number = 0;
    for (int step = 32; step > 0; step /= 2) /* the last range that begins at or before this block */
        if (number + step < ranges.count && ranges.before[number + step] <= (int)blockIdx.x)
            number += step;
    const struct optimizer_range &range = ranges.of[number];
    const float keep = range.decay ? f.keep : 1.0f;
    const int64_t begin = ((int)blockIdx.x - ranges.before[number]) * (int64_t)STEP_BLOCK;
    float *weights = arenas.weights + range.weight, *first = arenas.first_moment + range.moment;
    float *second = arenas.second_moment + range.moment;
    const float *gradients = arenas.gradients + range.gradient;
    const bool wide = (((uintptr_t)weights | (uintptr_t)first | (uintptr_t)second | (uintptr_t)gradients) & 15) == 0;
#pragma unroll
    for (int turn = 0; turn < STEP_PACKS; turn++) {
        const int64_t at = begin + (turn * THREADS + (int)threadIdx.x) * 4, left = range.count - at;
        float w[4], g[4], m[4], v[4];
        if (left <= 0)
            return;
        load(g, gradients + at, left, wide);
        load(m, first + at, left, wide);
        load(v, second + at, left, wide);
        load(w, weights + at, left, wide);
        for (int i = 0; i < 4; i++) {
            g[i] *= f.scale;
            m[i] = m[i] * f.beta1 + g[i] * f.rest1;
            v[i] = v[i] * f.beta2 + g[i] * g[i] * f.rest2;
            w[i] = w[i] * keep - m[i] * f.rate / (sqrtf(v[i]) * f.root + f.epsilon);
        }
        store(first + at, m, left, wide);
        store(second + at, v, left, wide);
        store(weights + at, w, left, wide);
        if (arenas.computed != nullptr)
            store_computed(range.element,
                           arenas.computed + range.computed + at * (range.element == ELEMENT_BFLOAT16 ? 2 : 4), w,
                           left);
    }
}

void cuda_adamw(struct stream *stream, float *weights, float *first_moment, float *second_moment,
                const float *gradients, void *computed, const struct optimizer_range *ranges, int64_t range_count,
                const struct adamw *step)
{
    const struct adamw_factors factors = adamw_fold(step);
    const struct arenas arenas = {weights, first_moment, second_moment, gradients, (char *)computed};
    for (int64_t done = 0; done < range_count; done += RANGES) {
        struct ranges now = {};
        now.count = (int)least(range_count - done, RANGES);
        for (int i = 0; i < now.count; i++) {
            now.of[i] = ranges[done + i];
            now.before[i + 1] = now.before[i] + (int32_t)parts_of(now.of[i].count, STEP_BLOCK);
        }
        LAUNCH(stream, update, dim3((unsigned)now.before[now.count]), THREADS, 0, arenas, now, factors);
    }
}
