#include "plan/balance.h"

#include <stdlib.h>

#include "base/memory.h"
#include "model/parameters.h"
#include "pipeline/partition.h"

double balance_operations(const struct model *model, const struct circumstances *circumstances, int first, int last)
{
    double sum = 0;
    for (int i = first; i < last; i++) {
        struct layer_costs costs = model->layers[i].kind->costs(&model->layers[i], circumstances);
        sum += costs.forward + costs.input_gradient + costs.weight_gradient;
    }
    return sum;
}

int balance_stages(const struct settings *settings, const struct model *model,
                   const struct circumstances *circumstances, int stages, int *first_layer, struct err *err)
{
    int blocks = model_blocks(model, 0, model->layer_count);
    enum balance_choice balance = settings->pipeline.balance;
    if (balance == BALANCE_UNIFORM)
        return partition_uniform(blocks, stages, first_layer, err);
    if (balance == BALANCE_EXPLICIT)
        return partition_explicit(blocks, stages, settings->pipeline.stage_layers.items,
                                  settings->pipeline.stage_layers.count, first_layer, err);
    if (balance == BALANCE_MEMORY)
        return err_set(err, "&pipeline balance = 'memory' is not built yet; 'cost', 'uniform', 'parameters' and "
                            "'explicit' are");
    /* Tensor ranks whose shares differ must cut alike: as the first does, whose share is the largest. */
    struct circumstances first = *circumstances;
    first.t = 0;
    double *cost = allocate((size_t)model->layer_count, sizeof *cost);
    for (int i = 0; i < model->layer_count; i++)
        cost[i] = balance == BALANCE_COST ? balance_operations(model, &first, i, i + 1)
                                          : (double)parameters_in_layers(model, i, i + 1);
    struct partition_problem problem = {.layers = model->layer_count, .stages = stages, .cost = cost};
    int result = partition_balanced(&problem, first_layer, err);
    free(cost);
    return result;
}
