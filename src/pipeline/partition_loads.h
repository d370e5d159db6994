/* Loads of ranks as integers, for the files of partition.h alone. */
#ifndef PIPELINE_PARTITION_LOADS_H
#define PIPELINE_PARTITION_LOADS_H

#include <stdbool.h>

#include "pipeline/partition.h"

struct loads {
    const struct partition_problem *problem;
    int64_t *sum; /* [layers + 1] cost of the first layers, in ticks */
    int64_t *cut; /* [layers + 1] cost of a cut before the layer, in ticks; 0 at both ends */
};

/* -1 with *err for costs that are negative or not finite. To be released by loads_destroy() in any case. */
int loads_create(struct loads *loads, const struct partition_problem *problem, struct err *err);
void loads_destroy(struct loads *loads);

int64_t loads_of_rank(const struct loads *loads, const struct partition_slice *slices, int count);

/* The part of a slice's load that grows with every layer in front. */
int64_t loads_own(const struct loads *loads, const struct partition_slice *slice, int64_t load);

/* Bytes that the rank lacks for these slices. */
int64_t loads_excess(const struct loads *loads, const struct partition_slice *slices, int count);

/* The stage's slice when layers are cut into stages of equal numbers, earlier ones taking the remainder. */
struct partition_slice loads_even_slice(const struct partition_problem *problem, int stage);

/* Moves the cuts of a problem with rank_of until nothing improves; -1 with *err when it still does not fit. */
int partition_descend(const struct loads *loads, int *first_layer, struct err *err);

#endif
