/* Kernels over elements one by one, and sums of columns. They move each byte once; a thread has 16 bytes of each array
 * in flight. */
#include "kernels/cuda/cuda_math.cuh"

enum {
    THREADS = 256,
    ROW_THREADS = 128, /* of a block that takes part of one row */
    LANES = 32,
    GROUPS = 8,       /* of rows, in a block that sums columns: 32 threads each */
    JOIN_GROUPS = 32, /* of parts */
    FEWEST_ROWS = 64  /* that a block sums */
};

template <typename T> static dim3 flat_grid(int64_t count)
{
    return dim3((unsigned)parts_of(count, THREADS * PACK<T>));
}

/* Blocks for rows x width: each takes ROW_THREADS packs of one row. */
template <typename T> static dim3 row_grid(int64_t rows, int64_t width)
{
    return dim3((unsigned)rows, (unsigned)parts_of(width, ROW_THREADS * PACK<T>));
}

/* The thread's first element in a flat array. */
template <typename T> __device__ static int64_t flat_place()
{
    return (blockIdx.x * (int64_t)THREADS + threadIdx.x) * PACK<T>;
}

template <typename T> __device__ static int64_t row_place()
{
    return (blockIdx.y * (int64_t)ROW_THREADS + threadIdx.x) * PACK<T>;
}

template <typename T>
__global__ void __launch_bounds__(THREADS) convert(T *to, const float *from, int64_t count, bool wide)
{
    const int64_t at = flat_place<T>();
    float x[PACK<T>];
    if (at >= count)
        return;
    load(x, from + at, count - at, wide);
    store(to + at, x, count - at, wide);
}

template <typename T> static void convert_all(struct stream *stream, void *to, const float *from, int64_t count)
{
    LAUNCH(stream, convert<T>, flat_grid<T>(count), THREADS, 0, (T *)to, from, count, all_aligned(to, from));
}

void cuda_convert(struct stream *stream, enum element element, void *to, const float *from, int64_t count)
{
    BY_ELEMENT(element, convert_all, stream, to, from, count);
}

template <typename T>
__global__ void __launch_bounds__(ROW_THREADS) repeat(T *y, const float *bias, int64_t width, int64_t pitch, bool wide)
{
    const int64_t at = row_place<T>();
    float x[PACK<T>] = {};
    if (at >= width)
        return;
    if (bias != nullptr)
        load(x, bias + at, width - at, wide);
    store(y + blockIdx.x * pitch + at, x, width - at, wide);
}

template <typename T>
static void repeat_rows(struct stream *stream, void *y, const float *bias, int64_t rows, int64_t width, int64_t pitch)
{
    LAUNCH(stream, repeat<T>, row_grid<T>(rows, width), ROW_THREADS, 0, (T *)y, bias, width, pitch,
           all_aligned(y, bias) && pitch % PACK<T> == 0);
}

void cuda_repeat(struct stream *stream, enum element element, void *y, const float *bias, int64_t rows, int64_t width,
                 int64_t pitch)
{
    BY_ELEMENT(element, repeat_rows, stream, y, bias, rows, width, pitch);
}

template <typename T>
__global__ void __launch_bounds__(ROW_THREADS)
    add_residual(T *y, const T *x, const T *r, const float *bias, int64_t width, bool wide)
{
    const int64_t column = row_place<T>(), at = blockIdx.x * width + column, left = width - column;
    float sum[PACK<T>], more[PACK<T>];
    if (left <= 0)
        return;
    load(sum, x + at, left, wide);
    if (bias != nullptr) {
        load(more, bias + column, left, wide);
        for (int i = 0; i < PACK<T>; i++)
            sum[i] += more[i];
    }
    load(more, r + at, left, wide);
    for (int i = 0; i < PACK<T>; i++)
        sum[i] += more[i];
    store(y + at, sum, left, wide);
}

template <typename T>
static void add_residual_rows(struct stream *stream, void *y, const void *x, const void *r, const float *bias,
                              int64_t rows, int64_t width)
{
    LAUNCH(stream, add_residual<T>, row_grid<T>(rows, width), ROW_THREADS, 0, (T *)y, (const T *)x, (const T *)r, bias,
           width, all_aligned(y, x, r, bias) && width % PACK<T> == 0);
}

void cuda_add_residual(struct stream *stream, enum element element, void *y, const void *x, const void *r,
                       const float *bias, int64_t rows, int64_t width)
{
    BY_ELEMENT(element, add_residual_rows, stream, y, x, r, bias, rows, width);
}

