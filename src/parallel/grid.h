/* The 3D grid of ranks: pipeline x data x tensor, tensor fastest so that tensor ranks are neighbours on a node.
 * rank = (p * D + d) * T + t. */
#ifndef PARALLEL_GRID_H
#define PARALLEL_GRID_H

#include "parallel/communicator.h"

struct grid {
    int pipeline, data, tensor; /* sizes P, D, T */
    int p, d, t;                /* this rank's coordinates */
    int rank, size;             /* in the world */
    struct communicator *world; /* for host memory; not owned */
    const struct device *device;
    struct stream *stream;                        /* that the others work behind */
    struct communicator *activations, *gradients; /* the P ranks with equal d and t, in order of p: one per direction */
    struct communicator *data_group;              /* the D ranks with equal p and t, in order of d */
    struct communicator *tensor_group;            /* the T ranks with equal p and d, in order of t */
};

/* Makes the communicators, for the memory of `device` and behind what is queued on `stream`, and sets the rank's place
 * in messages, "rank 5 (p1 d0 t1)". pipeline * data * tensor must be the world's size (a mistake there is fatal: it was
 * checked before). Collective over world. */
void grid_open(struct grid *grid, struct communicator *world, int pipeline, int data, int tensor,
               const struct device *device, struct stream *stream);
void grid_close(struct grid *grid);

/* More communicators over all ranks of the grid, for the memory of its device: for messages between neighbours in order
 * of ranks, and for sums; the caller closes them. Collective over the world. */
struct communicator *grid_ring(const struct grid *grid);
struct communicator *grid_group(const struct grid *grid);

/* The world rank at coordinates p, d, t. */
int grid_rank(const struct grid *grid, int p, int d, int t);

/* A communicator over the pipeline ranks `members` (ascending p, `count` of them) with this rank's d and t, or NULL
 * where this rank is not among them; the caller closes it. Collective over all pipeline ranks with equal d and t. */
struct communicator *grid_pipeline_subset(const struct grid *grid, const int *members, int count);

/* Advances everything in host memory that is under way on the grid's communicators, its subsets and the world. */
void grid_progress(const struct grid *grid);

#endif
