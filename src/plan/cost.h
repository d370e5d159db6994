/* From what layers declare and the machine's figures to seconds.
 *
 * A layer whose kind was timed takes the measured time, scaled by operations and by what the curve of efficiencies says
 * of the other size; at the shapes that were timed that is the measured time itself. Any other layer takes
 *     operations / (peak * efficiency) + bytes / memory bandwidth
 * where the efficiency is that of the layer's average matrix product and the bytes are those of the weights and of the
 * activations that it declares: kernels that are not matrix products run behind them, not beside them. */
#ifndef PLAN_COST_H
#define PLAN_COST_H

#include "model/family.h"

/* The machine under one precision. */
struct cost_machine {
    const struct machine_settings *figures;
    double peak;  /* operations/s */
    bool known;   /* false: no peak was given, and one of 10^12 operations/s stands for it: times mean nothing */
    int per_node; /* devices with fast links between them */
    double element_bytes; /* of activations, of what tensor ranks sum and of matrices as computations read them */
};

struct cost_machine cost_machine(const struct settings *settings);

/* Whether groups of so many ranks that follow one another lie each within one node. */
bool cost_within_node(const struct cost_machine *machine, int64_t ranks);

/* Numbers the kinds of layers from 0 in order of their first layer: equal functions, operations and parameters. Fills
 * kinds[layer_count], returns how many there are. */
int cost_kinds(const struct model *model, const struct circumstances *circumstances, int *kinds);

/* Operations of the layer's average matrix product on one tensor rank: where the curve of efficiencies is read. */
double cost_product(const struct model *model, int layer, const struct circumstances *circumstances);

/* Seconds for one full microbatch on one rank, sums over tensor ranks included; tensor is their part of all three. */
struct cost_seconds {
    double forward, input, weight;
    double tensor;
    bool measured; /* its kind was timed */
};

/* Of a layer of that kind. */
struct cost_seconds cost_layer(const struct cost_machine *machine, const struct model *model, int layer, int kind,
                               const struct circumstances *circumstances);

/* One message; `far`: to another node. cost_latency is the part of it in which others may follow, cost_stall the part
 * that computations on both sides have to wait for. */
double cost_message(const struct cost_machine *machine, double bytes, bool far);
double cost_latency(const struct cost_machine *machine, bool far);
double cost_stall(const struct cost_machine *machine, double bytes, bool far);

/* A sum of `bytes` over `ranks` ranks, of the data or the tensor ranks; half a sum is a gather or a scatter. */
enum cost_sum_kind {
    COST_DATA,
    COST_TENSOR
};
double cost_sum(const struct cost_machine *machine, enum cost_sum_kind kind, double bytes, int ranks, bool far);

/* The data ranks' sum of so many float32 gradients, in buckets. */
double cost_reduction(const struct cost_machine *machine, double elements, int ranks, bool far);

/* An AdamW step over so many parameters, which also writes them as computations read them. */
double cost_optimizer(const struct cost_machine *machine, double elements);

#endif
