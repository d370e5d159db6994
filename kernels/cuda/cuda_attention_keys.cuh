/* The gradients of keys and values of bfloat16 heads of up to 128 elements, beside cuda_attention_tensor.cuh. The
 * weights are computed transposed, a row for each key. With heads of up to 64 elements a warp has registers for both
 * gradients of its 32 keys. With larger ones two warps share 32 keys: one computes the weights and the values'
 * gradients, the other, a tile of queries behind, from the same weights the scores' and the keys' gradients; one's
 * exponentials and differences so go beside the other's products. */
#ifndef KERNELS_CUDA_CUDA_ATTENTION_KEYS_CUH
#define KERNELS_CUDA_CUDA_ATTENTION_KEYS_CUH

#include "kernels/cuda/cuda_attention_tensor.cuh"

/* Of a block: sets of rows, which warps share or have alone; tiles of queries and STEP of them that are worked on at a
 * time; tiles in shared memory: those worked on and the next. */
template <int D, bool PAIRED> struct key_tiles {
    static constexpr int M = 2, SETS = 4, STREAMERS = 32 * SETS, THREADS = STREAMERS * (PAIRED ? 2 : 1);
    static constexpr int SET_ROWS = 16 * M, ROWS = SET_ROWS * SETS, TILE = PAIRED ? 32 : 64, STEP = 32, N = STEP / 8;
    static constexpr int STAGES = PAIRED ? 3 : 2, BLOCKS = PAIRED ? 1 : 2;
    static constexpr int ROW = TILE_ROW<bfloat16, D>, STAGE = 2 * TILE * ROW, STATISTICS = 2 * TILE;
    static constexpr int WEIGHTS = PAIRED ? ROWS * TILE : 0; /* that two warps share, of one tile; two are kept */
    static constexpr size_t BYTES =
        (2 * ROWS * ROW + STAGES * STAGE) * sizeof(bfloat16) + (2 * WEIGHTS + STAGES * STATISTICS) * sizeof(float);
};

/* Scores transposed, a row for each key: those of queries before the key become -infinity. */
template <int M, int N> __device__ inline void hide_earlier(float (&scores)[M][N][4], int reach)
{
    const int own = (int)threadIdx.x % 32 / 4 - (int)threadIdx.x % 4 * 2 + reach;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (n * 8 + i % 2 < m * 16 + i / 2 * 8 + own)
                    scores[m][n][i] = -INFINITY;
}

/* A block of keys of one key/value head. The queries that see them and their gradients stream by, tile after tile and
 * head after head of those that read the key/value head, each with logsumexp and delta of its rows. */
template <int D, typename S, bool WIDE> struct key_block {
    typedef row_stream<D, S::STREAMERS, WIDE> stream;
    int sequence, kv, head, key0, length, tiles; /* head: the next tile's; tiles: of all heads */
    stream queries, gradients;
    int left; /* queries of the head from the next tile on */

    __device__ inline explicit key_block(const struct attention &a)
        : queries(nullptr, a.qkv_row), gradients(nullptr, a.output_row)
    {
        const int items = (int)a.items, item = (int)blockIdx.x % items;
        sequence = item / a.kv_heads;
        kv = item % a.kv_heads;
        head = kv * a.group;
        key0 = (int)blockIdx.x / items * S::ROWS;
        length = (int)a.length;
        tiles = a.group * ((length - key0 + S::TILE - 1) / S::TILE);
    }

    /* Goes to the first query of `head` that sees the keys. */
    __device__ inline void begin(const bfloat16 *qkv, const bfloat16 *doutput, const struct attention &a)
    {
        const int64_t token = sequence * a.length + key0;
        queries = stream(qkv + token * a.qkv_row + head * a.size, a.qkv_row);
        gradients = stream(doutput + token * a.output_row + head * a.size, a.output_row);
        left = length - key0;
    }

    /* Starts to copy the next tile of queries and one of gradients behind it. */
    __device__ inline void fetch(bfloat16 *to, float *statistics, const bfloat16 *qkv, const bfloat16 *doutput,
                                 const float *logsumexp, const float *delta, const struct attention &a)
    {
        const int thread = thread_again() % S::STREAMERS;
        if (left <= 0) {
            head++;
            begin(qkv, doutput, a);
        }
        queries.template fetch<S::TILE>(to, left, a.size, qkv);
        gradients.template fetch<S::TILE>(to + S::TILE * S::ROW, left, a.size, doutput);
        if (thread < S::STATISTICS) {
            const int row = thread % S::TILE;
            const int64_t at = (int64_t)(sequence * a.heads + head) * a.length + (length - left);
            __pipeline_memcpy_async(statistics + thread,
                                    (thread < S::TILE ? logsumexp : delta) + at + (row < left ? row : 0), 4,
                                    row < left ? 0 : 4);
        }
        queries.advance(S::TILE);
        gradients.advance(S::TILE);
        left -= S::TILE;
        __pipeline_commit();
    }

    /* Starts to copy the block's own keys and values. */
    __device__ inline void fetch_own(bfloat16 *keys, bfloat16 *values, const bfloat16 *qkv, const struct attention &a)
    {
        const stream own(qkv + (sequence * a.length + key0) * a.qkv_row + (a.heads + kv) * a.size, a.qkv_row);
        own.template fetch<S::ROWS>(keys, length - key0, a.size, qkv);
        own.template fetch<S::ROWS>(values, length - key0, a.size, qkv, a.kv_heads * a.size);
    }

    /* Stores the warp's rows of a result from row0 on, among the keys' (0) or values' (1) columns. */
    __device__ inline void store(bfloat16 *dqkv, int row0, int of_values, bfloat16 *tile,
                                 const float (&sums)[S::M][D / 8][4], float factor, const struct attention &a) const
    {
        const int column = (a.heads + of_values * a.kv_heads + kv) * a.size;
        float factors[S::M][2];
#pragma unroll
        for (int m = 0; m < S::M; m++)
            factors[m][0] = factors[m][1] = factor;
        store_result<D, WIDE>(dqkv + (sequence * a.length + row0) * a.qkv_row + column, a.qkv_row, length - row0,
                              a.size, tile, sums, factors);
    }
};

