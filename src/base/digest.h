/* Digest of a tensor's bits: the sum modulo 2^64, over all elements, of SplitMix64's finaliser applied to
 * (index + 1) * 0x9E3779B97F4A7C15 xor the element's 32 bits. Parts may be digested anywhere and in any order and their
 * digests added. */
#ifndef BASE_DIGEST_H
#define BASE_DIGEST_H

#include <stdint.h>

/* The share of elements first ... first + count - 1 of a tensor; `index` counts row-major over the whole tensor. */
uint64_t digest_part(const float *elements, int64_t first, int64_t count);

#endif
