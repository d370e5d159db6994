/* Attention of bfloat16 heads of up to 128 elements, in the same three kernels as cuda_attention.cuh, made for the
 * speed of tensor cores: a warp has two pieces of 16 rows, so that what it reads of the other side serves both;
 * exponentials are taken while the tensor cores are busy with the next product; a tile is fetched while the one before
 * is worked on, with one barrier for each; only tiles on the diagonal are masked, and warps leave out those above it.
 * The queries' gradients, which come first, also leave `delta` for those of the keys and values.
 *
 * WIDE: all rows start at multiples of 16 bytes and are whole packs. */
#ifndef KERNELS_CUDA_CUDA_ATTENTION_TENSOR_CUH
#define KERNELS_CUDA_CUDA_ATTENTION_TENSOR_CUH

#include "kernels/cuda/cuda_attention.cuh"
#include "kernels/cuda/cuda_fragment.cuh"

constexpr float LN_2 = 0.6931471805599453f;

/* Sizes of one kernel: rows of a tile of the other side, and how many of them are worked on at a time. */
template <int TILE_, int STEP_> struct tensor_tiles {
    static constexpr int M = 2, WARPS = 4, THREADS = 32 * WARPS, WARP_ROWS = 16 * M, ROWS = WARP_ROWS * WARPS;
    static constexpr int TILE = TILE_, STEP = STEP_;
    static constexpr int BLOCKS = 2; /* of a multiprocessor: as many as leave 255 registers to a thread */
};

template <int D> using forward_tiles = tensor_tiles<64, 64>;
template <int D> using query_tiles = tensor_tiles<D == 64 ? 64 : 32, 32>;

/* Of shared memory: `own` tiles of the block's rows, and twice two tiles of the other side. */
template <int D, typename S> constexpr size_t tensor_bytes(int own)
{
    return (size_t)(own * S::ROWS + 4 * S::TILE) * TILE_ROW<bfloat16, D> * sizeof(bfloat16);
}

/* 2^x, to two units in the last place; nothing where that is below 2^-126. */
__device__ inline float power_of_two(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* The lane's row number `side` of piece m, among those of its warp. */
__device__ inline int warp_row(int m, int side)
{
    return m * 16 + (int)threadIdx.x % 32 / 4 + 8 * side;
}

/* A block of queries of one head, which streams over keys and values. */
template <int D, typename S, bool WIDE> struct query_block {
    static constexpr int ROW = TILE_ROW<bfloat16, D>;
    int sequence, head, query0, left; /* queries from query0 on */
    int first_row, row0;              /* of the warp, among those of the block and of the sequence */
    int end;                          /* keys before it count */
    row_stream<D, S::THREADS, WIDE> keys;

    __device__ inline query_block(const bfloat16 *qkv, const struct attention &a) : keys(qkv, a.qkv_row)
    {
        /* The longest rows first, so that short ones fill in at the end. */
        const int items = (int)a.items;
        query0 = ((int)gridDim.x / items - 1 - (int)blockIdx.x / items) * S::ROWS;
        sequence = (int)blockIdx.x % items / a.heads;
        head = (int)blockIdx.x % items % a.heads;
        first_row = (int)threadIdx.x / 32 * S::WARP_ROWS;
        row0 = query0 + first_row;
        left = (int)a.length - query0;
        end = query0 + (left < S::ROWS ? left : S::ROWS);
        keys.at += sequence * a.length * a.qkv_row + (a.heads + head / a.group) * a.size;
    }

    /* Of logsumexp and delta, the number of query0. */
    __device__ inline int64_t first_number(const struct attention &a) const
    {
        return (int64_t)(sequence * a.heads + head) * a.length + query0;
    }

    __device__ inline void fetch_queries(bfloat16 *to, const bfloat16 *from, int64_t step,
                                         const struct attention &a) const
    {
        const row_stream<D, S::THREADS, WIDE> queries(from + (sequence * a.length + query0) * step + head * a.size,
                                                      step);
        queries.template fetch<S::ROWS>(to, left, a.size, from);
    }

    /* Starts to copy the next tile of keys, from key0 on, and that of values behind it. */
    __device__ inline void fetch(bfloat16 *to, int key0, const bfloat16 *qkv, const struct attention &a)
    {
        keys.template fetch<S::TILE>(to, end - key0, a.size, qkv);
        keys.template fetch<S::TILE>(to + S::TILE * ROW, end - key0, a.size, qkv, a.kv_heads * a.size);
        keys.advance(S::TILE);
        __pipeline_commit();
    }
};

/* Scores whose key comes after their query, that is whose column is more than `reach` beyond the row, become -infinity.
 */
template <int M, int N> __device__ inline void hide_later(float (&scores)[M][N][4], int reach)
{
    const int lane = (int)threadIdx.x % 32, own = lane / 4 - lane % 4 * 2 + reach;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (n * 8 + i % 2 > m * 16 + i / 2 * 8 + own)
                    scores[m][n][i] = -INFINITY;
}

/* The online softmax of the lane's rows: `largest` of the scores times factor so far, and the lane's own part of the
 * sum of 2^(score * factor - largest). */
template <int M> struct online_softmax {
    float largest[M][2], sum[M][2], factor;

    __device__ inline explicit online_softmax(float of) : factor(of)
    {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int side = 0; side < 2; side++)
                largest[m][side] = -INFINITY, sum[m][side] = 0.0f;
    }

    /* Takes a tile's scores into `largest`, and rescales what was summed with the old one. */
    template <int N, int C> __device__ inline void raise(const float (&scores)[M][N][4], float (&output)[M][C][4])
    {
        float shrink[M][2];
        bool risen = false;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                float most = scores[m][0][2 * side];
#pragma unroll
                for (int n = 0; n < N; n++)
                    most = fmaxf(most, fmaxf(scores[m][n][2 * side], scores[m][n][2 * side + 1]));
                const float now = fmaxf(largest[m][side], row_largest(most) * factor);
                risen = risen || now > largest[m][side];
                shrink[m][side] = power_of_two(largest[m][side] - now);
                largest[m][side] = now;
            }
        if (!__any_sync(ALL_LANES, risen)) /* all of `shrink` are 1 */
            return;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                sum[m][side] *= shrink[m][side];
#pragma unroll
                for (int c = 0; c < C; c++) {
                    output[m][c][2 * side] *= shrink[m][side];
                    output[m][c][2 * side + 1] *= shrink[m][side];
                }
            }
    }

    /* The scores of piece n become weights, not yet divided by their sum. */
    template <int N> __device__ inline void soften(float (&scores)[M][N][4], int n)
    {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                scores[m][n][i] = power_of_two(fmaf(scores[m][n][i], factor, -largest[m][i / 2]));
                sum[m][i / 2] += scores[m][n][i];
            }
    }
};

