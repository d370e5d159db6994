/* Products of bfloat16 tiles by one warp of tensor cores (mma.sync m16n8k16), M pieces of 16 rows at a time: what is
 * read of the other tile serves all of them.
 *
 * A result [M][N][4] has the warp's 16 * M rows and N pieces of 8 columns. Of each 16 x 8 a lane holds four numbers:
 * rows lane/4 and lane/4 + 8, columns 2 * (lane % 4) and the next, in the order [0..1] and [2..3]. */
#ifndef KERNELS_CUDA_CUDA_FRAGMENT_CUH
#define KERNELS_CUDA_CUDA_FRAGMENT_CUH

#include "kernels/cuda/cuda_tile.cuh"

/* The warp's rows of a tile as the left factor, read anew for every product. */
template <int D, int M> struct stored_rows {
    const bfloat16 *row; /* the lane's */

    __device__ inline explicit stored_rows(const bfloat16 *tile)
        : row(tile + (int)threadIdx.x % 16 * TILE_ROW<bfloat16, D> + (int)threadIdx.x % 32 / 16 * 8)
    {
    }

    /* Columns 16 * k and on. */
    __device__ inline void take(unsigned (&to)[M][4], int k) const
    {
#pragma unroll
        for (int m = 0; m < M; m++)
            load_matrices(to[m], row + m * 16 * TILE_ROW<bfloat16, D> + k * 16);
    }
};

/* The same, kept in registers. */
template <int D, int M> struct held_rows {
    unsigned words[D / 16][M][4];

    __device__ inline void hold(const stored_rows<D, M> &rows)
    {
#pragma unroll
        for (int k = 0; k < D / 16; k++)
            rows.take(words[k], k);
    }

    __device__ inline void take(unsigned (&to)[M][4], int k) const
    {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                to[m][i] = words[k][m][i];
    }
};

template <int M, int N> __device__ inline void clear(float (&sum)[M][N][4])
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sum[m][n][i] = 0.0f;
}

/* What a product is given to do in between its steps, beside the tensor cores: nothing. */
struct nothing {
    __device__ inline void operator()(int) const
    {
    }
};

/* sum += a b^T, b has 8 * N rows of a tile. meanwhile(k) is called for k = 0 .. D / 16 - 1. */
template <int D, int M, int N, typename Rows, typename Meanwhile = nothing>
__device__ inline void add_product(float (&sum)[M][N][4], const Rows &a, const bfloat16 *b,
                                   const Meanwhile &meanwhile = nothing())
{
    const int lane = (int)threadIdx.x % 32;
    const bfloat16 *row = b + (lane / 16 * 8 + lane % 8) * TILE_ROW<bfloat16, D> + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        unsigned own[M][4];
        a.take(own, k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned other[4];
            load_matrices(other, row + n * 8 * TILE_ROW<bfloat16, D> + k * 16);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(sum[m][n], own[m], other[0], other[1]);
                multiply_add(sum[m][n + 1], own[m], other[2], other[3]);
            }
        }
        meanwhile(k);
    }
}

/* sum += p b: p is a result of before, whose numbers become elements; b has 8 * K rows of a tile. meanwhile(k) is
 * called for k = 0, 2 .. K - 2 and may still change p from piece k + 2 on. */
template <int D, int M, int N, int K, typename Meanwhile = nothing>
__device__ inline void add_weighted(float (&sum)[M][N][4], const float (&p)[M][K][4], const bfloat16 *b,
                                    const Meanwhile &meanwhile = nothing())
{
    const int lane = (int)threadIdx.x % 32;
    const bfloat16 *row = b + lane % 16 * TILE_ROW<bfloat16, D> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < K; k += 2) {
        unsigned own[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                own[m][i] = narrow_pair(p[m][k + i / 2][i % 2 * 2], p[m][k + i / 2][i % 2 * 2 + 1]);
        meanwhile(k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned other[4];
            load_matrices_transposed(other, row + k * 8 * TILE_ROW<bfloat16, D> + n * 8);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(sum[m][n], own[m], other[0], other[1]);
                multiply_add(sum[m][n + 1], own[m], other[2], other[3]);
            }
        }
    }
}

