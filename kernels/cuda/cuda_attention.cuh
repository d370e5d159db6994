/* Attention in tiles with an online softmax (Milakov and Gimelshein, 2018; Dao et al., 2022). A block has one tile of
 * queries, or in the keys' gradients of keys, each of its warps 16 rows; the other side streams by in tiles, the next
 * of which is on its way while one is worked on. Nothing is added across blocks: the queries' gradients and the keys'
 * and values' are kernels of their own, which each compute the weights again.
 *
 * The templates are compiled for each type of element in a file of its own; with bfloat16 only for heads of more than
 * 128 elements, as smaller ones have kernels of their own in cuda_attention_tensor.cuh. */
#ifndef KERNELS_CUDA_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda_tile.cuh"

/* One call, seen by every block. */
struct attention {
    int64_t length, items; /* items: sequences * heads, in the gradient of keys and values * kv_heads */
    int64_t qkv_row, output_row;
    int heads, kv_heads, group, size;
    float scale;
    bool wide, even; /* rows are whole packs, pairs */
};

constexpr float LOG2_E = 1.4426950408889634f;

/* Sizes of tiles for heads of up to D elements: what fits the registers and the shared memory. */
template <typename T, int D> struct tiles {
    static constexpr int WARPS = D == 256 && sizeof(T) == 4 ? 2 : 4, THREADS = 32 * WARPS, ROWS = 16 * WARPS;
    static constexpr int OTHERS = D == 256 && sizeof(T) == 4 ? 16 : 32; /* rows of a tile of the other side */
    static constexpr int PARTS = D == 256 ? 2 : 1; /* of a head's columns, for keys' and values' gradients */
    static constexpr int ROW = TILE_ROW<T, D>;
    static constexpr size_t FORWARD_BYTES = (ROWS + 4 * OTHERS) * ROW * sizeof(T);
    static constexpr size_t GRADIENT_BYTES = (2 * ROWS + 4 * OTHERS) * ROW * sizeof(T) + 4 * OTHERS * sizeof(float);
};

