#include "model/parameters.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/random.h"

#define LAYER_ALIGNMENT 16 /* elements: 64 bytes */

static int64_t elements_of(const struct parameter *parameter)
{
    int64_t elements = 1;
    for (int axis = 0; axis < parameter->axes; axis++)
        elements *= parameter->shape[axis];
    return elements;
}

bool parameters_same(const struct parameter *a, const struct parameter *b)
{
    return a->tied && b->tied && a->index == b->index && strcmp(a->path, b->path) == 0;
}

/* Numbers every parameter of every layer: numbers[layer * LAYER_MAX_PARAMETERS + i]. Ends of a tie get the number of
 * the first. Only tied parameters are searched, of which a model has few. */
static int number_parameters(const struct model *model, int *numbers, bool *owners)
{
    struct end {
        const struct parameter *parameter;
        int number;
    } *ends = allocate((size_t)model->layer_count * LAYER_MAX_PARAMETERS, sizeof *ends);
    int end_count = 0, count = 0;
    for (int layer = 0; layer < model->layer_count; layer++) {
        const struct declaration *declaration = &model->declarations[layer];
        for (int i = 0; i < declaration->parameter_count; i++) {
            const struct parameter *parameter = &declaration->parameters[i];
            int at = layer * LAYER_MAX_PARAMETERS + i, end = 0;
            while (end < end_count && !parameters_same(ends[end].parameter, parameter))
                end++;
            owners[at] = !parameter->tied || end == end_count;
            if (!owners[at] && ends[end].parameter->element != parameter->element)
                fatal("the ends of the tied parameter %s are read in different types", parameter->path);
            numbers[at] = owners[at] ? count++ : ends[end].number;
            if (parameter->tied && end == end_count)
                ends[end_count++] = (struct end){parameter, numbers[at]};
        }
    }
    free(ends);
    return count;
}

static void fill_share(struct parameter_share *share, int tensor, int t)
{
    const struct parameter *parameter = share->parameter;
    share->outer = share->inner = 1;
    if (parameter->split < 0) {
        share->inner = elements_of(parameter);
        share->split = (struct share){0, 1};
        share->split_size = 1;
    } else {
        for (int axis = 0; axis < parameter->split; axis++)
            share->outer *= parameter->shape[axis];
        for (int axis = parameter->split + 1; axis < parameter->axes; axis++)
            share->inner *= parameter->shape[axis];
        share->split_size = parameter->shape[parameter->split];
        share->split = share_of(share->split_size, tensor, t);
    }
    share->count = share->outer * share->split.count * share->inner;
}

/* The end of the same tie that an earlier share of this rank holds, or NULL. */
static const struct parameter_share *earlier_end(const struct parameters *parameters, int before,
                                                 const struct parameter *parameter)
{
    if (!parameter->tied)
        return NULL;
    for (int i = 0; i < before; i++)
        if (parameters_same(parameters->shares[i].parameter, parameter))
            return &parameters->shares[i];
    return NULL;
}

static int64_t align(int64_t offset)
{
    return (offset + LAYER_ALIGNMENT - 1) / LAYER_ALIGNMENT * LAYER_ALIGNMENT;
}

/* Places every share in an arena for computations, which is dropped again when all of them are float32. */
static void place_computed(struct parameters *parameters)
{
    bool apart = false;
    int64_t end = 0; /* bytes */
    for (int local = 0; local < parameters->local_layers; local++)
        for (int i = parameters->layer_first[local]; i < parameters->layer_first[local + 1]; i++) {
            struct parameter_share *share = &parameters->shares[i];
            const enum element element = share->parameter->element;
            apart = apart || element != ELEMENT_FLOAT32;
            const struct parameter_share *tied = earlier_end(parameters, i, share->parameter);
            if (tied) {
                share->computed = tied->computed;
                continue;
            }
            if (i == parameters->layer_first[local] || parameters->shares[i - 1].parameter->element != element)
                end = (end + 63) / 64 * 64;
            share->computed = end;
            end += share->count * (int64_t)element_bytes(element);
        }
    parameters->computed_bytes = apart ? (size_t)(end + 63) / 64 * 64 : 0;
    for (int i = 0; i < parameters->count && !apart; i++)
        parameters->shares[i].computed = parameters->shares[i].weight * (int64_t)sizeof(float);
}

