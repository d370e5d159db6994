/* Cutting a sequence of layers into stages.
 *
 * A partition of L layers into K stages is an array first_layer[K + 1]: stage k has the layers first_layer[k] up to but
 * not including first_layer[k + 1]; first_layer[0] = 0 and first_layer[K] = L. Every stage has at least one layer.
 *
 * Where a function speaks of blocks the model is one embedding (layer 0), N blocks (layers 1 .. N) and one head (layer
 * N + 1). Errors name the keys of the input. */
#ifndef PIPELINE_PARTITION_H
#define PIPELINE_PARTITION_H

#include <stdint.h>

#include "base/error.h"

/* Layers first .. end - 1 as a stage. */
struct partition_slice {
    int stage, first, end;
};

/* What one rank has to bear that holds these slices, in ascending order; at least 0. A stage's first layer apart, which
 * may start the model, it does not shrink when a slice gets one layer more in front. */
typedef int64_t (*partition_load_fn)(void *context, const struct partition_slice *slices, int count);

struct partition_problem {
    int layers;
    int stages;
    const double *cost;      /* [layers], of any unit, not negative */
    const double *cut_cost;  /* [layers] of a cut before the layer, added to the stages on both sides where these are on
                                different ranks; NULL: none */
    partition_load_fn load;  /* instead of cost and cut_cost, for what does not simply add up; or NULL */
    const int *rank_of;      /* [stages] the rank of each stage, from 0 on; NULL: each has a rank of its own */
    partition_load_fn bytes; /* that a rank holds; NULL: everything fits */
    int64_t capacity;        /* bytes of each rank */
    void *context;           /* handed to load() and bytes() */
};

/* The exact best partition for stages on ranks of their own (rank_of NULL): the smallest load of the most loaded stage,
 * then of the next, and so on; among equals the one with the earliest first cut, then the earliest second, and so on.
 * Costs are compared as sums rounded to 2^-52 of the total, so that the same layers in another order tie.
 *
 * Dynamic programming over (stages, layers) in O(K L^2) comparisons of up to K loads, of which all but about L^2 are
 * cut off because the new stage alone is heavier than the best bottleneck; exact because adding one load to two sorted
 * lists of loads keeps their order.
 *
 * With rank_of the loads are those of ranks, and only the start is found that way; then cuts are moved as long as that
 * makes the sorted list of the ranks' loads smaller: all of a row of cuts by the same number of layers, or two cuts
 * independently. The result is an upper bound: no such move improves it, but it need not be the best there is.
 *
 * Returns 0, or -1 with *err: fewer layers than stages, costs that are negative or not finite, or nothing found that
 * fits. */
int partition_balanced(const struct partition_problem *problem, int *first_layer, struct err *err);

/* Blocks spread evenly, earlier stages taking the remainder; the embedding and the head stand with the first and the
 * last stage, alone there where stages outnumber blocks. Returns 0, or -1 with *err when there are more stages than
 * blocks + 2. */
int partition_uniform(int blocks, int stages, int *first_layer, struct err *err);

/* The partition with stage_layers[0 .. count - 1] blocks in the stages. Returns 0, or -1 with *err when count is not
 * `stages`, a number is negative or 0 in a stage with neither the embedding nor the head, or the sum is not `blocks`.
 */
int partition_explicit(int blocks, int stages, const int *stage_layers, int count, int *first_layer, struct err *err);

#endif
