/* Embeddings. In the gradients every element of a table has one thread, which takes the rows in their order. */
#include "kernels/cuda/cuda_math.cuh"

enum {
    THREADS = 128,
    WARPS = THREADS / 32,
    SCANS = 16,            /* tokens that a thread looks at together */
    WORDS = SCANS * WARPS, /* of bits, that tell which of them are sought: two for each lane of a warp */
    TOGETHER = 8           /* rows that are on their way at once */
};

template <typename T> static dim3 grid_of(int64_t rows, int64_t width)
{
    return dim3((unsigned)rows, (unsigned)parts_of(width, THREADS * PACK<T>));
}

template <typename T> __device__ static int64_t first_column()
{
    return (blockIdx.y * (int64_t)THREADS + threadIdx.x) * PACK<T>;
}

template <typename T>
__global__ void __launch_bounds__(THREADS) embed(T *y, const int32_t *tokens, const T *table, const T *position,
                                                 int64_t width, int64_t length, int64_t first, int64_t count, bool wide)
{
    const int64_t row = blockIdx.x, column = first_column<T>(), left = width - column, entry = tokens[row] - first;
    float sum[PACK<T>] = {}, more[PACK<T>];
    if (left <= 0)
        return;
    if (entry >= 0 && entry < count)
        load(sum, table + entry * width + column, left, wide);
    if (position != nullptr) {
        load(more, position + row % length * width + column, left, wide);
        for (int i = 0; i < PACK<T>; i++)
            sum[i] += more[i];
    }
    store(y + row * width + column, sum, left, wide);
}

template <typename T>
static void embed_rows(struct stream *stream, void *y, const int32_t *tokens, const void *table, const void *position,
                       int64_t rows, int64_t width, int64_t length, int64_t first, int64_t count)
{
    LAUNCH(stream, embed<T>, grid_of<T>(rows, width), THREADS, 0, (T *)y, tokens, (const T *)table, (const T *)position,
           width, length, first, count, all_aligned(y, table, position) && width % PACK<T> == 0);
}

void cuda_embedding(struct stream *stream, enum element element, void *y, const int32_t *tokens, const void *table,
                    const void *position, int64_t rows, int64_t width, int64_t length, int64_t first, int64_t count)
{
    BY_ELEMENT(element, embed_rows, stream, y, tokens, table, position, rows, width, length, first, count);
}

/* Whether one of tokens[0 ... row-1] is `token`; the same for all threads. */
__device__ static bool seen_before(const int32_t *tokens, int64_t row, int32_t token)
{
    for (int64_t base = 0; base < row; base += SCANS * THREADS) {
        bool seen = false;
        for (int scan = 0; scan < SCANS; scan++) {
            const int64_t at = base + scan * THREADS + threadIdx.x;
            seen |= at < row && tokens[at] == token;
        }
        if (__syncthreads_or(seen))
            return true;
    }
    return false;
}

/* list = the rows from `base` on, SCANS * THREADS at most, that have the token, in their order; returns how many.
 * `bits`: WORDS words and one more. */
__device__ static int list_rows(int32_t *list, unsigned *bits, const int32_t *tokens, int64_t base, int64_t rows,
                                int32_t token)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int scan = 0; scan < SCANS; scan++) {
        const int64_t at = base + scan * THREADS + threadIdx.x;
        const unsigned found = __ballot_sync(ALL_LANES, at < rows && tokens[at] == token);
        if (lane == 0)
            bits[scan * WARPS + threadIdx.x / 32] = found;
    }
    __syncthreads();
    if (threadIdx.x < 32) { /* a lane lists the rows of two words behind those of the lanes before it */
        const int own = __popc(bits[2 * lane]) + __popc(bits[2 * lane + 1]);
        int end = own;
        for (int offset = 1; offset < 32; offset *= 2) {
            const int before = __shfl_up_sync(ALL_LANES, end, offset);
            end += lane >= offset ? before : 0;
        }
        int at = end - own;
        for (int word = 2 * lane; word < 2 * lane + 2; word++)
            for (unsigned left = bits[word]; left != 0; left &= left - 1)
                list[at++] = 32 * word + __ffs((int)left) - 1;
        if (lane == 31)
            bits[WORDS] = (unsigned)end;
    }
    __syncthreads();
    return (int)bits[WORDS];
}