/* gelu(x) = x share, with share = (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)); rest = 1 - share. Neither cancels. With the
 * device's own exponential and division, the latter made exact by a step of Newton's, arithmetic takes less time than
 * memory. */
struct gelu_parts {
    float share, rest;
};

__device__ static struct gelu_parts gelu_split(float x)
{
    const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x); /* sqrt(2/pi) */
    const float e = __expf(-2.0f * fabsf(u)), close = __fdividef(1.0f, 1.0f + e);
    const float large = fmaf(fmaf(-close, 1.0f + e, 1.0f), close, close), small = e * large;
    return u < 0.0f ? gelu_parts{small, large} : gelu_parts{large, small};
}

template <typename T> __global__ void __launch_bounds__(THREADS) gelu(T *y, const T *x, int64_t count, bool wide)
{
    const int64_t at = flat_place<T>();
    float numbers[PACK<T>];
    if (at >= count)
        return;
    load(numbers, x + at, count - at, wide);
    for (int i = 0; i < PACK<T>; i++)
        numbers[i] *= gelu_split(numbers[i]).share;
    store(y + at, numbers, count - at, wide);
}

template <typename T> static void gelu_all(struct stream *stream, void *y, const void *x, int64_t count)
{
    LAUNCH(stream, gelu<T>, flat_grid<T>(count), THREADS, 0, (T *)y, (const T *)x, count, all_aligned(y, x));
}

void cuda_gelu(struct stream *stream, enum element element, void *y, const void *x, int64_t count)
{
    BY_ELEMENT(element, gelu_all, stream, y, x, count);
}

__device__ static float gelu_slope(float x)
{
    const struct gelu_parts parts = gelu_split(x);
    return parts.share + 2.0f * 0.7978845608028654f * x * (1.0f + 3.0f * 0.044715f * x * x) * parts.share * parts.rest;
}

template <typename T>
__global__ void __launch_bounds__(THREADS) gelu_gradient(T *dx, const T *dy, const T *x, int64_t count, bool wide)
{
    const int64_t at = flat_place<T>();
    float d[PACK<T>], numbers[PACK<T>];
    if (at >= count)
        return;
    load(d, dy + at, count - at, wide);
    load(numbers, x + at, count - at, wide);
    for (int i = 0; i < PACK<T>; i++)
        d[i] *= gelu_slope(numbers[i]);
    store(dx + at, d, count - at, wide);
}

template <typename T>
static void gelu_gradient_all(struct stream *stream, void *dx, const void *dy, const void *x, int64_t count)
{
    LAUNCH(stream, gelu_gradient<T>, flat_grid<T>(count), THREADS, 0, (T *)dx, (const T *)dy, (const T *)x, count,
           all_aligned(dx, dy, x));
}

void cuda_gelu_gradient(struct stream *stream, enum element element, void *dx, const void *dy, const void *x,
                        int64_t count)
{
    BY_ELEMENT(element, gelu_gradient_all, stream, dx, dy, x, count);
}

/* A warp has a row and takes its columns of y one by one. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    linear_columns(T *y, const T *x, const T *w, const float *bias, int64_t rows, int64_t in, int64_t first,
                   int64_t out, int64_t pitch, bool wide)
{
    const int lane = (int)threadIdx.x % LANES;
    const int64_t row = blockIdx.x * (int64_t)(THREADS / LANES) + threadIdx.x / LANES;
    if (row >= rows)
        return;
    for (int64_t column = first; column < out; column++) {
        float sum = 0.0f, a[PACK<T>], b[PACK<T>];
#pragma unroll 4
        for (int64_t at = lane * PACK<T>; at < in; at += LANES * PACK<T>) {
            load(a, x + row * in + at, in - at, wide);
            load(b, w + column * in + at, in - at, wide);
            for (int i = 0; i < PACK<T>; i++)
                sum += a[i] * b[i];
        }
        for (int offset = LANES / 2; offset > 0; offset /= 2)
            sum += __shfl_xor_sync(ALL_LANES, sum, offset);
        if (lane == 0)
            y[row * pitch + column] = narrow<T>(bias != nullptr ? sum + bias[column] : sum);
    }
}

template <typename T>
static void linear_columns_of(struct stream *stream, void *y, const void *x, const void *w, const float *bias,
                              int64_t rows, int64_t in, int64_t first, int64_t out, int64_t pitch)
{
    LAUNCH(stream, linear_columns<T>, dim3((unsigned)parts_of(rows, THREADS / LANES)), THREADS, 0, (T *)y, (const T *)x,
           (const T *)w, bias, rows, in, first, out, pitch, all_aligned(x, w) && in % PACK<T> == 0);
}

void cuda_linear_columns(struct stream *stream, enum element element, void *y, const void *x, const void *w,
                         const float *bias, int64_t rows, int64_t in, int64_t first, int64_t out, int64_t pitch)
{
    BY_ELEMENT(element, linear_columns_of, stream, y, x, w, bias, rows, in, first, out, pitch);
}

/* partial[blockIdx.y] [width] = the sums of the columns over the block's rows. Each group of threads takes every
 * GROUPS-th row, and their sums are added in the groups' order. */
