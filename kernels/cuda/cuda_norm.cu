/* Layer norm: a block takes a row. It is read from memory once and twice more from the cache, where it fits by far. */
#include "kernels/cuda/cuda_math.cuh"

enum {
    THREADS = 256,         /* at most, of a block */
    GRADIENT_PARTS = 256,  /* at most, of the rows, for sums over rows */
    SHARED_MOST = 96 << 10 /* bytes of shared memory that every device of compute capability 8.0 and later gives */
};

/* Mean and rstd of a row, whose squares are summed about the mean; then the normed row. */
template <typename T>
__device__ static void norm_row(T *y, float *mean, float *rstd, const T *x, const float *weight, const float *bias,
                                int64_t width, double epsilon, bool wide, float *shared)
{
    const int64_t begin = threadIdx.x * (int64_t)PACK<T>, step = blockDim.x * (int64_t)PACK<T>;
    float numbers[PACK<T>], w[PACK<T>], b[PACK<T>], sum = 0.0f, squares = 0.0f;
    for (int64_t at = begin; at < width; at += step) {
        load(numbers, x + at, width - at, wide);
        for (int i = 0; i < PACK<T>; i++)
            sum += numbers[i];
    }
    const float average = block_sum(sum, shared) / (float)width;
    for (int64_t at = begin; at < width; at += step) {
        load(numbers, x + at, width - at, wide, average);
        for (int i = 0; i < PACK<T>; i++)
            squares += (numbers[i] - average) * (numbers[i] - average);
    }
    const float variance = block_sum(squares, shared) / (float)width;
    const float inverse = (float)(1.0 / sqrt((double)variance + epsilon));
    for (int64_t at = begin; at < width; at += step) {
        load(numbers, x + at, width - at, wide);
        load(w, weight + at, width - at, wide);
        load(b, bias + at, width - at, wide);
        for (int i = 0; i < PACK<T>; i++)
            numbers[i] = (numbers[i] - average) * inverse * w[i] + b[i];
        store(y + at, numbers, width - at, wide);
    }
    if (threadIdx.x == 0) {
        *mean = average;
        *rstd = inverse;
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS) norm(T *y, float *mean, float *rstd, const T *x, const float *weight,
                                                const float *bias, int64_t width, double epsilon, bool wide)
{
    __shared__ float shared[32];
    const int64_t row = blockIdx.x, at = row * width;
    norm_row(y + at, mean + row, rstd + row, x + at, weight, bias, width, epsilon, wide, shared);
}

template <typename T>
static void norm_rows(struct stream *stream, void *y, float *mean, float *rstd, const void *x, const float *weight,
                      const float *bias, int64_t rows, int64_t width, double epsilon)
{
    LAUNCH(stream, norm<T>, dim3((unsigned)rows), row_threads(parts_of(width, PACK<T>), THREADS), 0, (T *)y, mean, rstd,
           (const T *)x, weight, bias, width, epsilon, all_aligned(y, x, weight, bias) && width % PACK<T> == 0);
}

void cuda_norm(struct stream *stream, enum element element, void *y, float *mean, float *rstd, const void *x,
               const float *weight, const float *bias, int64_t rows, int64_t width, double epsilon)
{
    BY_ELEMENT(element, norm_rows, stream, y, mean, rstd, x, weight, bias, rows, width, epsilon);
}

/* The norm reads the sum from where it was stored, rounded; every thread reads what it has written itself. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    add_and_norm(T *sum, T *y, float *mean, float *rstd, const T *x, const T *r, const float *residual_bias,
                 const float *weight, const float *bias, int64_t width, double epsilon, bool wide)
{
    __shared__ float shared[32];
    const int64_t row = blockIdx.x, first = row * width, step = blockDim.x * (int64_t)PACK<T>;
    for (int64_t at = threadIdx.x * (int64_t)PACK<T>; at < width; at += step) {
        float total[PACK<T>], more[PACK<T>];
        load(total, x + first + at, width - at, wide);
        if (residual_bias != nullptr) {
            load(more, residual_bias + at, width - at, wide);
            for (int i = 0; i < PACK<T>; i++)
                total[i] += more[i];
        }
        load(more, r + first + at, width - at, wide);
        for (int i = 0; i < PACK<T>; i++)
            total[i] += more[i];
        store(sum + first + at, total, width - at, wide);
    }
    norm_row(y + first, mean + row, rstd + row, (const T *)sum + first, weight, bias, width, epsilon, wide, shared);
}

template <typename T>
static void add_and_norm_rows(struct stream *stream, void *sum, void *y, float *mean, float *rstd, const void *x,
                              const void *r, const float *residual_bias, const float *weight, const float *bias,
                              int64_t rows, int64_t width, double epsilon)
{
    LAUNCH(stream, add_and_norm<T>, dim3((unsigned)rows), row_threads(parts_of(width, PACK<T>), THREADS), 0, (T *)sum,
           (T *)y, mean, rstd, (const T *)x, (const T *)r, residual_bias, weight, bias, width, epsilon,
           all_aligned(sum, y, x, r, residual_bias, weight, bias) && width % PACK<T> == 0);
}

void cuda_add_residual_norm(struct stream *stream, enum element element, void *sum, void *y, float *mean, float *rstd,
                            const void *x, const void *r, const float *residual_bias, const float *weight,
                            const float *bias, int64_t rows, int64_t width, double epsilon)
{
    BY_ELEMENT(element, add_and_norm_rows, stream, sum, y, mean, rstd, x, r, residual_bias, weight, bias, rows, width,
               epsilon);
}

/* Row by row: with xhat = (x - mean) rstd and g = weight dy, dx = rstd (g - mean(g) - xhat mean(g xhat)). A block takes
 * `each` rows and sums dy xhat and dy over them: in shared memory, or where that is too small at once in
 * partial[block] [2][width], where the sums end in any case. A thread has the same columns in every row. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    norm_gradient(T *dx, float *partial, const T *dy, const T *residual, const T *x, const float *mean,
                  const float *rstd, const float *weight, int64_t rows, int64_t width, int64_t each, bool in_shared,
                  bool wide)
{
    extern __shared__ float columns[];
    __shared__ float shared[32];
    const int64_t begin = threadIdx.x * (int64_t)PACK<T>, step = blockDim.x * (int64_t)PACK<T>;
    float *own = partial + blockIdx.x * 2 * width, *sums = in_shared ? columns : own;
    for (int64_t at = begin; at < width; at += step)
        for (int i = 0; i < PACK<T> && at + i < width; i++)
            sums[at + i] = sums[width + at + i] = 0.0f;
    const int64_t first = blockIdx.x * each, end = first + each < rows ? first + each : rows;
    for (int64_t row = first; row < end; row++) {
        const float average = mean[row], inverse = rstd[row];
        float d[PACK<T>], numbers[PACK<T>], w[PACK<T>], sum = 0.0f, product = 0.0f;
        for (int64_t at = begin; at < width; at += step) {
            load(d, dy + row * width + at, width - at, wide);
            load(numbers, x + row * width + at, width - at, wide, average);
            load(w, weight + at, width - at, wide);
            for (int i = 0; i < PACK<T>; i++) {
                const float xhat = (numbers[i] - average) * inverse;
                sum += d[i] * w[i];
                product += d[i] * w[i] * xhat;
                if (at + i < width) {
                    sums[at + i] += d[i] * xhat;
                    sums[width + at + i] += d[i];
                }
            }
        }
        sum = block_sum(sum, shared) / (float)width;
        product = block_sum(product, shared) / (float)width;
        for (int64_t at = begin; at < width; at += step) {
            load(d, dy + row * width + at, width - at, wide);
            load(numbers, x + row * width + at, width - at, wide, average);
            load(w, weight + at, width - at, wide);
            for (int i = 0; i < PACK<T>; i++)
                d[i] = (d[i] * w[i] - sum - (numbers[i] - average) * inverse * product) * inverse;
            if (residual != nullptr) {
                load(w, residual + row * width + at, width - at, wide);
                for (int i = 0; i < PACK<T>; i++)
                    d[i] += w[i];
            }
            store(dx + row * width + at, d, width - at, wide);
        }
    }
    if (!in_shared)
        return;
    for (int64_t at = begin; at < width; at += step)
        for (int i = 0; i < PACK<T> && at + i < width; i++) {
            own[at + i] = sums[at + i];
            own[width + at + i] = sums[width + at + i];
        }
}

template <typename T>
static void norm_gradient_rows(struct stream *stream, void *dx, float *dweight, float *dbias, const void *dy,
                               const void *residual, const void *x, const float *mean, const float *rstd,
                               const float *weight, int64_t rows, int64_t width, bool accumulate)
{
    const size_t bytes = 2 * (size_t)width * sizeof(float);
    const bool in_shared = bytes <= SHARED_MOST;
    const int64_t room = bytes > 0 ? (int64_t)(CUDA_WORKSPACE / bytes) : 1;
    const int64_t most = least(least(room > 0 ? room : 1, GRADIENT_PARTS), rows);
    const int64_t each = most > 0 ? parts_of(rows, most) : 1, parts = parts_of(rows, each);
    float *partial = (float *)stream->workspace;
    CUDA_CHECK(cudaFuncSetAttribute(norm_gradient<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_MOST));
    LAUNCH(stream, norm_gradient<T>, dim3((unsigned)parts), row_threads(parts_of(width, PACK<T>), THREADS),
           in_shared ? bytes : 0, (T *)dx, partial, (const T *)dy, (const T *)residual, (const T *)x, mean, rstd,
           weight, rows, width, each, in_shared, all_aligned(dx, dy, residual, x, weight) && width % PACK<T> == 0);
    cuda_join_sums(stream, dweight, partial, parts, 2 * width, width, accumulate);
    cuda_join_sums(stream, dbias, partial + width, parts, 2 * width, width, accumulate);
}

void cuda_norm_gradient(struct stream *stream, enum element element, void *dx, float *dweight, float *dbias,
                        const void *dy, const void *residual, const void *x, const float *mean, const float *rstd,
                        const float *weight, int64_t rows, int64_t width, bool accumulate)
{
    BY_ELEMENT(element, norm_gradient_rows, stream, dx, dweight, dbias, dy, residual, x, mean, rstd, weight, rows,
               width, accumulate);
}
