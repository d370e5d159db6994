/* Short vectors of float32, as GCC and Clang offer them for every processor, and the functions of them that the
 * kernels need. The widths are the processor's own where the compiler is told of it (-march=native); without
 * AVX-512 the same code runs on narrower vectors. All loads and stores may be unaligned.
 *
 * Functions whose name ends in _as read or write arrays of either element type; the vectors are float32 all the same.
 */
#ifndef KERNELS_CPU_CPU_MATH_H
#define KERNELS_CPU_CPU_MATH_H

#ifdef __AVX__
#include <immintrin.h>
#endif
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"

/* LOWER_HALVES and UPPER_HALVES interleave the halves of two vectors. */
#if defined(__AVX512F__)
#define LANES 16
#define LOWER_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif defined(__AVX__)
#define LANES 8
#define LOWER_HALVES 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER_HALVES 4, 12, 5, 13, 6, 14, 7, 15
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7
#else
#define LANES 4
#define LOWER_HALVES 0, 4, 1, 5
#define UPPER_HALVES 2, 6, 3, 7
#define LANE_NUMBERS 0, 1, 2, 3
#endif

/* Vectors are the one kind of type that C can name only by a typedef. */
typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int32_t vint __attribute__((vector_size(4 * LANES)));
typedef uint32_t vbits __attribute__((vector_size(4 * LANES)));
typedef uint16_t vhalves __attribute__((vector_size(2 * LANES)));
typedef float vfloat_in_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t vhalves_in_memory __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

#define VECTOR_FUNCTION static inline __attribute__((always_inline, unused))

VECTOR_FUNCTION vfloat vset(float x)
{
    return (vfloat){0} + x;
}

VECTOR_FUNCTION vfloat vload(const float *from)
{
    return *(const vfloat_in_memory *)from;
}

VECTOR_FUNCTION void vstore(float *to, vfloat x)
{
    *(vfloat_in_memory *)to = x;
}

/* The next elements of an array of which `left` > 0 are left; lanes behind its end get `fill`. */
VECTOR_FUNCTION vfloat vload_next(const float *from, int64_t left, float fill)
{
    if (__builtin_expect(left >= LANES, 1))
        return vload(from);
    float lanes[LANES];
    for (int64_t i = 0; i < LANES; i++)
        lanes[i] = i < left ? from[i] : fill;
    return vload(lanes);
}

/* Writes no more than `left` lanes. */
VECTOR_FUNCTION void vstore_next(float *to, int64_t left, vfloat x)
{
    if (__builtin_expect(left >= LANES, 1)) {
        vstore(to, x);
        return;
    }
    float lanes[LANES];
    vstore(lanes, x);
    for (int64_t i = 0; i < left; i++)
        to[i] = lanes[i];
}

/* `yes` where the mask's lanes are -1, `no` where they are 0. */
VECTOR_FUNCTION vfloat vselect(vint mask, vfloat yes, vfloat no)
{
    return (vfloat)((mask & (vint)yes) | (~mask & (vint)no));
}

/* x in the first `count` lanes, `other` in those behind. */
VECTOR_FUNCTION vfloat vfirst(vfloat x, int64_t count, float other)
{
    const vint number = {LANE_NUMBERS};
    const int32_t limit = (int32_t)(count < LANES ? count : LANES);
    return vselect(number < limit, x, vset(other));
}

/* The float32 numbers whose upper halves these are. What the compiler makes of the general form has more steps. */
VECTOR_FUNCTION vfloat vwiden(vhalves x)
{
#if defined(__AVX512F__)
    return (vfloat)((vbits)_mm512_cvtepu16_epi32((__m256i)x) << 16);
#elif defined(__AVX2__)
    return (vfloat)((vbits)_mm256_cvtepu16_epi32((__m128i)x) << 16);
#else
    return (vfloat)(__builtin_convertvector(x, vbits) << 16);
#endif
}

/* x rounded to bfloat16, in integers: the processors' instruction for it takes subnormal numbers for 0, and not all
 * have it. What is added carries into the bits that are kept where these must be rounded up, to infinity beyond the
 * largest number. NaN is cut and made quiet, or it could become infinity. */
VECTOR_FUNCTION vhalves vround(vfloat x)
{
    const vbits bits = (vbits)x, kept = bits >> 16;
    const vbits nearest = (bits + 0x7fff + (kept & 1)) >> 16;
    const vbits rounded = (vbits)vselect(x == x, (vfloat)nearest, (vfloat)(kept | 0x40));
#if defined(__AVX512F__)
    return (vhalves)_mm512_cvtepi32_epi16((__m512i)rounded);
#else
    return __builtin_convertvector(rounded, vhalves);
#endif
}

/* LANES elements of an array from element `index` on. */
VECTOR_FUNCTION vfloat vload_as(enum element element, const void *from, int64_t index)
{
    if (element == ELEMENT_FLOAT32)
        return vload((const float *)from + index);
    return vwiden(*(const vhalves_in_memory *)((const uint16_t *)from + index));
}

