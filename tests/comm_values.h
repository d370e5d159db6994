/* Numbers whose sums tell orders of addition apart, for tests of communicators. */
#ifndef TESTS_COMM_VALUES_H
#define TESTS_COMM_VALUES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Element k of contribution i: magnitudes from 2^-12 to 2^12 and both signs, so that another order of additions shows
 * in the bits. */
static inline float element(int i, int64_t k, unsigned salt)
{
    uint64_t x = (uint64_t)k * 0x9E3779B97F4A7C15u + (uint64_t)(i + 1) * 0xD1B54A32D192ED03u + salt;
    x ^= x >> 31;
    x *= 0xBF58476D1CE4E5B9u;
    x ^= x >> 29;
    float mantissa = 1.0f + (float)(x & 0x7FFFFF) / 8388608.0f;
    return ldexpf(x >> 63 ? -mantissa : mantissa, (int)(x >> 32) % 25 - 12);
}

/* The truth: c0 + c1 + ... in a plain loop. */
static inline float plain_sum(int contributions, int64_t k, unsigned salt)
{
    volatile float total = element(0, k, salt);
    for (int i = 1; i < contributions; i++)
        total = total + element(i, k, salt);
    return total;
}

/* The upper half of x, rounded to nearest even. */
static inline uint16_t upper_half(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static inline float from_upper_half(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#endif