/* Scores of piece n become weights; `logsumexp` of the lane's first column. */
template <int M, int N>
__device__ inline void soften_columns(float (&scores)[M][N][4], int n, float factor, const float *logsumexp)
{
    const float2 of = *reinterpret_cast<const float2 *>(logsumexp + n * 8);
    const float even = -LOG2_E * of.x, odd = -LOG2_E * of.y;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            scores[m][n][i] = power_of_two(fmaf(scores[m][n][i], factor, i % 2 ? odd : even));
}

/* Keys and values of one tile and one key/value head, over all query heads that read it. */
template <int D, bool WIDE>
__global__ void __launch_bounds__(key_tiles<D, false>::THREADS, key_tiles<D, false>::BLOCKS)
    tensor_key_value_gradient(bfloat16 *dqkv, const bfloat16 *doutput, const bfloat16 *qkv, const float *logsumexp,
                              const float *delta, const struct attention a)
{
    using S = key_tiles<D, false>;
    extern __shared__ __align__(16) char shared[];
    bfloat16 *keys = reinterpret_cast<bfloat16 *>(shared), *values = keys + S::ROWS * S::ROW;
    bfloat16 *tiles = values + S::ROWS * S::ROW;
    float *statistics = reinterpret_cast<float *>(tiles + S::STAGES * S::STAGE);
    key_block<D, S, WIDE> b(a);
    b.fetch_own(keys, values, qkv, a);
    b.begin(qkv, doutput, a);
    b.fetch(tiles, statistics, qkv, doutput, logsumexp, delta, a);

    const int first_row = (int)threadIdx.x / 32 * S::SET_ROWS, row0 = b.key0 + first_row;
    bfloat16 *own_keys = keys + first_row * S::ROW, *own_values = values + first_row * S::ROW;
    const stored_rows<D, S::M> stored_keys(own_keys), stored_values(own_values);
    const float factor = a.scale * LOG2_E;
    float dkeys[S::M][D / 8][4] = {}, dvalues[S::M][D / 8][4] = {};
    for (int i = 0, tile0 = b.key0; i < b.tiles; i++) {
        __pipeline_wait_prior(0);
        __syncthreads();
        if (i + 1 < b.tiles)
            b.fetch(tiles + (i + 1) % 2 * S::STAGE, statistics + (i + 1) % 2 * S::STATISTICS, qkv, doutput, logsumexp,
                    delta, a);
#pragma unroll 1
        for (int step = 0; step < S::TILE; step += S::STEP) {
            const int query0 = tile0 + step;
            if (query0 + S::STEP <= row0)
                continue;
            const bfloat16 *queries = tiles + i % 2 * S::STAGE + step * S::ROW;
            const bfloat16 *gradients = queries + S::TILE * S::ROW;
            const float *of = statistics + i % 2 * S::STATISTICS + step + own_column(0, 0);
            float scores[S::M][S::N][4] = {}, dscores[S::M][S::N][4] = {};
            add_product<D>(scores, stored_keys, queries);
            if (query0 < row0 + S::SET_ROWS - 1)
                hide_earlier(scores, row0 - query0);
            add_product<D>(dscores, stored_values, gradients, [&](int k) {
                if (k * S::N % (D / 16) == 0) /* a piece for some steps of the product */
                    soften_columns(scores, k * S::N / (D / 16), factor, of);
            });
            add_weighted<D>(dvalues, scores, gradients, [&](int k) {
#pragma unroll
                for (int n = k; n < k + 2; n++) {
                    const float2 mean = *reinterpret_cast<const float2 *>(of + S::TILE + n * 8);
#pragma unroll
                    for (int m = 0; m < S::M; m++)
#pragma unroll
                        for (int j = 0; j < 4; j++)
                            dscores[m][n][j] = scores[m][n][j] * (dscores[m][n][j] - (j % 2 ? mean.y : mean.x));
                }
            });
            add_weighted<D>(dkeys, dscores, queries);
        }
        tile0 = tile0 + S::TILE < b.length ? tile0 + S::TILE : b.key0;
    }
    b.store(dqkv, row0, 0, own_keys, dkeys, a.scale, a);
    b.store(dqkv, row0, 1, own_values, dvalues, 1.0f, a);
}

