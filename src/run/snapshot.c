#include "run/snapshot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* The number of the tensor with this path among those from `first` on, or -1. */
static int find_tensor(const struct snapshot *snapshot, int first, const char *tree, const char *path)
{
    char whole[sizeof snapshot->tensors->path];
    snprintf(whole, sizeof whole, "%s/%s", tree, path);
    for (int i = first; i < snapshot->tensor_count; i++)
        if (strcmp(snapshot->tensors[i].path, whole) == 0)
            return i;
    return -1;
}

static void add_tensor(struct snapshot *snapshot, const char *tree, const struct parameter *parameter)
{
    struct checkpoint_tensor *tensor = &snapshot->tensors[snapshot->tensor_count++];
    snprintf(tensor->path, sizeof tensor->path, "%s/%s", tree, parameter->path);
    if (parameter->stack_size)
        tensor->shape[tensor->axes++] = parameter->stack_size;
    for (int axis = 0; axis < parameter->axes; axis++)
        tensor->shape[tensor->axes++] = parameter->shape[axis];
}

/* The box of one share; `stride` is set for a first axis that is the tensor's own. */
static struct checkpoint_part part_of(const struct parameter_share *share, int tensor, float *arena)
{
    const struct parameter *parameter = share->parameter;
    struct checkpoint_part part = {.tensor = tensor, .data = arena + share->weight};
    int at = 0;
    if (parameter->stack_size) {
        part.start[at] = parameter->index;
        part.count[at++] = 1;
    }
    for (int axis = 0; axis < parameter->axes; axis++, at++) {
        part.start[at] = axis == parameter->split ? share->split.first : 0;
        part.count[at] = axis == parameter->split ? share->split.count : parameter->shape[axis];
    }
    part.stride = 1;
    for (int axis = 1; axis < at; axis++)
        part.stride *= part.count[axis];
    return part;
}

/* Joins the next layer of a stack to the part before it where memory has one stride. */
static bool join(struct checkpoint_part *part, const struct checkpoint_part *next)
{
    int64_t stride = part->count[0] == 1 ? next->data - part->data : part->stride;
    if (next->start[0] != part->start[0] + part->count[0] || stride < part->stride ||
        next->data - part->data != stride * part->count[0])
        return false;
    part->stride = stride;
    part->count[0]++;
    return true;
}

static int64_t elements(const struct checkpoint_part *part, int axes)
{
    int64_t product = 1;
    for (int axis = 0; axis < axes; axis++)
        product *= part->count[axis];
    return product;
}

/* Gives the parts that this pipeline and tensor rank answers for to its data ranks, each to the one with least so far.
 */
static void share_out(struct snapshot *snapshot, const struct grid *grid)
{
    int64_t *load = allocate((size_t)grid->data, sizeof *load);
    for (int i = 0; i < snapshot->part_count; i++) {
        struct checkpoint_part *part = &snapshot->parts[i];
        if (!part->first)
            continue;
        int least = 0;
        for (int d = 1; d < grid->data; d++)
            if (load[d] < load[least])
                least = d;
        load[least] += elements(part, snapshot->tensors[part->tensor].axes);
        part->first = least == grid->d;
    }
    free(load);
}

static void add_tree(struct snapshot *snapshot, const struct model *model, const struct parameters *parameters,
                     const struct grid *grid, const struct snapshot_tree *tree)
{
    int first_tensor = snapshot->tensor_count, first_part = snapshot->part_count;
    for (int layer = 0; layer < model->layer_count; layer++)
        for (int i = 0; i < model->declarations[layer].parameter_count; i++) {
            const struct parameter *parameter = &model->declarations[layer].parameters[i];
            if (find_tensor(snapshot, first_tensor, tree->path, parameter->path) < 0)
                add_tensor(snapshot, tree->path, parameter);
        }
    for (int i = 0; i < parameters->count; i++) {
        const struct parameter_share *share = &parameters->shares[i];
        if (share->gradient != share->weight) /* a later end of a tie: the first one's weights */
            continue;
        int tensor = find_tensor(snapshot, first_tensor, tree->path, share->parameter->path);
        struct checkpoint_part part = part_of(share, tensor, tree->arena);
        part.first = share->owner && (share->parameter->split >= 0 || grid->t == 0);
        bool joined = false;
        for (int j = first_part; j < snapshot->part_count && share->parameter->stack_size && !joined; j++)
            joined = snapshot->parts[j].tensor == tensor && join(&snapshot->parts[j], &part);
        if (!joined)
            snapshot->parts[snapshot->part_count++] = part;
    }
}

void snapshot_create(struct snapshot *snapshot, const struct model *model, const struct parameters *parameters,
                     const struct grid *grid, const struct snapshot_tree *trees, int tree_count)
{
    *snapshot = (struct snapshot){0};
    size_t tensors = 0;
    for (int layer = 0; layer < model->layer_count; layer++)
        tensors += (size_t)model->declarations[layer].parameter_count;
    snapshot->tensors = allocate(tensors * (size_t)tree_count, sizeof *snapshot->tensors);
    snapshot->parts = allocate((size_t)(parameters->count * tree_count), sizeof *snapshot->parts);
    for (int i = 0; i < tree_count; i++)
        add_tree(snapshot, model, parameters, grid, &trees[i]);
    share_out(snapshot, grid);
}

void snapshot_destroy(struct snapshot *snapshot)
{
    free(snapshot->tensors);
    free(snapshot->parts);
    *snapshot = (struct snapshot){0};
}
