/* Cutting a sequence of layers into stages.
 *
 * A partition of L layers into K stages is an array first_layer[K + 1]: stage k has the layers first_layer[k] up to but
 * not including first_layer[k + 1]; first_layer[0] = 0 and first_layer[K] = L. Every stage has at least one layer.
 *
 * Where a function speaks of blocks the model is one embedding (layer 0), N blocks (layers 1 .. N) and one head (layer
 * N + 1). Errors name the keys of the input. */
#ifndef PIPELINE_PARTITION_H
#define PIPELINE_PARTITION_H

#include <stdbool.h>

#include "base/error.h"

/* Whether layers first .. end - 1 fit into the memory of the stage. */
typedef bool (*partition_fits_fn)(void *context, int stage, int first, int end);

struct partition_problem {
    int layers;
    int stages;
    const double *cost;     /* [layers], of any unit, not negative */
    const double *cut_cost; /* [layers] of a cut before the layer, added to the stages on both sides; NULL: none */
    partition_fits_fn fits; /* NULL: everything fits */
    void *context;          /* handed to fits() */
};

/* The exact best partition: the smallest load of the most loaded stage, then of the next, and so on; among equals the
 * one with the earliest first cut, then the earliest second, and so on. Loads are compared as sums of costs rounded to
 * 2^-52 of the total, so that the same layers in another order tie.
 *
 * Dynamic programming over (stages, layers) in O(K L^2) comparisons of up to K loads, of which all but about L^2 are
 * cut off because the new stage alone is heavier than the best bottleneck; exact because adding one load to two sorted
 * lists of loads keeps their order. Returns 0, or -1 with *err: fewer layers than stages, costs that are negative or
 * not finite, or nothing that fits. */
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
