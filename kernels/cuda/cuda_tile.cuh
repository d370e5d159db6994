/* Products of tiles in shared memory by one warp, for attention: bfloat16 by tensor cores (mma.sync m16n8k16), float32
 * by fused multiply-adds.
 *
 * A warp has 16 rows of a result in pieces of 8 columns. Of each piece a lane holds four numbers, as the tensor cores
 * lay them out: rows lane/4 and lane/4 + 8, columns 2 * (lane % 4) and the next, in the order [0..1] and [2..3].
 *
 * A tile's rows have D elements and 16 bytes between them, so that eight rows lie in different banks. */
#ifndef KERNELS_CUDA_CUDA_TILE_CUH
#define KERNELS_CUDA_CUDA_TILE_CUH

#include <cuda_pipeline_primitives.h>

#include "kernels/cuda/cuda_math.cuh"

/* Elements between the starts of two rows of a tile. */
template <typename T, int D> constexpr int TILE_ROW = D + PACK<T>;

/* Starts to copy ROWS rows of `size` <= D elements, `step` elements apart, of which `left` exist; all others of the
 * tile become zero. The copy ends at the next __pipeline_wait_prior and barrier. `wide`: size and step are whole packs,
 * and the address is aligned to 16 bytes. */
template <int ROWS, int D, typename T>
__device__ inline void fetch_tile(T *tile, const T *from, int64_t step, int64_t left, int size, bool wide)
{
    constexpr int PACKS = D / PACK<T>;
    for (int i = (int)threadIdx.x; i < ROWS * PACKS; i += (int)blockDim.x) {
        const int row = i / PACKS, column = i % PACKS * PACK<T>;
        T *to = tile + row * TILE_ROW<T, D> + column;
        const bool inside = row < left && column < size;
        if (wide)
            __pipeline_memcpy_async(to, inside ? from + row * step + column : from, 16, inside ? 0 : 16);
        else
            for (int e = 0; e < PACK<T>; e++)
                to[e] = inside && column + e < size ? from[row * step + column + e] : narrow<T>(0.0f);
    }
}

__device__ inline void load_matrices(unsigned (&to)[4], const bfloat16 *row)
{
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

__device__ inline void load_matrices_transposed(unsigned (&to)[4], const bfloat16 *row)
{
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

__device__ inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* sum += a b^T: a has the warp's 16 rows, b has 8 * N rows; both are rows of tiles. */
template <int D, int N> __device__ inline void add_product(float (&sum)[N][4], const bfloat16 *a, const bfloat16 *b)
{
    const int lane = (int)threadIdx.x % 32;
    const bfloat16 *a_row = a + lane % 16 * TILE_ROW<bfloat16, D> + lane / 16 * 8;
    const bfloat16 *b_row = b + (lane / 16 * 8 + lane % 8) * TILE_ROW<bfloat16, D> + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        unsigned own[4], other[4];
        load_matrices(own, a_row + k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            load_matrices(other, b_row + n * 8 * TILE_ROW<bfloat16, D> + k);
            multiply_add(sum[n], own, other[0], other[1]);
            multiply_add(sum[n + 1], own, other[2], other[3]);
        }
    }
}

template <int D, int N> __device__ inline void add_product(float (&sum)[N][4], const float *a, const float *b)
{
    const int lane = (int)threadIdx.x % 32;
    const float *a_row = a + lane / 4 * TILE_ROW<float, D>, *b_row = b + lane % 4 * 2 * TILE_ROW<float, D>;
#pragma unroll 4
    for (int k = 0; k < D; k += 4) {
        float low[4], high[4], even[4], odd[4];
        load(low, a_row + k, 4, true);
        load(high, a_row + 8 * TILE_ROW<float, D> + k, 4, true);
#pragma unroll
        for (int n = 0; n < N; n++) {
            load(even, b_row + n * 8 * TILE_ROW<float, D> + k, 4, true);
            load(odd, b_row + (n * 8 + 1) * TILE_ROW<float, D> + k, 4, true);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum[n][0] = fmaf(low[i], even[i], sum[n][0]);
                sum[n][1] = fmaf(low[i], odd[i], sum[n][1]);
                sum[n][2] = fmaf(high[i], even[i], sum[n][2]);
                sum[n][3] = fmaf(high[i], odd[i], sum[n][3]);
            }
        }
    }
}

