#include "model/layer.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "parallel/flight.h"

struct share share_of(int64_t count, int ranks, int rank)
{
    int64_t each = (count + ranks - 1) / ranks;
    int64_t first = each * rank < count ? each * rank : count;
    int64_t left = count - first;
    return (struct share){first, left < each ? left : each};
}

struct share context_rows(const struct circumstances *circumstances, int64_t rows)
{
    if (!circumstances->sequence_parallel)
        return (struct share){0, rows};
    return share_of(rows, circumstances->tensor, circumstances->t);
}

size_t boundary_bytes(const struct boundary *boundary, const struct circumstances *circumstances, int64_t sequences)
{
    struct share rows = context_rows(circumstances, sequences * boundary->rows_per_sequence);
    return (size_t)(rows.count * boundary->width) * element_bytes(boundary->element);
}

void context_progress(const struct context *context)
{
    if (context->progress)
        context->progress(context->progress_of);
}

static void row_counts(const struct context *context, int64_t *counts, int64_t rows, int64_t width)
{
    for (int rank = 0; rank < context->tensor->size; rank++)
        counts[rank] = share_of(rows, context->tensor->size, rank).count * width;
}

void context_tensor_sum(const struct context *context, enum element element, void *mine, void *whole, int64_t rows,
                        int64_t width)
{
    struct communicator *tensor = context->tensor;
    if (tensor->size == 1)
        return;
    flight_begin(FLIGHT_TENSOR_SUM);
    if (context->circumstances.sequence_parallel) {
        row_counts(context, context->tensor_counts, rows, width);
        tensor->ops->reduce_scatter(tensor, element, mine, whole, context->tensor_counts, context->tensor_scratch);
    } else {
        tensor->ops->all_reduce(tensor, element, whole, rows * width, context->tensor_scratch);
    }
    flight_end();
}

const void *context_tensor_gather(const struct context *context, enum element element, const void *mine, void *whole,
                                  int64_t rows, int64_t width)
{
    if (!context->circumstances.sequence_parallel || context->tensor->size == 1)
        return mine;
    int64_t *counts = context->tensor_counts;
    row_counts(context, counts, rows, width);
    flight_begin(FLIGHT_TENSOR_SUM);
    context->tensor->ops->all_gather(context->tensor, whole, mine, counts, element_bytes(element));
    flight_end();
    return whole;
}

void context_tensor_collect(const struct context *context, float *all, int64_t count)
{
    struct communicator *tensor = context->tensor;
    if (tensor->size == 1)
        return;
    int64_t *counts = context->tensor_counts;
    for (int rank = 0; rank < tensor->size; rank++)
        counts[rank] = count;
    flight_begin(FLIGHT_TENSOR_SUM);
    tensor->ops->all_gather(tensor, all, all + tensor->rank * count, counts, sizeof *all);
    flight_end();
}

size_t context_tensor_scratch(const struct communicator *tensor, enum element element, int64_t rows, int64_t width)
{
    if (tensor->size == 1)
        return 0;
    size_t sum = tensor->ops->sum_scratch(tensor, element, rows * width, communicator_one_each(tensor));
    size_t scatter = tensor->ops->scatter_scratch(tensor, element, share_of(rows, tensor->size, 0).count * width);
    return sum > scatter ? sum : scatter;
}

void *carve_bytes(struct carve *carve, size_t bytes)
{
    void *place = carve->base ? carve->base + carve->used : NULL;
    carve->used += (bytes + 63) / 64 * 64;
    return place;
}

void *carve_elements(struct carve *carve, enum element element, int64_t count)
{
    return carve_bytes(carve, (size_t)count * element_bytes(element));
}

float *carve_floats(struct carve *carve, int64_t count)
{
    return carve_elements(carve, ELEMENT_FLOAT32, count);
}

struct parameter *declare_parameter(struct declaration *out, const char *path, int split, const int64_t *shape)
{
    if (out->parameter_count == LAYER_MAX_PARAMETERS)
        fatal("a layer declares more than %d parameters", LAYER_MAX_PARAMETERS);
    struct parameter *parameter = &out->parameters[out->parameter_count++];
    *parameter = (struct parameter){.split = split, .initializer = INITIALIZE_ZEROS};
    snprintf(parameter->path, sizeof parameter->path, "%s", path);
    while (parameter->axes < PARAMETER_MAX_AXES && shape[parameter->axes]) {
        parameter->shape[parameter->axes] = shape[parameter->axes];
        parameter->axes++;
    }
    return parameter;
}
