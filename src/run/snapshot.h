/* The tensors of a checkpoint and where this rank's parts of them lie: from a model's parameters to io/checkpoint.h. */
#ifndef RUN_SNAPSHOT_H
#define RUN_SNAPSHOT_H

#include "io/checkpoint.h"
#include "model/shards.h"
#include "parallel/grid.h"

struct snapshot {
    struct checkpoint_tensor *tensors;
    int tensor_count;
    struct checkpoint_part *parts;
    int part_count;
};

/* Where the elements of a tree lie in its arena. */
enum snapshot_layout {
    SNAPSHOT_WHOLE,    /* all shares, laid out as weights */
    SNAPSHOT_MOMENTS,  /* what the rank holds of the optimizer's state, laid out as moments */
    SNAPSHOT_GRADIENTS /* as much, laid out as gradients */
};

/* One tree of the file: "/model", "/optimizer/first_moment" ... and the arena that holds it in the device's memory. */
struct snapshot_tree {
    const char *path;
    float *arena;
    enum snapshot_layout layout;
};

/* The whole model's tensors under each tree, and this rank's parts. Of the ranks that hold the same elements one counts
 * as first: data ranks share the writing by size. */
void snapshot_create(struct snapshot *snapshot, const struct model *model, const struct parameters *parameters,
                     const struct shards *shards, const struct grid *grid, const struct snapshot_tree *trees,
                     int tree_count);
void snapshot_destroy(struct snapshot *snapshot);

#endif