/* The elements from `index` on, of which `left` > 0 are left; lanes behind the end get `fill`. */
VECTOR_FUNCTION vfloat vload_next_as(enum element element, const void *from, int64_t index, int64_t left, float fill)
{
    if (element == ELEMENT_FLOAT32)
        return vload_next((const float *)from + index, left, fill);
    if (__builtin_expect(left >= LANES, 1))
        return vload_as(element, from, index);
    uint16_t lanes[LANES] = {0};
    for (int64_t i = 0; i < left; i++)
        lanes[i] = ((const uint16_t *)from)[index + i];
    return vfirst(vload_as(element, lanes, 0), left, fill);
}

/* Writes no more than `left` lanes, rounded. */
VECTOR_FUNCTION void vstore_next_as(enum element element, void *to, int64_t index, int64_t left, vfloat x)
{
    if (element == ELEMENT_FLOAT32) {
        vstore_next((float *)to + index, left, x);
        return;
    }
    uint16_t *halves = (uint16_t *)to + index;
    const vhalves rounded = vround(x);
    if (__builtin_expect(left >= LANES, 1)) {
        *(vhalves_in_memory *)halves = rounded;
        return;
    }
    uint16_t lanes[LANES];
    *(vhalves_in_memory *)lanes = rounded;
    for (int64_t i = 0; i < left; i++)
        halves[i] = lanes[i];
}

/* Calls the vector function `part` with the element type and the arguments. The type is a constant there, and one
 * branch is left of each function above. */
#define FOR_ELEMENT(element, part, ...) \
    ((element) == ELEMENT_FLOAT32 ? (part)(ELEMENT_FLOAT32, __VA_ARGS__) : (part)(ELEMENT_BFLOAT16, __VA_ARGS__))

/* The larger one; b where either is NaN. */
VECTOR_FUNCTION vfloat vmax(vfloat a, vfloat b)
{
    return vselect(a > b, a, b);
}

/* The sum of all lanes, by halves. */
VECTOR_FUNCTION float vsum(vfloat x)
{
    float lanes[LANES];
    vstore(lanes, x);
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

/* The largest of all lanes. */
VECTOR_FUNCTION float vlargest(vfloat x)
{
    float lanes[LANES];
    vstore(lanes, x);
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}

/* Transposes a square of LANES vectors. Interleaving vectors i and i + LANES/2 into 2i and 2i + 1 turns the bits of an
 * element's place (row, then column) by one; log2(LANES) turns exchange row and column. */
VECTOR_FUNCTION void vtranspose(vfloat square[LANES])
{
#pragma GCC unroll 4
    for (int turn = 1; turn < LANES; turn *= 2) {
        vfloat old[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            old[i] = square[i];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            square[2 * i] = __builtin_shufflevector(old[i], old[i + LANES / 2], LOWER_HALVES);
            square[2 * i + 1] = __builtin_shufflevector(old[i], old[i + LANES / 2], UPPER_HALVES);
        }
    }
}

/* The compiler makes sqrtf one instruction only where it may forget about errno. */
VECTOR_FUNCTION vfloat vsqrt(vfloat x)
{
#if defined(__AVX512F__)
    return (vfloat)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
    return (vfloat)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < LANES; i++)
        x[i] = sqrtf(x[i]);
    return x;
#endif
}

/* exp(x) for x <= 88, within about one unit in the last place; 0 below -87.3; NaN stays NaN. With n = round(x / ln 2)
 * and r = x - n ln 2 (in two parts, after Cody and Waite, 1980) it is 2^n exp(r); exp(r) = 1 + r + r^2 P(r), where P of
 * degree 4 interpolates at the Chebyshev nodes of |r| <= ln(2)/2. */
VECTOR_FUNCTION vfloat vexp(vfloat x)
{
    const vfloat round_bias = vset(12582912.0f); /* 1.5 * 2^23: adding it leaves an integer in the low bits */
    const vint below = x < -87.3f;
    const vfloat shifted = x * 1.44269504f + round_bias;
    const vfloat n = shifted - round_bias;
    vfloat r = x - n * 0.693145752f;
    r = r - n * 1.42860677e-6f;
    vfloat p = r * 0.00139262131f + 0.00836320315f;
    p = p * r + 0.0416665561f;
    p = p * r + 0.166665763f;
    p = p * r + 0.5f;
    p = (p * r) * r + r + 1.0f;
    const vbits scaled = (vbits)p + (((vbits)shifted - (vbits)round_bias) << 23);
    return (vfloat)(~(vbits)below & scaled);
}

/* exp(-2u) with u = sqrt(2/pi) (x + 0.044715 x^3), so that (1 + tanh(u))/2 = 1/(1 + exp(-2u)). Where it would be so
 * large that its inverse is subnormal it is cut off. */
VECTOR_FUNCTION vfloat vgelu_exp(vfloat x)
{
    const vfloat z = x * (x * x * -0.0713548162f - 1.59576912f);
    return vexp(vselect(z > 85.0f, vset(85.0f), z));
}

/* gelu(x) = x/2 (1 + tanh(u)) */
VECTOR_FUNCTION vfloat vgelu(vfloat x)
{
    return x / (1.0f + vgelu_exp(x));
}

/* gelu'(x) = s + x s (1 - s) 2u' with s = 1/(1 + exp(-2u)) */
VECTOR_FUNCTION vfloat vgelu_slope(vfloat x)
{
    const vfloat e = vgelu_exp(x);
    const vfloat s = 1.0f / (1.0f + e);
    const vfloat slope = x * x * 0.214064449f + 1.59576912f;
    return s + x * slope * s * (e * s);
}

#endif