/* sum += p b: p [16, 8 * K] is a result of before, whose numbers become elements; b has 8 * K rows of a tile, of which
 * 8 * N columns are taken. */
template <int D, int N, int K>
__device__ inline void add_weighted(float (&sum)[N][4], const float (&p)[K][4], const bfloat16 *b)
{
    const int lane = (int)threadIdx.x % 32;
    const bfloat16 *row = b + lane % 16 * TILE_ROW<bfloat16, D> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < K; k += 2) {
        const unsigned own[4] = {narrow_pair(p[k][0], p[k][1]), narrow_pair(p[k][2], p[k][3]),
                                 narrow_pair(p[k + 1][0], p[k + 1][1]), narrow_pair(p[k + 1][2], p[k + 1][3])};
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned other[4];
            load_matrices_transposed(other, row + k * 8 * TILE_ROW<bfloat16, D> + n * 8);
            multiply_add(sum[n], own, other[0], other[1]);
            multiply_add(sum[n + 1], own, other[2], other[3]);
        }
    }
}

template <int D, int N, int K>
__device__ inline void add_weighted(float (&sum)[N][4], const float (&p)[K][4], const float *b)
{
    const int lane = (int)threadIdx.x % 32;
    const float *column = b + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < 8 * K; k++) { /* the lane of the row's four that has column k */
        const int owner = lane / 4 * 4 + k % 8 / 2;
        const float low = __shfl_sync(ALL_LANES, p[k / 8][k % 2], owner);
        const float high = __shfl_sync(ALL_LANES, p[k / 8][2 + k % 2], owner);
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float2 pair = *reinterpret_cast<const float2 *>(column + k * TILE_ROW<float, D> + n * 8);
            sum[n][0] = fmaf(low, pair.x, sum[n][0]);
            sum[n][1] = fmaf(low, pair.y, sum[n][1]);
            sum[n][2] = fmaf(high, pair.x, sum[n][2]);
            sum[n][3] = fmaf(high, pair.y, sum[n][3]);
        }
    }
}

/* Stores a lane's two numbers of one row: columns `column` and the next, of which `size` exist. `even`: the address is
 * that of a pair. */
template <typename T>
__device__ inline void store_pair(T *row, int column, int size, float first, float second, bool even)
{
    if (column + 1 < size && even) {
        if (sizeof(T) == 2)
            *reinterpret_cast<unsigned *>(row + column) = narrow_pair(first, second);
        else
            *reinterpret_cast<float2 *>(row + column) = make_float2(first, second);
        return;
    }
    if (column < size)
        row[column] = narrow<T>(first);
    if (column + 1 < size)
        row[column + 1] = narrow<T>(second);
}

/* Stores the warp's 16 rows of a result, factors[0] and [1] times the lane's rows. `to` is that of the first row, rows
 * are `step` elements apart, `left` of them and `size` columns exist. */
template <int N, typename T>
__device__ inline void store_rows(T *to, int64_t step, int64_t left, int size, const float (&from)[N][4],
                                  const float (&factors)[2], bool even)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int side = 0; side < 2; side++) {
        const int row = lane / 4 + 8 * side;
        if (row >= left)
            continue;
#pragma unroll
        for (int n = 0; n < N; n++)
            store_pair(to + row * step, n * 8 + lane % 4 * 2, size, from[n][2 * side] * factors[side],
                       from[n][2 * side + 1] * factors[side], even);
    }
}

#endif