template <int D, bool WIDE>
__global__ void __launch_bounds__(forward_tiles<D>::THREADS, forward_tiles<D>::BLOCKS)
    tensor_attend(bfloat16 *output, float *logsumexp, const bfloat16 *qkv, const struct attention a)
{
    using S = forward_tiles<D>;
    constexpr int ROW = TILE_ROW<bfloat16, D>;
    extern __shared__ __align__(16) char shared[];
    bfloat16 *queries = reinterpret_cast<bfloat16 *>(shared), *others = queries + S::ROWS * ROW;
    query_block<D, S, WIDE> b(qkv, a);
    b.fetch_queries(queries, qkv, a.qkv_row, a);
    b.fetch(others, 0, qkv, a);
    bfloat16 *own = queries + b.first_row * ROW;
    const stored_rows<D, S::M> stored(own);
    held_rows<D, S::M> held;
    float sums[S::M][D / 8][4] = {};
    online_softmax<S::M> softmax(a.scale * LOG2_E);
    for (int key0 = 0; key0 < b.end; key0 += S::TILE) {
        __pipeline_wait_prior(0);
        __syncthreads();
        const int turn = key0 / S::TILE % 2;
        const bfloat16 *key_tile = others + turn * 2 * S::TILE * ROW;
        if (key0 + S::TILE < b.end)
            b.fetch(others + (1 - turn) * 2 * S::TILE * ROW, key0 + S::TILE, qkv, a);
        if (D == 64 && key0 == 0)
            held.hold(stored);
        if (key0 >= b.row0 + S::WARP_ROWS)
            continue;
        float scores[S::M][S::TILE / 8][4] = {};
        if (D == 64)
            add_product<D>(scores, held, key_tile);
        else
            add_product<D>(scores, stored, key_tile);
        if (key0 + S::TILE > b.row0 + 1)
            hide_later(scores, b.row0 - key0);
        softmax.raise(scores, sums);
        softmax.soften(scores, 0);
        softmax.soften(scores, 1);
        add_weighted<D>(sums, scores, key_tile + S::TILE * ROW, [&](int k) {
            if (k + 2 < S::TILE / 8) {
                softmax.soften(scores, k + 2);
                softmax.soften(scores, k + 3);
            }
        });
    }
    float inverse[S::M][2];
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const float total = row_sum(softmax.sum[m][side]);
            const int row = b.first_row + warp_row(m, side);
            inverse[m][side] = 1.0f / total;
            if (threadIdx.x % 4 == 0 && row < b.left)
                logsumexp[b.first_number(a) + row] = fmaf(softmax.largest[m][side], LN_2, logf(total));
        }
    store_result<D, WIDE>(output + (b.sequence * a.length + b.row0) * a.output_row + b.head * a.size, a.output_row,
                          a.length - b.row0, a.size, own, sums, inverse);
}

/* The sum of x * y over `size` columns, by the four lanes that share a row. */
template <int D, bool WIDE> __device__ inline float row_product(const bfloat16 *x, const bfloat16 *y, int size)
{
    float sum = 0.0f;
#pragma unroll
    for (int pack = 0; pack < D / PACK<bfloat16>; pack += 4) {
        float a[PACK<bfloat16>], b[PACK<bfloat16>];
        load_pack<WIDE>(a, x, pack + (int)threadIdx.x % 4, size);
        load_pack<WIDE>(b, y, pack + (int)threadIdx.x % 4, size);
#pragma unroll
        for (int i = 0; i < PACK<bfloat16>; i++)
            sum = fmaf(a[i], b[i], sum);
    }
    return row_sum(sum);
}

