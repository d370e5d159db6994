#include "io/sample_order.h"

#include "base/random.h"

/* A balanced Feistel network (Luby and Rackoff, 1988) permutes 0 ... 4^half - 1 under a key; cycle walking (Black and
 * Rogaway, 2002) makes of it a permutation of 0 ... samples - 1. Four rounds are enough for large domains; small ones
 * want more to look uniform. */
enum {
    ROUNDS = 8
};

static uint64_t feistel(uint64_t key, int half, uint64_t x)
{
    uint64_t mask = ((uint64_t)1 << half) - 1, left = x >> half, right = x & mask;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        uint64_t next = left ^ (random_bits(random_bits(key, round), right) & mask);
        left = right;
        right = next;
    }
    return left << half | right;
}

int64_t sample_order_at(const struct sample_order *order, int64_t place)
{
    uint64_t samples = (uint64_t)order->samples;
    uint64_t epoch = (uint64_t)place / samples, x = (uint64_t)place % samples;
    if (!order->shuffle)
        return (int64_t)x;
    uint64_t key = random_bits(random_key(order->seed, "sample order"), epoch);
    int half = 1; /* bits; the domain is at most 4 times as large as needed */
    while ((samples - 1) >> half >> half)
        half++;
    do
        x = feistel(key, half, x);
    while (x >= samples);
    return (int64_t)x;
}
