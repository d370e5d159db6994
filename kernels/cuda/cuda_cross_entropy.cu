/* Cross-entropy: a block takes a row. The statistics read the logits once: each thread rescales its sum when it meets a
 * larger logit (Milakov and Gimelshein, 2018), and so does the joining of threads. */
#include "kernels/cuda/cuda_math.cuh"

enum {
    THREADS = 512 /* at most, of a block */
};

constexpr float LOG2_E = 1.4426950408889634f;

enum {
    LARGEST,
    SUM,
    TARGET,
    STATISTICS
}; /* the columns of the statistics */

/* The largest of some numbers and the sum of exp(x - largest). */
struct softmax {
    float largest, sum;
};

/* exp(x - largest), 0 where nothing was seen yet. */
__device__ static float relative(float x, float largest)
{
    return largest == -INFINITY ? 0.0f : expf(x - largest);
}

__device__ static struct softmax join(struct softmax a, struct softmax b)
{
    const float largest = fmaxf(a.largest, b.largest);
    if (a.largest == largest && b.largest == -INFINITY)
        return a;
    return {largest, a.sum * relative(a.largest, largest) + b.sum * relative(b.largest, largest)};
}

__device__ static struct softmax join_warp(struct softmax own)
{
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) { /* both lanes join the lower one's first */
        const struct softmax other = {__shfl_xor_sync(ALL_LANES, own.largest, offset),
                                      __shfl_xor_sync(ALL_LANES, own.sum, offset)};
        own = threadIdx.x & offset ? join(other, own) : join(own, other);
    }
    return own;
}

/* 2^x as the device has it: to some units in the last place, and 0 for the smallest numbers. */
__device__ static float power_of_two(float x)
{
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

/* Adds numbers to what a thread has seen. Powers are right to 2^-22 where x is close to the largest; where it is not,
 * the number adds little. */
template <int N> __device__ static struct softmax join_numbers(struct softmax own, const float (&x)[N])
{
    float largest = own.largest, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++)
        largest = fmaxf(largest, x[i]);
    const float base = largest == -INFINITY ? 0.0f : largest; /* NaN is no largest, but shows in the sum */
#pragma unroll
    for (int i = 0; i < N; i++)
        sum += power_of_two((x[i] - base) * LOG2_E);
    return {largest, own.sum * relative(own.largest, largest) + sum};
}

/* Two packs are on their way at once. */
template <typename T> __device__ static struct softmax softmax_of(const T *x, int64_t count, bool wide)
{
    struct softmax own = {-INFINITY, 0.0f};
    const int64_t step = blockDim.x * (int64_t)PACK<T>;
    for (int64_t at = threadIdx.x * (int64_t)PACK<T>; at < count; at += 2 * step) {
        float first[PACK<T>], second[PACK<T>];
        load(first, x + at, count - at, wide, -INFINITY);
        load(second, x + at + step, count - at - step, wide, -INFINITY);
        own = join_numbers(join_numbers(own, first), second);
    }
    return own;
}

template <typename T>
__global__ void __launch_bounds__(THREADS) statistics_row(float *statistics, const T *logits, const int32_t *targets,
                                                          int64_t first, int64_t count, int64_t pitch, bool wide)
{
    __shared__ struct softmax shared[32];
    const int64_t row = blockIdx.x, target = targets[row] - first;
    const T *x = logits + row * pitch;
    const int lane = (int)threadIdx.x % 32, warps = (int)blockDim.x / 32;
    struct softmax own = join_warp(softmax_of(x, count, wide));
    if (lane == 0)
        shared[threadIdx.x / 32] = own;
    __syncthreads();
    own = join_warp(lane < warps ? shared[lane] : softmax{-INFINITY, 0.0f});
    if (threadIdx.x > 0)
        return;
    float *to = statistics + row * STATISTICS;
    to[LARGEST] = own.largest;
    to[SUM] = own.sum;
    to[TARGET] = target >= 0 && target < count ? widen(x[target]) : 0.0f;
}