/* The queries' gradients of a tile; also delta [sequences, heads, length], the sum of output * doutput over each row.
 */
template <int D, bool WIDE>
__global__ void __launch_bounds__(query_tiles<D>::THREADS, query_tiles<D>::BLOCKS)
    tensor_query_gradient(bfloat16 *dqkv, float *delta, const bfloat16 *doutput, const bfloat16 *qkv,
                          const bfloat16 *output, const float *logsumexp, const struct attention a)
{
    using S = query_tiles<D>;
    constexpr int ROW = TILE_ROW<bfloat16, D>;
    extern __shared__ __align__(16) char shared[];
    bfloat16 *queries = reinterpret_cast<bfloat16 *>(shared), *gradients = queries + S::ROWS * ROW;
    bfloat16 *others = gradients + S::ROWS * ROW;
    query_block<D, S, WIDE> b(qkv, a);
    b.fetch_queries(queries, qkv, a.qkv_row, a);
    b.fetch_queries(gradients, doutput, a.output_row, a);
    b.fetch(others, 0, qkv, a);
    float row_logsumexp[S::M][2], row_delta[S::M][2];
    const int64_t statistics = b.first_number(a);
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const int own_row = b.first_row + warp_row(m, side), row = own_row < b.left ? own_row : b.left - 1;
            const int64_t of = (b.sequence * a.length + b.query0 + row) * a.output_row + b.head * a.size;
            row_logsumexp[m][side] = -LOG2_E * logsumexp[statistics + row];
            row_delta[m][side] = row_product<D, WIDE>(output + of, doutput + of, a.size);
        }
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int side = 0; side < 2; side++)
            if (threadIdx.x % 4 == 0 && b.first_row + warp_row(m, side) < b.left)
                delta[statistics + b.first_row + warp_row(m, side)] = row_delta[m][side];
    bfloat16 *own = queries + b.first_row * ROW;
    const stored_rows<D, S::M> stored(own), dstored(gradients + b.first_row * ROW);
    held_rows<D, S::M> held, dheld;
    float sums[S::M][D / 8][4] = {};
    const float factor = a.scale * LOG2_E;
    for (int tile0 = 0; tile0 < b.end; tile0 += S::TILE) {
        __pipeline_wait_prior(0);
        __syncthreads();
        const int turn = tile0 / S::TILE % 2;
        const bfloat16 *key_tile = others + turn * 2 * S::TILE * ROW;
        if (tile0 + S::TILE < b.end)
            b.fetch(others + (1 - turn) * 2 * S::TILE * ROW, tile0 + S::TILE, qkv, a);
        if (D == 64 && tile0 == 0) {
            held.hold(stored);
            dheld.hold(dstored);
        }
#pragma unroll 1
        for (int step = 0; step < S::TILE; step += S::STEP) {
            const int key0 = tile0 + step;
            if (key0 >= b.row0 + S::WARP_ROWS)
                break;
            constexpr int N = S::STEP / 8;
            float scores[S::M][N][4] = {}, dscores[S::M][N][4] = {};
            const bfloat16 *key_rows = key_tile + step * ROW, *value_rows = key_rows + S::TILE * ROW;
            if (D == 64)
                add_product<D>(scores, held, key_rows);
            else
                add_product<D>(scores, stored, key_rows);
            if (key0 + S::STEP > b.row0 + 1)
                hide_later(scores, b.row0 - key0);
            const auto soften = [&](int k) { /* a share of the scores for each step of the product */
                                             constexpr int EACH = S::M * N * 16 / D;
#pragma unroll
                                             for (int j = k * EACH; j < (k + 1) * EACH; j++)
#pragma unroll
                                                 for (int i = 0; i < 4; i++) {
                                                     float &score = scores[j / N][j % N][i];
                                                     score =
                                                         power_of_two(fmaf(score, factor, row_logsumexp[j / N][i / 2]));
                                                 }
            };
            if (D == 64)
                add_product<D>(dscores, dheld, value_rows, soften);
            else
                add_product<D>(dscores, dstored, value_rows, soften);
            const auto differentiate = [&](int k) {
#pragma unroll
                for (int m = 0; m < S::M; m++)
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        float &dscore = dscores[m][k + i / 4][i % 4];
                        dscore = scores[m][k + i / 4][i % 4] * (dscore - row_delta[m][i % 4 / 2]);
                    }
            };
            differentiate(0);
            add_weighted<D>(sums, dscores, key_rows, [&](int k) {
                if (k + 2 < N)
                    differentiate(k + 2);
            });
        }
    }
    float factors[S::M][2];
    for (int m = 0; m < S::M; m++)
        factors[m][0] = factors[m][1] = a.scale;
    store_result<D, WIDE>(dqkv + (b.sequence * a.length + b.row0) * a.qkv_row + b.head * a.size, a.qkv_row,
                          a.length - b.row0, a.size, own, sums, factors);
}

#endif