template <typename T>
__global__ void __launch_bounds__(LANES *GROUPS)
    sum_columns(float *partial, const T *dy, int64_t rows, int64_t width, int64_t pitch, int64_t each, bool wide)
{
    __shared__ float sums[GROUPS][LANES * PACK<T> + 1];
    const int lane = (int)threadIdx.x % LANES, group = (int)threadIdx.x / LANES;
    const int64_t first = blockIdx.x * (int64_t)(LANES * PACK<T>), column = first + lane * PACK<T>;
    const int64_t begin = blockIdx.y * each, end = begin + each < rows ? begin + each : rows;
    float sum[PACK<T>] = {}, x[PACK<T>];
#pragma unroll 4
    for (int64_t row = begin + group; row < end; row += GROUPS) {
        load(x, dy + row * pitch + column, width - column, wide);
        for (int i = 0; i < PACK<T>; i++)
            sum[i] += x[i];
    }
    for (int i = 0; i < PACK<T>; i++)
        sums[group][lane * PACK<T> + i] = sum[i];
    __syncthreads();
    const int own = (int)threadIdx.x;
    if (own >= LANES * PACK<T> || first + own >= width)
        return;
    float total = sums[0][own];
    for (int g = 1; g < GROUPS; g++)
        total += sums[g][own];
    partial[blockIdx.y * width + first + own] = total;
}

template <typename T>
static void column_sums(struct stream *stream, float *db, const void *dy, int64_t rows, int64_t width, int64_t pitch,
                        bool accumulate)
{
    const int64_t room = (int64_t)(CUDA_WORKSPACE / sizeof(float)) / (width > 0 ? width : 1);
    const int64_t most = least(least(room > 0 ? room : 1, 256), parts_of(rows, FEWEST_ROWS));
    const int64_t each = most > 0 ? parts_of(rows, most) : 1, parts = parts_of(rows, each);
    float *partial = (float *)stream->workspace;
    LAUNCH(stream, sum_columns<T>, dim3((unsigned)parts_of(width, LANES * PACK<T>), (unsigned)parts), LANES * GROUPS, 0,
           partial, (const T *)dy, rows, width, pitch, each, all_aligned(dy) && pitch % PACK<T> == 0);
    cuda_join_sums(stream, db, NULL, partial, parts, width, width, accumulate);
}

void cuda_column_sums(struct stream *stream, enum element element, float *db, const void *dy, int64_t rows,
                      int64_t width, int64_t pitch, bool accumulate)
{
    BY_ELEMENT(element, column_sums, stream, db, dy, rows, width, pitch, accumulate);
}

__global__ void __launch_bounds__(LANES *JOIN_GROUPS)
    join_sums(float *to, float *second, const float *from, int64_t parts, int64_t stride, int64_t width,
              bool accumulate)
{
    __shared__ float sums[JOIN_GROUPS][LANES];
    const int lane = (int)threadIdx.x % LANES, group = (int)threadIdx.x / LANES;
    const int64_t column = blockIdx.x * (int64_t)LANES + lane;
    float sum = 0.0f;
    from += blockIdx.y * width;
    if (column < width)
#pragma unroll 8
        for (int64_t part = group; part < parts; part += JOIN_GROUPS)
            sum += from[part * stride + column];
    sums[group][lane] = sum;
    __syncthreads();
    if (group > 0 || column >= width)
        return;
    for (int g = 1; g < JOIN_GROUPS; g++)
        sum += sums[g][lane];
    to = blockIdx.y == 0 ? to : second;
    to[column] = accumulate ? to[column] + sum : sum;
}

void cuda_join_sums(struct stream *stream, float *to, float *second, const float *from, int64_t parts, int64_t stride,
                    int64_t width, bool accumulate)
{
    LAUNCH(stream, join_sums, dim3((unsigned)parts_of(width, LANES), second != NULL ? 2 : 1), LANES * JOIN_GROUPS, 0,
           to, second, from, parts, stride, width, accumulate);
}
