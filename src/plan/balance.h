/* Which layers each stage gets. */
#ifndef PLAN_BALANCE_H
#define PLAN_BALANCE_H

#include "base/error.h"
#include "model/family.h"
#include "pipeline/simulate.h"
#include "plan/footprint.h"

/* Fills first_layer[stages + 1] (pipeline/partition.h) by &pipeline balance: 'uniform' and 'explicit' by blocks
 * (model_blocks), 'cost' by the layers' times where the peak of &machine is known, else by their declared operations,
 * 'parameters' by their numbers, 'memory' by what the ranks hold under the schedule. Every stage gets at least one
 * layer.
 *
 * With one chunk on a rank the last three are the exact best cut; with several what the rank has in all is balanced,
 * and the cut is one that partition.h finds. For 'cost' the simulator decides then between that cut and the one that is
 * best for the stages themselves. Where 'cost' goes by times, messages count too.
 * Where &plan memory_gib is given, the last three keep every rank within it.
 *
 * The cut is for training's schedule, or for evaluation's where there is no training, and the same on every tensor
 * rank. Returns 0, or -1 with *err. Local and the same on every rank. */
int balance_stages(const struct settings *settings, const struct layout *layout, int *first_layer, struct err *err);

/* The declared operations of forward and backward of a full microbatch in layers first ... last - 1. */
double balance_operations(const struct model *model, const struct circumstances *circumstances, int first, int last);

/* The schedule under a cut, simulated with the layers' declared operations for seconds and free messages; NULL with
 * *err as simulate_schedule(). */
struct simulation *balance_simulate(const struct model *model, const struct circumstances *circumstances,
                                    const struct schedule *schedule, const int *first_layer, struct err *err);

#endif