template <typename T>
static void statistics_rows(struct stream *stream, float *statistics, const void *logits, const int32_t *targets,
                            int64_t rows, int64_t first, int64_t count, int64_t pitch)
{
    LAUNCH(stream, statistics_row<T>, dim3((unsigned)rows), row_threads(parts_of(count, PACK<T>), THREADS), 0,
           statistics, (const T *)logits, targets, first, count, pitch, all_aligned(logits) && pitch % PACK<T> == 0);
}

void cuda_cross_entropy_statistics(struct stream *stream, enum element element, float *statistics, const void *logits,
                                   const int32_t *targets, int64_t rows, int64_t first, int64_t count, int64_t pitch)
{
    BY_ELEMENT(element, statistics_rows, stream, statistics, logits, targets, rows, first, count, pitch);
}

/* The statistics of a row over all parts [parts][rows][3]. */
__device__ static void join_statistics(float *joined, const float *statistics, int64_t row, int64_t rows, int parts)
{
    float largest = -INFINITY;
    for (int part = 0; part < parts; part++) {
        const float other = statistics[(part * rows + row) * STATISTICS + LARGEST];
        largest = other > largest ? other : largest;
    }
    double sum = 0.0, target = 0.0;
    for (int part = 0; part < parts; part++) {
        const float *from = statistics + (part * rows + row) * STATISTICS;
        if (from[SUM] != 0.0f) /* a part without tokens has -inf for its largest */
            sum += (double)from[SUM] * exp((double)from[LARGEST] - (double)largest);
        target += (double)from[TARGET];
    }
    joined[LARGEST] = largest;
    joined[SUM] = (float)sum;
    joined[TARGET] = (float)target;
}

/* Every thread reads the elements that it then writes, and no others. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    cross_entropy(float *losses, T *gradient, const T *logits, const int32_t *targets, const float *statistics,
                  int64_t rows, int64_t first, int64_t count, int64_t pitch, int parts, double scale, bool wide)
{
    __shared__ float joined[STATISTICS];
    const int64_t row = blockIdx.x, target = targets[row] - first;
    if (threadIdx.x == 0) {
        join_statistics(joined, statistics, row, rows, parts);
        losses[row] = logf(joined[SUM]) + (joined[LARGEST] - joined[TARGET]);
    }
    if (gradient == nullptr)
        return;
    __syncthreads();
    const float largest = joined[LARGEST], factor = (float)(scale / (double)joined[SUM]);
    for (int64_t at = threadIdx.x * (int64_t)PACK<T>; at < count; at += blockDim.x * (int64_t)PACK<T>) {
        float x[PACK<T>];
        load(x, logits + row * pitch + at, count - at, wide);
        for (int i = 0; i < PACK<T>; i++) {
            x[i] = expf(x[i] - largest) * factor;
            if (at + i == target)
                x[i] -= (float)scale;
        }
        store(gradient + row * pitch + at, x, count - at, wide);
    }
}

template <typename T>
static void cross_entropy_rows(struct stream *stream, float *losses, void *gradient, const void *logits,
                               const int32_t *targets, const float *statistics, int64_t rows, int64_t first,
                               int64_t count, int64_t pitch, int parts, double scale)
{
    const int64_t packs = gradient == nullptr ? 1 : parts_of(count, PACK<T>);
    LAUNCH(stream, cross_entropy<T>, dim3((unsigned)rows), row_threads(packs, THREADS), 0, losses, (T *)gradient,
           (const T *)logits, targets, statistics, rows, first, count, pitch, parts, scale,
           all_aligned(gradient, logits) && pitch % PACK<T> == 0);
}

void cuda_cross_entropy(struct stream *stream, enum element element, float *losses, void *gradient, const void *logits,
                        const int32_t *targets, const float *statistics, int64_t rows, int64_t first, int64_t count,
                        int64_t pitch, int parts, double scale)
{
    BY_ELEMENT(element, cross_entropy_rows, stream, losses, gradient, logits, targets, statistics, rows, first, count,
               pitch, parts, scale);
}
