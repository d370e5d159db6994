/* The order of samples: a permutation of each epoch, different ones, uniform, each place on its own. */
#include "io/sample_order.h"

#include <stdlib.h>
#include <string.h>

#include "tap.h"

static bool is_permutation(struct sample_order order, int64_t epoch)
{
    char *seen = calloc((size_t)order.samples, 1);
    bool holds = seen != NULL;
    for (int64_t i = 0; holds && i < order.samples; i++) {
        int64_t sample = sample_order_at(&order, epoch * order.samples + i);
        holds = sample >= 0 && sample < order.samples && !seen[sample];
        if (holds)
            seen[sample] = 1;
    }
    free(seen);
    return holds;
}

/* Places of the epoch that two orders fill with the same sample. */
static int64_t agreements(struct sample_order a, int64_t epoch_a, struct sample_order b, int64_t epoch_b)
{
    int64_t equal = 0;
    for (int64_t i = 0; i < a.samples; i++)
        equal += sample_order_at(&a, epoch_a * a.samples + i) == sample_order_at(&b, epoch_b * b.samples + i);
    return equal;
}

/* Chi-square of how often each (place, sample) pair occurs over many epochs, divided by its degrees of freedom. */
static double pair_statistic(int64_t samples, int64_t epochs)
{
    struct sample_order order = {.samples = samples, .seed = 7, .shuffle = true};
    double *times = calloc((size_t)(samples * samples), sizeof *times), expected = (double)epochs / (double)samples;
    for (int64_t place = 0; place < epochs * samples; place++)
        times[place % samples * samples + sample_order_at(&order, place)]++;
    double sum = 0;
    for (int64_t i = 0; i < samples * samples; i++)
        sum += (times[i] - expected) * (times[i] - expected) / expected;
    free(times);
    return sum / (double)((samples - 1) * (samples - 1));
}

/* The same for the distance, modulo the number of samples, between the samples of neighbouring places. */
static double neighbour_statistic(int64_t samples, int64_t epochs)
{
    struct sample_order order = {.samples = samples, .seed = 9, .shuffle = true};
    double *times = calloc((size_t)samples, sizeof *times);
    double expected = (double)epochs;
    for (int64_t epoch = 0; epoch < epochs; epoch++)
        for (int64_t i = 0; i + 1 < samples; i++) {
            int64_t a = sample_order_at(&order, epoch * samples + i);
            times[(sample_order_at(&order, epoch * samples + i + 1) - a + samples) % samples]++;
        }
    double sum = 0;
    for (int64_t i = 1; i < samples; i++)
        sum += (times[i] - expected) * (times[i] - expected) / expected;
    bool never_itself = times[0] == 0;
    free(times);
    return never_itself ? sum / (double)(samples - 2) : 1e300;
}

int main(void)
{
    bool all = true;
    for (int64_t samples = 1; samples <= 300; samples++)
        for (int64_t epoch = 0; epoch < 3; epoch++)
            all = all && is_permutation((struct sample_order){samples, (uint64_t)samples, true}, epoch);
    ok(all, "a permutation for 1 to 300 samples");
    ok(is_permutation((struct sample_order){1299709, 1, true}, 5), "a permutation for a large prime");
    ok(is_permutation((struct sample_order){1 << 20, 1, true}, 0), "a permutation for a power of four");
    ok(is_permutation((struct sample_order){(1 << 20) + 1, 1, true}, 0), "and for one more");

    struct sample_order one = {10007, 1, true}, two = {10007, 2, true}, plain = {10007, 1, false};
    ok(agreements(one, 0, one, 1) < 10, "epochs differ");
    ok(agreements(one, 0, two, 0) < 10, "seeds differ");
    ok(agreements(one, 0, two, 1) < 10, "seed 2 is not seed 1 an epoch later");
    ok(agreements(one, 3, plain, 0) < 10, "shuffled differs from the file's order");
    ok(agreements(plain, 0, plain, 4) == 10007 && sample_order_at(&plain, 10007 * 4 + 17) == 17,
       "without shuffle every epoch is the file's order");

    is_near(pair_statistic(2, 4000), 1, 5 * 1.41421, "uniform over places, 2 samples"); /* one degree of freedom */
    is_near(pair_statistic(3, 4000), 1, 5 * 0.7071, "uniform over places, 3 samples");
    is_near(pair_statistic(17, 4000), 1, 5 * 0.0884, "uniform over places, 17 samples");
    is_near(pair_statistic(64, 4000), 1, 5 * 0.02245, "uniform over places, 64 samples");
    is_near(neighbour_statistic(101, 2000), 1, 5 * 0.1421, "neighbours' distance is uniform");

    /* places evaluated backwards, and far out where an epoch is larger than memory */
    bool alone = true;
    int64_t forwards[1000];
    for (int64_t i = 0; i < 1000; i++)
        forwards[i] = sample_order_at(&one, i);
    for (int64_t i = 999; i >= 0; i--)
        alone = alone && sample_order_at(&one, i) == forwards[i];
    ok(alone, "a place's sample does not depend on the places asked before");
    struct sample_order huge = {INT64_MAX, 3, true};
    int64_t a = sample_order_at(&huge, 0), b = sample_order_at(&huge, INT64_MAX - 1);
    ok(a >= 0 && b >= 0 && a != b && a < INT64_MAX && b < INT64_MAX, "the largest number of samples");
    return tap_done();
}