/* threadIdx.x, read again rather than kept in a register, nor what follows from it, over a loop. */
__device__ inline int thread_again()
{
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

/* Rows in memory, `step` elements apart, of which THREADS of a block copy one tile after the other. WIDE: rows start
 * at multiples of 16 bytes and are whole packs. */
template <int D, int THREADS, bool WIDE> struct row_stream {
    static constexpr int PACKS = D / PACK<bfloat16>, EACH = THREADS / PACKS; /* rows that they take at a time */
    const bfloat16 *at;                                                      /* the thread's part of the next tile */
    int step;

    __device__ inline row_stream(const bfloat16 *from, int64_t apart) : at(from), step((int)apart)
    {
        if (WIDE)
            at += (int64_t)((int)threadIdx.x % THREADS / PACKS) * step + (int)threadIdx.x % PACKS * PACK<bfloat16>;
    }

    /* Starts to copy ROWS rows, `distance` elements on, as fetch_tile does. `anywhere`: an address of memory. */
    template <int ROWS>
    __device__ inline void fetch(bfloat16 *tile, int left, int size, const bfloat16 *anywhere,
                                 int64_t distance = 0) const
    {
        static_assert(THREADS % PACKS == 0 && ROWS % EACH == 0, "threads take whole rows");
        const bfloat16 *from = at + distance;
        if (!WIDE) {
#pragma unroll 4
            for (int i = thread_again() % THREADS; i < ROWS * D; i += THREADS) {
                const bool inside = i / D < left && i % D < size;
                tile[i / D * TILE_ROW<bfloat16, D> + i % D] =
                    inside ? from[(int64_t)(i / D) * step + i % D] : narrow<bfloat16>(0.0f);
            }
            return;
        }
        const int thread = thread_again(), first = thread % THREADS / PACKS, column = thread % PACKS * PACK<bfloat16>;
        bfloat16 *to = tile + first * TILE_ROW<bfloat16, D> + column;
        const bool whole = left >= ROWS && size == D;
#pragma unroll
        for (int row = 0; row < ROWS; row += EACH) {
            const bool inside = whole || (first + row < left && column < size);
            __pipeline_memcpy_async(to + row * TILE_ROW<bfloat16, D>, inside ? from + (int64_t)row * step : anywhere,
                                    16, inside ? 0 : 16);
        }
    }

    __device__ inline void advance(int rows)
    {
        at += (int64_t)rows * step;
    }
};

/* Pack number `pack` of a row of `size` elements, zeros beyond them. */
template <bool WIDE>
__device__ inline void load_pack(float (&to)[PACK<bfloat16>], const bfloat16 *row, int pack, int size)
{
    const int column = pack * PACK<bfloat16>;
    if (!WIDE) {
        load(to, row + column, size - column, false);
        return;
    }
    const uint4 words = column < size ? *reinterpret_cast<const uint4 *>(row + column) : make_uint4(0, 0, 0, 0);
    widen_word(to, row, words.x);
    widen_word(to + 2, row, words.y);
    widen_word(to + 4, row, words.z);
    widen_word(to + 6, row, words.w);
}

/* Stores the warp's rows of a result, which become elements, by way of its rows of a tile. factors: of each of the
 * lane's rows. `to` is the first row's, rows are `step` elements apart, `left` of them and `size` columns exist. */
template <int D, bool WIDE, int M>
__device__ inline void store_result(bfloat16 *to, int64_t step, int64_t left, int size, bfloat16 *tile,
                                    const float (&from)[M][D / 8][4], const float (&factors)[M][2])
{
    constexpr int ROW = TILE_ROW<bfloat16, D>, PACKS = D / PACK<bfloat16>;
    const int lane = (int)threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int side = 0; side < 2; side++)
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                *reinterpret_cast<unsigned *>(tile + (m * 16 + lane / 4 + 8 * side) * ROW + n * 8 + lane % 4 * 2) =
                    narrow_pair(from[m][n][2 * side] * factors[m][side], from[m][n][2 * side + 1] * factors[m][side]);
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < 16 * M * PACKS; i += 32) {
        const int row = i / PACKS, column = i % PACKS * PACK<bfloat16>;
        const bfloat16 *pack = tile + row * ROW + column;
        if (row >= left || column >= size)
            continue;
        if (WIDE)
            *reinterpret_cast<uint4 *>(to + row * step + column) = *reinterpret_cast<const uint4 *>(pack);
        else
            for (int e = 0; e < PACK<bfloat16> && column + e < size; e++)
                to[row * step + column + e] = pack[e];
    }
}

#endif
