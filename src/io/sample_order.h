/* The order in which samples are drawn, the same on every grid: place n of the training is sample n mod `samples` of a
 * permutation of its own for each epoch n div `samples`, computed in O(1) memory. */
#ifndef IO_SAMPLE_ORDER_H
#define IO_SAMPLE_ORDER_H

#include <stdbool.h>
#include <stdint.h>

struct sample_order {
    int64_t samples; /* in one epoch, at least 1 */
    uint64_t seed;
    bool shuffle;
};

/* The sample, 0 ... samples-1, at place 0, 1, 2, ... of the training. */
int64_t sample_order_at(const struct sample_order *order, int64_t place);

#endif
