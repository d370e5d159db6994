/* From the gradients of this rank's microbatches to those of the global batch: the sum over the data ranks, in buckets
 * that start as soon as a layer's last microbatch is done and move behind the rest of the backward; the sum over tensor
 * ranks of what sequence parallelism leaves partial; the sum over the ends of tied weights; and the global norm. With a
 * sharded optimizer all of it for this rank's pieces alone (model/shards.h).
 *
 * Every sum is c0 + c1 + ... in rank (or stage) order, so its bits depend neither on buckets nor on the schedule. */
#ifndef RUN_GRADIENTS_H
#define RUN_GRADIENTS_H

#include "parallel/grid.h"
#include "pipeline/instruction.h"
#include "run/bucket_queue.h"

struct gradients;

/* For this rank's parameters, dealt out by shards; the queue sums them over the data ranks. stage_of_layer
 * [model->layer_count] and the schedule tell where the ends of tied weights are. Collective over the grid. */
struct gradients *gradients_create(const struct grid *grid, const struct device *device, struct stream *stream,
                                   const struct parameters *parameters, const struct shards *shards,
                                   struct bucket_queue *queue, const struct model *model, const int *stage_of_layer,
                                   const struct schedule *schedule, bool sequence_parallel);
void gradients_destroy(struct gradients *gradients); /* collective; NULL is allowed */

/* Bytes of scratch, then where the arena of gradients and the scratch are. */
size_t gradients_bytes(const struct gradients *gradients);
void gradients_attach(struct gradients *gradients, float *arena, char *scratch);

/* The gradients of a local layer are final on this rank: their sum over the data ranks may start. */
void gradients_layer_done(struct gradients *gradients, int local_layer);

/* Waits for all sums, then adds what is left: afterwards what shards_held() tells of each bucket holds the gradients of
 * the global batch, those of a tied weight at its first end on this rank. Collective over the grid. */
void gradients_finish(struct gradients *gradients);

/* Sums of squares of this rank's share of the gradients into squares[logical_count * T]: entry (logical, t) for what it
 * answers for and 0 elsewhere, so that the sum of the vectors of all ranks has each once. Sums are in float64 over
 * fixed blocks of consecutive elements, added in index order. Collective over the data ranks. */
void gradients_squares(struct gradients *gradients, double *squares);

#endif