void parameters_create(struct parameters *parameters, const struct model *model, const struct slice *slices,
                       int slice_count, int tensor, int t)
{
    size_t all = (size_t)model->layer_count * LAYER_MAX_PARAMETERS;
    int *numbers = allocate(all, sizeof *numbers);
    bool *owners = allocate(all, sizeof *owners);
    *parameters = (struct parameters){.logical_count = number_parameters(model, numbers, owners)};
    for (int s = 0; s < slice_count; s++)
        for (int layer = slices[s].first; layer < slices[s].last; layer++) {
            parameters->local_layers++;
            parameters->count += model->declarations[layer].parameter_count;
        }
    parameters->shares = allocate((size_t)parameters->count, sizeof *parameters->shares);
    parameters->layer_first = allocate((size_t)parameters->local_layers + 1, sizeof *parameters->layer_first);

    int count = 0, local = 0;
    for (int s = 0; s < slice_count; s++)
        for (int layer = slices[s].first; layer < slices[s].last; layer++) {
            const struct declaration *declaration = &model->declarations[layer];
            parameters->layer_first[local++] = count;
            parameters->weight_elements = align(parameters->weight_elements);
            for (int i = 0; i < declaration->parameter_count; i++) {
                struct parameter_share *share = &parameters->shares[count];
                int at = layer * LAYER_MAX_PARAMETERS + i;
                *share = (struct parameter_share){.parameter = &declaration->parameters[i],
                                                  .layer = layer,
                                                  .stage = slices[s].stage,
                                                  .logical = numbers[at],
                                                  .owner = owners[at]};
                fill_share(share, tensor, t);
                const struct parameter_share *end = earlier_end(parameters, count, share->parameter);
                share->weight = end ? end->weight : parameters->weight_elements;
                share->gradient = end ? -1 : share->weight;
                parameters->weight_elements += end ? 0 : share->count;
                count++;
            }
        }
    parameters->layer_first[local] = count;
    parameters->weight_elements = align(parameters->weight_elements);
    parameters->gradient_elements = parameters->weight_elements;
    for (int i = 0; i < count; i++)
        if (parameters->shares[i].gradient < 0) {
            parameters->shares[i].gradient = parameters->gradient_elements;
            parameters->gradient_elements = align(parameters->gradient_elements + parameters->shares[i].count);
        }
    place_computed(parameters);
    free(numbers);
    free(owners);
}

void parameters_destroy(struct parameters *parameters)
{
    free(parameters->shares);
    free(parameters->layer_first);
    *parameters = (struct parameters){0};
}

int parameters_logical(const struct model *model, int layer, int index)
{
    size_t all = (size_t)model->layer_count * LAYER_MAX_PARAMETERS;
    int *numbers = allocate(all, sizeof *numbers);
    bool *owners = allocate(all, sizeof *owners);
    number_parameters(model, numbers, owners);
    int number = numbers[layer * LAYER_MAX_PARAMETERS + index];
    free(numbers);
    free(owners);
    return number;
}

int64_t parameters_total(const struct model *model)
{
    size_t all = (size_t)model->layer_count * LAYER_MAX_PARAMETERS;
    int *numbers = allocate(all, sizeof *numbers);
    bool *owners = allocate(all, sizeof *owners);
    number_parameters(model, numbers, owners);
    int64_t total = 0;
    for (int layer = 0; layer < model->layer_count; layer++)
        for (int i = 0; i < model->declarations[layer].parameter_count; i++)
            if (owners[layer * LAYER_MAX_PARAMETERS + i])
                total += elements_of(&model->declarations[layer].parameters[i]);
    free(numbers);
    free(owners);
    return total;
}

int64_t parameters_in_layers(const struct model *model, int first, int last)
{
    int64_t total = 0;
    for (int layer = first; layer < last; layer++)
        for (int i = 0; i < model->declarations[layer].parameter_count; i++)
            total += elements_of(&model->declarations[layer].parameters[i]);
    return total;
}

void parameters_initialize(const struct parameter_share *share, uint64_t seed, int64_t first, int64_t count,
                           float *weights)
{
    const struct parameter *parameter = share->parameter;
    const uint64_t key = random_key(seed, parameter->path);
    const int64_t stacked = parameter->stack_size ? parameter->index * elements_of(parameter) : 0;
    const int64_t run = share->split.count * share->inner; /* consecutive in memory and in the logical tensor */
    for (int64_t done = 0, piece; done < count; done += piece) {
        const int64_t outer = (first + done) / run, within = (first + done) % run;
        const int64_t logical = stacked + (outer * share->split_size + share->split.first) * share->inner + within;
        piece = run - within < count - done ? run - within : count - done;
        switch (parameter->initializer) {
        case INITIALIZE_NORMAL:
            random_normal(key, logical, piece, parameter->deviation, weights + done);
            break;
        case INITIALIZE_ZEROS:
        case INITIALIZE_ONES:
            for (int64_t i = 0; i < piece; i++)
                weights[done + i] = parameter->initializer == INITIALIZE_ONES ? 1 : 0;
            break;
        }
    }
}
