/* What the kernels share: elements as float32, 16 bytes at a time, and sums over a block. */
#ifndef KERNELS_CUDA_CUDA_MATH_CUH
#define KERNELS_CUDA_CUDA_MATH_CUH

#include <cuda_bf16.h>

#include "kernels/cuda/cuda.h"

typedef __nv_bfloat16 bfloat16;

/* How many elements a thread takes at a time: 16 bytes of them. */
template <typename T> constexpr int PACK = 16 / (int)sizeof(T);

constexpr unsigned ALL_LANES = 0xffffffffu;

/* Calls function<T>(...) for the type of element. */
#define BY_ELEMENT(element, function, ...) \
    ((element) == ELEMENT_BFLOAT16 ? function<bfloat16>(__VA_ARGS__) : function<float>(__VA_ARGS__))

/* Queues a kernel, unless its grid is empty. */
#define LAUNCH(...) launch(__FILE__, __LINE__, __VA_ARGS__)
template <typename... Parameters, typename... Arguments>
static void launch(const char *file, int line, struct stream *stream, void (*kernel)(Parameters...), dim3 grid,
                   int threads, size_t shared, Arguments... arguments)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return;
    kernel<<<grid, (unsigned)threads, shared, stream->queue>>>(arguments...);
    cuda_check(cudaGetLastError(), "kernel launch", file, line);
}

static inline int64_t parts_of(int64_t count, int64_t each)
{
    return (count + each - 1) / each;
}

static inline int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Whether all addresses are multiples of 16 bytes; NULL counts as one. */
template <typename... Pointers> static bool all_aligned(const Pointers *...pointers)
{
    return ((reinterpret_cast<uintptr_t>(pointers) | ... | 0) & 15) == 0;
}

/* Threads of a block that takes a row of `packs` packs: whole warps. */
static inline int row_threads(int64_t packs, int most)
{
    return (int)least(parts_of(packs > 0 ? packs : 1, 32) * 32, most);
}

__device__ inline float widen(float x)
{
    return x;
}

__device__ inline float widen(bfloat16 x)
{
    return __bfloat162float(x);
}

template <typename T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow<float>(float x)
{
    return x;
}
template <> __device__ inline bfloat16 narrow<bfloat16>(float x)
{
    return __float2bfloat16_rn(x);
}

/* Two numbers as two elements in one word; the first in the lower half. */
__device__ inline uint32_t narrow_pair(float low, float high)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&pair);
}

__device__ inline void widen_word(float *to, const float *, uint32_t word)
{
    to[0] = __uint_as_float(word);
}

__device__ inline void widen_word(float *to, const bfloat16 *, uint32_t word)
{
    to[0] = __uint_as_float(word << 16);
    to[1] = __uint_as_float(word & 0xffff0000u);
}

__device__ inline uint32_t narrow_word(const float *from, const float *)
{
    return __float_as_uint(from[0]);
}

__device__ inline uint32_t narrow_word(const float *from, const bfloat16 *)
{
    return narrow_pair(from[0], from[1]);
}

/* to = N elements from `from` on, of which `left` exist; the others are `fill`. `wide`: the address is a multiple of 16
 * bytes, or `left` is less than N. */
template <int N, typename T>
__device__ inline void load(float (&to)[N], const T *from, int64_t left, bool wide, float fill = 0.0f)
{
    constexpr int EACH = 4 / (int)sizeof(T); /* in a word */
    if (wide && left >= N) {
#pragma unroll
        for (int i = 0; i < N; i += 4 * EACH) {
            const uint4 words = *reinterpret_cast<const uint4 *>(from + i);
            widen_word(to + i, from, words.x);
            widen_word(to + i + EACH, from, words.y);
            widen_word(to + i + 2 * EACH, from, words.z);
            widen_word(to + i + 3 * EACH, from, words.w);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            to[i] = i < left ? widen(from[i]) : fill;
    }
}

/* The first min(N, left) numbers, rounded. */
template <int N, typename T> __device__ inline void store(T *to, const float (&from)[N], int64_t left, bool wide)
{
    constexpr int EACH = 4 / (int)sizeof(T);
    if (wide && left >= N) {
#pragma unroll
        for (int i = 0; i < N; i += 4 * EACH)
            *reinterpret_cast<uint4 *>(to + i) =
                make_uint4(narrow_word(from + i, to), narrow_word(from + i + EACH, to),
                           narrow_word(from + i + 2 * EACH, to), narrow_word(from + i + 3 * EACH, to));
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < left)
                to[i] = narrow<T>(from[i]);
    }
}

/* The numbers of a pack as it lies in memory; the pointer tells the type of element. */
template <typename T> __device__ inline void widen_pack(float (&to)[PACK<T>], uint4 words, const T *type)
{
    constexpr int EACH = 4 / (int)sizeof(T);
    widen_word(to, type, words.x);
    widen_word(to + EACH, type, words.y);
    widen_word(to + 2 * EACH, type, words.z);
    widen_word(to + 3 * EACH, type, words.w);
}

/* The pack at `from`, of which `left` elements exist; the others are 0. */
template <typename T> __device__ inline uint4 load_pack(const T *from, int64_t left, bool wide, float fill = 0.0f)
{
    if (wide && left >= PACK<T>)
        return *reinterpret_cast<const uint4 *>(from);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float numbers[4 / sizeof(T)];
        load(numbers, from + i * (4 / (int)sizeof(T)), left - i * (4 / (int)sizeof(T)), false);
        words[i] = narrow_word(numbers, from);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

/* The sum over the block's threads, the same for all of them. `shared`: 32 numbers of the block's own; the sum before
 * may have used them. */
template <typename N> __device__ inline N block_sum(N x, N *shared)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, offset);
    if (warps == 1)
        return x;
    __syncthreads();
    if (lane == 0)
        shared[warp] = x;
    __syncthreads();
    x = lane < warps ? shared[lane] : N(0);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

#endif