/* The same by pairs of warps. */
template <int D, bool WIDE>
__global__ void __launch_bounds__(key_tiles<D, true>::THREADS, key_tiles<D, true>::BLOCKS)
    paired_key_value_gradient(bfloat16 *dqkv, const bfloat16 *doutput, const bfloat16 *qkv, const float *logsumexp,
                              const float *delta, const struct attention a)
{
    using S = key_tiles<D, true>;
    extern __shared__ __align__(16) char shared[];
    bfloat16 *keys = reinterpret_cast<bfloat16 *>(shared), *values = keys + S::ROWS * S::ROW;
    bfloat16 *tiles = values + S::ROWS * S::ROW;
    float *weights = reinterpret_cast<float *>(tiles + S::STAGES * S::STAGE), *statistics = weights + 2 * S::WEIGHTS;
    const bool of_values = (int)threadIdx.x < S::STREAMERS; /* the others also fetch, as they have less to do */
    key_block<D, S, WIDE> b(a);
    if (!of_values) {
        b.fetch_own(keys, values, qkv, a);
        b.begin(qkv, doutput, a);
        b.fetch(tiles, statistics, qkv, doutput, logsumexp, delta, a);
    }

    const int pair = (int)threadIdx.x / 32 % S::SETS, row0 = b.key0 + pair * S::SET_ROWS;
    bfloat16 *rows =
        (of_values ? keys : values) + pair * S::SET_ROWS * S::ROW; /* the products' with the queries' side */
    const stored_rows<D, S::M> stored(rows);
    const float factor = a.scale * LOG2_E;
    float sums[S::M][D / 8][4] = {}, scores[S::M][S::N][4];
    bool seen = false; /* the warp's keys by the tile of before */
    int now = 0;       /* stage */
    for (int i = 0, query0 = b.key0; i <= b.tiles; i++) {
        __pipeline_wait_prior(0);
        __syncthreads();
        const int next = now + 1 < S::STAGES ? now + 1 : 0, before = now > 0 ? now - 1 : S::STAGES - 1;
        if (!of_values && i + 1 < b.tiles)
            b.fetch(tiles + next * S::STAGE, statistics + next * S::STATISTICS, qkv, doutput, logsumexp, delta, a);
        const bool sees = i < b.tiles && query0 + S::TILE > row0;
        float4 *kept = reinterpret_cast<float4 *>(weights + (i + !of_values) % 2 * S::WEIGHTS) +
                       pair * S::M * S::N * 32 + (int)threadIdx.x % 32; /* the lane's, a piece each */
        if (of_values && sees) {
            const float *of = statistics + now * S::STATISTICS + own_column(0, 0);
            clear(scores);
            add_product<D>(scores, stored, tiles + now * S::STAGE);
            if (query0 < row0 + S::SET_ROWS - 1)
                hide_earlier(scores, row0 - query0);
            const auto soften = [&](int n) {
                soften_columns(scores, n, factor, of);
#pragma unroll
                for (int m = 0; m < S::M; m++)
                    kept[(m * S::N + n) * 32] =
                        make_float4(scores[m][n][0], scores[m][n][1], scores[m][n][2], scores[m][n][3]);
            };
            soften(0);
            soften(1);
            add_weighted<D>(sums, scores, tiles + now * S::STAGE + S::TILE * S::ROW, [&](int k) {
                if (k + 2 < S::N) {
                    soften(k + 2);
                    soften(k + 3);
                }
            });
        }
        if (!of_values && seen) {
            const float *of = statistics + before * S::STATISTICS + S::TILE + own_column(0, 0);
            const auto differentiate = [&](int n) {
                const float2 mean = *reinterpret_cast<const float2 *>(of + n * 8);
#pragma unroll
                for (int m = 0; m < S::M; m++) {
                    const float4 weight = kept[(m * S::N + n) * 32];
                    scores[m][n][0] = weight.x * (scores[m][n][0] - mean.x);
                    scores[m][n][1] = weight.y * (scores[m][n][1] - mean.y);
                    scores[m][n][2] = weight.z * (scores[m][n][2] - mean.x);
                    scores[m][n][3] = weight.w * (scores[m][n][3] - mean.y);
                }
            };
            differentiate(0);
            differentiate(1);
            add_weighted<D>(sums, scores, tiles + before * S::STAGE, [&](int k) {
                if (k + 2 < S::N) {
                    differentiate(k + 2);
                    differentiate(k + 3);
                }
            });
        }
        if (!of_values && sees) {
            clear(scores);
            add_product<D>(scores, stored, tiles + now * S::STAGE + S::TILE * S::ROW);
        }
        seen = sees;
        query0 = query0 + S::TILE < b.length ? query0 + S::TILE : b.key0;
        now = next;
    }
    b.store(dqkv, row0, of_values, rows, sums, of_values ? 1.0f : a.scale, a);
}

#endif
