/* Which layers each stage gets. */
#ifndef PLAN_BALANCE_H
#define PLAN_BALANCE_H

#include "base/error.h"
#include "model/family.h"

/* Fills first_layer[stages + 1] (pipeline/partition.h) by &pipeline balance: 'uniform' and 'explicit' by blocks
 * (model_blocks), 'cost' by the layers' declared operations under these circumstances, 'parameters' by their numbers.
 * Every stage gets at least one layer. Returns 0, or -1 with *err. Local and the same on every rank. */
int balance_stages(const struct settings *settings, const struct model *model,
                   const struct circumstances *circumstances, int stages, int *first_layer, struct err *err);

/* The declared operations of forward and backward of a full microbatch in layers first ... last - 1. */
double balance_operations(const struct model *model, const struct circumstances *circumstances, int first, int last);

#endif
