#include "base/digest.h"

#include <string.h>

#include "base/random.h"

uint64_t digest_part(const float *elements, int64_t first, int64_t count)
{
    uint64_t sum = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : sum) if (count > 65536)
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &elements[i], sizeof bits);
        sum += random_mix(((uint64_t)(first + i) + 1) * 0x9E3779B97F4A7C15u ^ bits);
    }
    return sum;
}
