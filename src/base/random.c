#include "base/random.h"

#include <math.h>

uint64_t random_key(uint64_t seed, const char *name)
{
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a */
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 0x100000001B3u;
    return random_mix(hash ^ random_bits(seed, 0));
}

/* Numbers 2i and 2i+1 of the stream are the cosine and the sine of one draw. */
static double normal(uint64_t key, int64_t index)
{
    const double pi = 3.14159265358979323846;
    uint64_t pair = (uint64_t)index & ~(uint64_t)1;
    double radius = sqrt(-2 * log(((double)(random_bits(key, pair) >> 11) + 1) * 0x1p-53)); /* of (0, 1] */
    double angle = 2 * pi * (double)(random_bits(key, pair + 1) >> 11) * 0x1p-53;
    return radius * (index & 1 ? sin(angle) : cos(angle));
}

void random_normal(uint64_t key, int64_t first, int64_t count, double deviation, float *out)
{
#pragma omp parallel for schedule(static) if (count > 65536)
    for (int64_t i = 0; i < count; i++)
        out[i] = (float)(deviation * normal(key, first + i));
}