/* The block of a token's first row adds all rows with that token to the token's entry; the other blocks have nothing to
 * do, and find so soon for frequent tokens. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    embedding_gradient(float *dtable, const T *dy, const int32_t *tokens, int64_t rows, int64_t width, int64_t first,
                       int64_t count, bool wide)
{
    static_assert(WORDS == 64, "two words for each lane");
    __shared__ unsigned bits[WORDS + 1];
    __shared__ int32_t list[SCANS * THREADS];
    const int32_t token = tokens[blockIdx.x];
    const int64_t entry = token - first, column = first_column<T>(), left = width - column;
    if (entry < 0 || entry >= count || seen_before(tokens, blockIdx.x, token))
        return;
    float sum[PACK<T>];
    float *to = dtable + entry * width + column;
    load(sum, to, left, wide);
    for (int64_t base = blockIdx.x; base < rows; base += SCANS * THREADS) {
        const int found = list_rows(list, bits, tokens, base, rows, token);
        for (int at = 0; at < found; at += TOGETHER) {
            uint4 packs[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; i++)
                if (at + i < found)
                    packs[i] = load_pack(dy + (base + list[at + i]) * width + column, left, wide);
#pragma unroll
            for (int i = 0; i < TOGETHER; i++)
                if (at + i < found) {
                    float more[PACK<T>];
                    widen_pack(more, packs[i], dy);
                    for (int j = 0; j < PACK<T>; j++)
                        sum[j] += more[j];
                }
        }
        __syncthreads();
    }
    store(to, sum, left, wide);
}

template <typename T>
static void embedding_gradient_rows(struct stream *stream, float *dtable, const void *dy, const int32_t *tokens,
                                    int64_t rows, int64_t width, int64_t first, int64_t count)
{
    LAUNCH(stream, embedding_gradient<T>, grid_of<T>(rows, width), THREADS, 0, dtable, (const T *)dy, tokens, rows,
           width, first, count, all_aligned(dtable, dy) && width % PACK<T> == 0);
}

void cuda_embedding_gradient(struct stream *stream, enum element element, float *dtable, const void *dy,
                             const int32_t *tokens, int64_t rows, int64_t width, int64_t first, int64_t count,
                             bool accumulate)
{
    if (!accumulate && count * width > 0)
        CUDA_CHECK(cudaMemsetAsync(dtable, 0, (size_t)(count * width) * sizeof(float), stream->queue));
    BY_ELEMENT(element, embedding_gradient_rows, stream, dtable, dy, tokens, rows, width, first, count);
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    position_gradient(float *dposition, const T *dy, int64_t rows, int64_t width, int64_t length, int64_t row_offset,
                      bool accumulate, bool wide)
{
    const int64_t place = blockIdx.x, column = first_column<T>(), left = width - column;
    float sum[PACK<T>] = {}, more[PACK<T>];
    float *to = dposition + place * width + column;
    if (left <= 0)
        return;
    if (accumulate)
        load(sum, to, left, wide);
    for (int64_t row = ((place - row_offset) % length + length) % length; row < rows; row += length) {
        load(more, dy + row * width + column, left, wide);
        for (int i = 0; i < PACK<T>; i++)
            sum[i] += more[i];
    }
    store(to, sum, left, wide);
}

template <typename T>
static void position_gradient_rows(struct stream *stream, float *dposition, const void *dy, int64_t rows, int64_t width,
                                   int64_t length, int64_t row_offset, bool accumulate)
{
    LAUNCH(stream, position_gradient<T>, grid_of<T>(length, width), THREADS, 0, dposition, (const T *)dy, rows, width,
           length, row_offset, accumulate, all_aligned(dposition, dy) && width % PACK<T> == 0);
}

void cuda_position_gradient(struct stream *stream, enum element element, float *dposition, const void *dy, int64_t rows,
                            int64_t width, int64_t length, int64_t row_offset, bool accumulate)
{
    BY_ELEMENT(element, position_gradient_rows, stream, dposition, dy, rows, width, length, row_offset, accumulate);
}
