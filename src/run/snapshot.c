#include "run/snapshot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "io/box.h"

#define MOST_BOXES (2 * CHECKPOINT_MAX_AXES - 1) /* that a range of elements takes */

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

/* The parts that are `count` elements of a share from `first` on, which lie together at `data`. Returns their number.
 */
static int parts_of(const struct parameter_share *share, int tensor, int64_t first, int64_t count, float *data,
                    bool is_first, struct checkpoint_part *parts)
{
    const struct parameter *parameter = share->parameter;
    int64_t shape[CHECKPOINT_MAX_AXES], start[CHECKPOINT_MAX_AXES] = {0}; /* of the share in its tensor */
    int axes = 0;
    if (parameter->stack_size) {
        start[axes] = parameter->index;
        shape[axes++] = 1;
    }
    for (int axis = 0; axis < parameter->axes; axis++, axes++) {
        start[axes] = axis == parameter->split ? share->split.first : 0;
        shape[axes] = axis == parameter->split ? share->split.count : parameter->shape[axis];
    }
    struct box boxes[MOST_BOXES];
    int box_count = box_range(axes, shape, first, count, boxes);
    for (int i = 0; i < box_count; i++) {
        struct checkpoint_part *part = &parts[i];
        *part = (struct checkpoint_part){.tensor = tensor, .data = data, .stride = 1, .first = is_first};
        for (int axis = 0; axis < axes; axis++) {
            part->start[axis] = start[axis] + boxes[i].start[axis];
            part->count[axis] = boxes[i].count[axis];
            part->stride *= axis > 0 ? part->count[axis] : 1;
        }
        data += box_elements(&boxes[i]);
    }
    return box_count;
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

/* Whether the data ranks of this pipeline and tensor rank answer for the share. */
static bool is_first(const struct parameter_share *share, const struct grid *grid)
{
    return share->owner && (share->parameter->split >= 0 || grid->t == 0);
}

static int64_t elements(const struct checkpoint_part *part, int axes)
{
    int64_t product = 1;
    for (int axis = 0; axis < axes; axis++)
        product *= part->count[axis];
    return product;
}

/* Gives the parts from first_part on that this pipeline and tensor rank answers for to its data ranks, each to the one
 * with least so far (loads). */
static void share_out(struct snapshot *snapshot, int first_part, const struct grid *grid, int64_t *loads)
{
    for (int i = first_part; i < snapshot->part_count; i++) {
        struct checkpoint_part *part = &snapshot->parts[i];
        if (!part->first)
            continue;
        int least = 0;
        for (int d = 1; d < grid->data; d++)
            if (loads[d] < loads[least])
                least = d;
        loads[least] += elements(part, snapshot->tensors[part->tensor].axes);
        part->first = least == grid->d;
    }
}

/* All shares, the layers of a stack together. */
static void add_whole(struct snapshot *snapshot, const struct parameters *parameters, const struct grid *grid,
                      const struct snapshot_tree *tree, int first_tensor)
{
    int first_part = snapshot->part_count;
    for (int i = 0; i < parameters->count; i++) {
        const struct parameter_share *share = &parameters->shares[i];
        if (share->gradient != share->weight) /* a later end of a tie: the first one's weights */
            continue;
        int tensor = find_tensor(snapshot, first_tensor, tree->path, share->parameter->path);
        struct checkpoint_part *part = &snapshot->parts[snapshot->part_count];
        if (parts_of(share, tensor, 0, share->count, tree->arena + share->weight, is_first(share, grid), part) == 0)
            continue;
        bool joined = false;
        for (int j = first_part; j < snapshot->part_count && share->parameter->stack_size && !joined; j++)
            joined = snapshot->parts[j].tensor == tensor && join(&snapshot->parts[j], part);
        snapshot->part_count += !joined;
    }
}

/* This rank's pieces. */
static void add_pieces(struct snapshot *snapshot, const struct parameters *parameters, const struct shards *shards,
                       const struct grid *grid, const struct snapshot_tree *tree, int first_tensor)
{
    for (int i = 0; i < shards->range_count; i++) {
        const struct optimizer_range *range = &shards->ranges[i];
        const struct parameter_share *share = &parameters->shares[shards->shards[i].share];
        if (share->gradient != share->weight)
            continue;
        int tensor = find_tensor(snapshot, first_tensor, tree->path, share->parameter->path);
        int64_t offset = tree->layout == SNAPSHOT_MOMENTS ? range->moment : range->gradient;
        snapshot->part_count += parts_of(share, tensor, shards->shards[i].first, range->count, tree->arena + offset,
                                         is_first(share, grid), &snapshot->parts[snapshot->part_count]);
    }
}

static bool in_pieces(const struct shards *shards, const struct snapshot_tree *tree)
{
    return tree->layout != SNAPSHOT_WHOLE && shards->sharded;
}

static void add_tree(struct snapshot *snapshot, const struct model *model, const struct parameters *parameters,
                     const struct shards *shards, const struct grid *grid, const struct snapshot_tree *tree,
                     int64_t *loads)
{
    int first_tensor = snapshot->tensor_count, first_part = snapshot->part_count;
    for (int layer = 0; layer < model->layer_count; layer++)
        for (int i = 0; i < model->declarations[layer].parameter_count; i++) {
            const struct parameter *parameter = &model->declarations[layer].parameters[i];
            if (find_tensor(snapshot, first_tensor, tree->path, parameter->path) < 0)
                add_tensor(snapshot, tree->path, parameter);
        }
    if (in_pieces(shards, tree)) {
        add_pieces(snapshot, parameters, shards, grid, tree, first_tensor);
    } else {
        add_whole(snapshot, parameters, grid, tree, first_tensor);
        share_out(snapshot, first_part, grid, loads);
    }
}

void snapshot_create(struct snapshot *snapshot, const struct model *model, const struct parameters *parameters,
                     const struct shards *shards, const struct grid *grid, const struct snapshot_tree *trees,
                     int tree_count)
{
    *snapshot = (struct snapshot){0};
    size_t tensors = 0, parts = 0;
    for (int layer = 0; layer < model->layer_count; layer++)
        tensors += (size_t)model->declarations[layer].parameter_count;
    for (int i = 0; i < tree_count; i++)
        parts += in_pieces(shards, &trees[i]) ? (size_t)shards->range_count * MOST_BOXES : (size_t)parameters->count;
    snapshot->tensors = allocate(tensors * (size_t)tree_count, sizeof *snapshot->tensors);
    snapshot->parts = allocate(parts, sizeof *snapshot->parts);
    int64_t *loads = allocate((size_t)grid->data, sizeof *loads);
    for (int i = 0; i < tree_count; i++)
        add_tree(snapshot, model, parameters, shards, grid, &trees[i], loads);
    free(loads);
}

void snapshot_destroy(struct snapshot *snapshot)
{
    free(snapshot->tensors);
    free(snapshot->parts);
    *snapshot = (struct snapshot){0};
}