/* The rows of the lane among those of the block. */
__device__ inline int own_row(int side)
{
    return (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4 + 8 * side;
}

/* The column of number i of piece n. */
__device__ inline int own_column(int n, int i)
{
    return n * 8 + (int)threadIdx.x % 4 * 2 + i % 2;
}

/* Over the four lanes that share rows. */
__device__ inline float row_largest(float x)
{
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ inline float row_sum(float x)
{
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

/* Scores become exp(score - largest), in place; the running largest and sum are updated, and what was summed with the
 * old largest is rescaled. The sum is the lane's own part. */
template <int N, int M>
__device__ inline void soften(float (&scores)[N][4], float (&output)[M][4], float (&largest)[2], float (&sum)[2],
                              float factor)
{
#pragma unroll
    for (int side = 0; side < 2; side++) {
        float now = largest[side];
#pragma unroll
        for (int n = 0; n < N; n++)
            now = fmaxf(now, fmaxf(scores[n][2 * side], scores[n][2 * side + 1]));
        now = row_largest(now);
        const float shrink = exp2f((largest[side] - now) * factor);
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 2 * side; i < 2 * side + 2; i++) {
                scores[n][i] = exp2f((scores[n][i] - now) * factor);
                total += scores[n][i];
            }
#pragma unroll
        for (int m = 0; m < M; m++) {
            output[m][2 * side] *= shrink;
            output[m][2 * side + 1] *= shrink;
        }
        sum[side] = sum[side] * shrink + total;
        largest[side] = now;
    }
}

template <typename T, int D>
__global__ void __launch_bounds__(tiles<T, D>::THREADS, 1)
    attend(T *output, float *logsumexp, const T *qkv, const struct attention a)
{
    using S = tiles<T, D>;
    extern __shared__ __align__(16) char shared[];
    T *queries = reinterpret_cast<T *>(shared), *others = queries + S::ROWS * S::ROW;
    /* The longest rows first, so that short ones fill in at the end. */
    const int64_t item = blockIdx.x % a.items, block = gridDim.x / a.items - 1 - blockIdx.x / a.items;
    const int64_t sequence = item / a.heads, query0 = block * S::ROWS, left = a.length - query0;
    const int head = (int)(item % a.heads);
    const T *tokens = qkv + sequence * a.length * a.qkv_row;
    const T *keys = tokens + (a.heads + head / a.group) * a.size, *values = keys + a.kv_heads * a.size;
    const int count = (int)((query0 + (left < S::ROWS ? left : S::ROWS) + S::OTHERS - 1) / S::OTHERS);

    fetch_tile<S::ROWS, D>(queries, tokens + query0 * a.qkv_row + head * a.size, a.qkv_row, left, a.size, a.wide);
    float sums[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int tile = -1; tile < count; tile++) {
        if (tile + 1 < count) {
            T *to = others + (tile + 1) % 2 * 2 * S::OTHERS * S::ROW;
            const int64_t key0 = (tile + 1) * S::OTHERS;
            fetch_tile<S::OTHERS, D>(to, keys + key0 * a.qkv_row, a.qkv_row, a.length - key0, a.size, a.wide);
            fetch_tile<S::OTHERS, D>(to + S::OTHERS * S::ROW, values + key0 * a.qkv_row, a.qkv_row, a.length - key0,
                                     a.size, a.wide);
        }
        __pipeline_commit();
        if (tile < 0)
            continue;
        __pipeline_wait_prior(1);
        __syncthreads();
        const T *key_tile = others + tile % 2 * 2 * S::OTHERS * S::ROW;
        float scores[S::OTHERS / 8][4] = {};
        add_product<D>(scores, queries + threadIdx.x / 32 * 16 * S::ROW, key_tile);
        if ((tile + 1) * S::OTHERS > query0)
#pragma unroll
            for (int n = 0; n < S::OTHERS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (tile * S::OTHERS + own_column(n, i) > query0 + own_row(i / 2))
                        scores[n][i] = -INFINITY;
        soften(scores, sums, largest, sum, a.scale * LOG2_E);
        add_weighted<D>(sums, scores, key_tile + S::OTHERS * S::ROW);
        __syncthreads();
    }
    float inverse[2];
#pragma unroll
    for (int side = 0; side < 2; side++) {
        const float total = row_sum(sum[side]);
        inverse[side] = 1.0f / total;
        if (threadIdx.x % 4 == 0 && own_row(side) < left)
            logsumexp[item * a.length + query0 + own_row(side)] = largest[side] * a.scale + logf(total);
    }
    const int64_t row0 = query0 + threadIdx.x / 32 * 16;
    store_rows(output + (sequence * a.length + row0) * a.output_row + head * a.size, a.output_row, a.length - row0,
               a.size, sums, inverse, a.even);
}

/* delta [sequences, heads, length] = sum of output * doutput over each row of a head; a warp each. */
template <typename T>
__global__ void __launch_bounds__(128)
    sum_products(float *delta, const T *output, const T *doutput, int64_t all, const struct attention a)
{
    const int64_t number = blockIdx.x * 4 + threadIdx.x / 32; /* in [sequences, length, heads] */
    const int lane = (int)threadIdx.x % 32;
    if (number >= all)
        return;
    const int64_t row = number / a.heads, head = number % a.heads, from = row * a.output_row + head * a.size;
    float sum = 0.0f;
    for (int i = lane; i < a.size; i += 32)
        sum += widen(output[from + i]) * widen(doutput[from + i]);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    if (lane == 0)
        delta[(row / a.length * a.heads + head) * a.length + row % a.length] = sum;
}

/* Weights of a tile from the scores, and the scores' gradients from those of the weights, both in place. */
template <int N> struct softmax_gradient {
    float weights[N][4] = {}, dscores[N][4] = {};

    __device__ inline void take(int n, int i, bool visible, float logsumexp, float delta, float scale)
    {
        const float weight = visible ? exp2f((weights[n][i] * scale - logsumexp) * LOG2_E) : 0.0f;
        weights[n][i] = weight;
        dscores[n][i] = weight * (dscores[n][i] - delta);
    }
};

template <typename T, int D>
__global__ void __launch_bounds__(tiles<T, D>::THREADS, 1)
    query_gradient(T *dqkv, const T *doutput, const T *qkv, const float *logsumexp, const float *delta,
                   const struct attention a)
{
    using S = tiles<T, D>;
    extern __shared__ __align__(16) char shared[];
    T *queries = reinterpret_cast<T *>(shared), *gradients = queries + S::ROWS * S::ROW;
    T *others = gradients + S::ROWS * S::ROW;
    const int64_t item = blockIdx.x % a.items, block = gridDim.x / a.items - 1 - blockIdx.x / a.items;
    const int64_t sequence = item / a.heads, query0 = block * S::ROWS, left = a.length - query0;
    const int head = (int)(item % a.heads), warp_row = (int)threadIdx.x / 32 * 16;
    const T *tokens = qkv + sequence * a.length * a.qkv_row;
    const T *keys = tokens + (a.heads + head / a.group) * a.size, *values = keys + a.kv_heads * a.size;
    const int count = (int)((query0 + (left < S::ROWS ? left : S::ROWS) + S::OTHERS - 1) / S::OTHERS);

    fetch_tile<S::ROWS, D>(queries, tokens + query0 * a.qkv_row + head * a.size, a.qkv_row, left, a.size, a.wide);
    fetch_tile<S::ROWS, D>(gradients, doutput + (sequence * a.length + query0) * a.output_row + head * a.size,
                           a.output_row, left, a.size, a.wide);
    float row_logsumexp[2], row_delta[2], sums[D / 8][4] = {};
    for (int side = 0; side < 2; side++) {
        const int64_t at = item * a.length + query0 + own_row(side);
        row_logsumexp[side] = own_row(side) < left ? logsumexp[at] : 0.0f;
        row_delta[side] = own_row(side) < left ? delta[at] : 0.0f;
    }
    for (int tile = -1; tile < count; tile++) {
        if (tile + 1 < count) {
            T *to = others + (tile + 1) % 2 * 2 * S::OTHERS * S::ROW;
            const int64_t key0 = (tile + 1) * S::OTHERS;
            fetch_tile<S::OTHERS, D>(to, keys + key0 * a.qkv_row, a.qkv_row, a.length - key0, a.size, a.wide);
            fetch_tile<S::OTHERS, D>(to + S::OTHERS * S::ROW, values + key0 * a.qkv_row, a.qkv_row, a.length - key0,
                                     a.size, a.wide);
        }
        __pipeline_commit();
        if (tile < 0)
            continue;
        __pipeline_wait_prior(1);
        __syncthreads();
        const T *key_tile = others + tile % 2 * 2 * S::OTHERS * S::ROW;
        softmax_gradient<S::OTHERS / 8> g;
        add_product<D>(g.weights, queries + warp_row * S::ROW, key_tile);
        add_product<D>(g.dscores, gradients + warp_row * S::ROW, key_tile + S::OTHERS * S::ROW);
#pragma unroll
        for (int n = 0; n < S::OTHERS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                g.take(n, i, tile * S::OTHERS + own_column(n, i) <= query0 + own_row(i / 2), row_logsumexp[i / 2],
                       row_delta[i / 2], a.scale);
        add_weighted<D>(sums, g.dscores, key_tile);
        __syncthreads();
    }
    const float factors[2] = {a.scale, a.scale};
    const int64_t row0 = query0 + warp_row;
    store_rows(dqkv + (sequence * a.length + row0) * a.qkv_row + head * a.size, a.qkv_row, a.length - row0, a.size,
               sums, factors, a.even);
}

/* Keys and values of one tile and one key/value head, over all query heads that read it. The weights are computed
 * transposed, a row for each key. */
template <typename T, int D>
__global__ void __launch_bounds__(tiles<T, D>::THREADS, 1)
    key_value_gradient(T *dqkv, const T *doutput, const T *qkv, const float *logsumexp, const float *delta,
                       const struct attention a)
{
    using S = tiles<T, D>;
    constexpr int COLUMNS = D / S::PARTS;
    extern __shared__ __align__(16) char shared[];
    T *keys = reinterpret_cast<T *>(shared), *values = keys + S::ROWS * S::ROW, *others = values + S::ROWS * S::ROW;
    float *statistics = reinterpret_cast<float *>(others + 4 * S::OTHERS * S::ROW); /* of two tiles, each in turn */
    const int64_t number = blockIdx.x / S::PARTS, item = number % a.items, sequence = item / a.kv_heads;
    const int part = (int)(blockIdx.x % S::PARTS) * COLUMNS, kv = (int)(item % a.kv_heads);
    const int64_t key0 = number / a.items * S::ROWS, left = a.length - key0;
    const int warp_row = (int)threadIdx.x / 32 * 16;
    const T *tokens = qkv + sequence * a.length * a.qkv_row;
    const int64_t key_column = (a.heads + kv) * a.size, value_column = key_column + a.kv_heads * a.size;
    const int first = (int)(key0 / S::OTHERS), each = (int)((a.length + S::OTHERS - 1) / S::OTHERS) - first;

    fetch_tile<S::ROWS, D>(keys, tokens + key0 * a.qkv_row + key_column, a.qkv_row, left, a.size, a.wide);
    fetch_tile<S::ROWS, D>(values, tokens + key0 * a.qkv_row + value_column, a.qkv_row, left, a.size, a.wide);
    float dkeys[COLUMNS / 8][4] = {}, dvalues[COLUMNS / 8][4] = {};
    for (int tile = -1; tile < a.group * each; tile++) {
        if (tile + 1 < a.group * each) {
            const int head = kv * a.group + (tile + 1) / each;
            const int64_t query0 = (first + (tile + 1) % each) * (int64_t)S::OTHERS, more = a.length - query0;
            T *to = others + (tile + 1) % 2 * 2 * S::OTHERS * S::ROW;
            fetch_tile<S::OTHERS, D>(to, tokens + query0 * a.qkv_row + head * a.size, a.qkv_row, more, a.size, a.wide);
            fetch_tile<S::OTHERS, D>(to + S::OTHERS * S::ROW,
                                     doutput + (sequence * a.length + query0) * a.output_row + head * a.size,
                                     a.output_row, more, a.size, a.wide);
            float *of = statistics + (tile + 1) % 2 * 2 * S::OTHERS;
            const int64_t at = (sequence * a.heads + head) * a.length + query0;
            for (int i = (int)threadIdx.x; i < S::OTHERS; i += S::THREADS) {
                of[i] = i < more ? logsumexp[at + i] : 0.0f;
                of[S::OTHERS + i] = i < more ? delta[at + i] : 0.0f;
            }
        }
        __pipeline_commit();
        if (tile < 0)
            continue;
        __pipeline_wait_prior(1);
        __syncthreads();
        const T *queries = others + tile % 2 * 2 * S::OTHERS * S::ROW, *gradients = queries + S::OTHERS * S::ROW;
        const float *of = statistics + tile % 2 * 2 * S::OTHERS;
        const int64_t query0 = (first + tile % each) * (int64_t)S::OTHERS;
        softmax_gradient<S::OTHERS / 8> g;
        add_product<D>(g.weights, keys + warp_row * S::ROW, queries);
        add_product<D>(g.dscores, values + warp_row * S::ROW, gradients);
#pragma unroll
        for (int n = 0; n < S::OTHERS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = own_column(n, i);
                g.take(n, i, key0 + own_row(i / 2) <= query0 + column, of[column], of[S::OTHERS + column], a.scale);
            }
        add_weighted<D>(dvalues, g.weights, gradients + part);
        add_weighted<D>(dkeys, g.dscores, queries + part);
        __syncthreads();
    }
    const float factors[2] = {a.scale, a.scale}, ones[2] = {1.0f, 1.0f};
    const int64_t row0 = key0 + warp_row;
    T *to = dqkv + (sequence * a.length + row0) * a.qkv_row + part;
    store_rows(to + key_column, a.qkv_row, a.length - row0, a.size - part, dkeys, factors, a.even);
    store_rows(to + value_column, a.qkv_row, a.length - row0, a.size - part, dvalues, ones, a.even);
}

template <typename T, int D>
static void attention_forward(struct stream *stream, T *output, float *logsumexp, const T *qkv,
                              const struct attention *a)
{
    using S = tiles<T, D>;
    CUDA_CHECK(cudaFuncSetAttribute(attend<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::FORWARD_BYTES));
    LAUNCH(stream, attend<T, D>, dim3((unsigned)(parts_of(a->length, S::ROWS) * a->items)), S::THREADS,
           S::FORWARD_BYTES, output, logsumexp, qkv, *a);
}

template <typename T, int D>
static void attention_backward(struct stream *stream, T *dqkv, const T *doutput, const T *qkv, const T *output,
                               const float *logsumexp, float *delta, const struct attention *a)
{
    using S = tiles<T, D>;
    const int64_t blocks = parts_of(a->length, S::ROWS), all = a->items * a->length;
    struct attention keys = *a;
    keys.items = a->items / a->group;
    CUDA_CHECK(
        cudaFuncSetAttribute(query_gradient<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::GRADIENT_BYTES));
    CUDA_CHECK(
        cudaFuncSetAttribute(key_value_gradient<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::GRADIENT_BYTES));
    LAUNCH(stream, sum_products<T>, dim3((unsigned)parts_of(all, 4)), 128, 0, delta, output, doutput, all, *a);
    LAUNCH(stream, key_value_gradient<T, D>, dim3((unsigned)(blocks * keys.items * S::PARTS)), S::THREADS,
           S::GRADIENT_BYTES, dqkv, doutput, qkv, logsumexp, (const float *)delta, keys);
    LAUNCH(stream, query_gradient<T, D>, dim3((unsigned)(blocks * a->items)), S::THREADS, S::GRADIENT_BYTES, dqkv,
           doutput, qkv, logsumexp, (const float *)delta, *a);
}

/* The two directions for one type of element, whatever the size of the heads. */
template <typename T>
static void attention_by_size(struct stream *stream, void *output, float *logsumexp, const void *qkv,
                              const struct attention *a)
{
    const auto run = a->size <= 64    ? attention_forward<T, 64>
                     : a->size <= 128 ? attention_forward<T, 128>
                                      : attention_forward<T, 256>;
    run(stream, (T *)output, logsumexp, (const T *)qkv, a);
}

template <typename T>
static void attention_gradient_by_size(struct stream *stream, void *dqkv, const void *doutput, const void *qkv,
                                       const void *output, const float *logsumexp, float *delta,
                                       const struct attention *a)
{
    const auto run = a->size <= 64    ? attention_backward<T, 64>
                     : a->size <= 128 ? attention_backward<T, 128>
                                      : attention_backward<T, 256>;
    run(stream, (T *)dqkv, (const T *)doutput, (const T *)qkv, (const T *)output, logsumexp, delta, a);
}

typedef void attention_fn(struct stream *stream, void *output, float *logsumexp, const void *qkv,
                          const struct attention *a);
typedef void attention_gradient_fn(struct stream *stream, void *dqkv, const void *doutput, const void *qkv,
                                   const void *output, const float *logsumexp, float *delta, const struct attention *a);

/* cuda_attention_bf16.cu, cuda_attention_fp32.cu */
attention_fn cuda_attention_bf16, cuda_attention_fp32;
attention_gradient_fn cuda_attention_gradient_bf16, cuda_attention_gradient_fp32;

#endif
