/* Counter-based random numbers: a number depends on a key and an index alone, never on who asks or in which order, so
 * that initial weights and sample order are the same on every grid. The bits are SplitMix64's (Steele, Lea and Flood,
 * 2014) with the index as its counter. */
#ifndef BASE_RANDOM_H
#define BASE_RANDOM_H

#include <stdint.h>

/* SplitMix64's finaliser: a bijection of 64-bit words that mixes every bit. */
static inline uint64_t random_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* 64 random bits for (key, index). */
static inline uint64_t random_bits(uint64_t key, uint64_t index)
{
    return random_mix(key + (index + 1) * 0x9E3779B97F4A7C15u);
}

/* The key of the stream with this name under this seed. */
uint64_t random_key(uint64_t seed, const char *name);

/* out[i] = deviation * the standard normal number first + i of the stream (Box and Muller, 1958). */
void random_normal(uint64_t key, int64_t first, int64_t count, double deviation, float *out);

#endif
