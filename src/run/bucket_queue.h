/* The traffic between data ranks: buckets whose gradients are summed and whose weights are gathered, a few at a time,
 * in the order in which they were asked for, behind the computations. With one data rank nothing is done.
 *
 * Data ranks must ask for the same in the same order. A sum is c0 + c1 + ... in the order of the ranks. */
#ifndef RUN_BUCKET_QUEUE_H
#define RUN_BUCKET_QUEUE_H

#include "model/shards.h"
#include "parallel/grid.h"

struct bucket_queue;

/* Over the data ranks of the grid. Local. */
struct bucket_queue *bucket_queue_create(const struct grid *grid, const struct shards *shards);
void bucket_queue_destroy(struct bucket_queue *queue); /* drains it: collective over the data ranks; NULL is allowed */

/* Bytes of scratch, then where the arenas of gradients and of what computations read are, and the scratch. */
size_t bucket_queue_bytes(const struct bucket_queue *queue);
void bucket_queue_attach(struct bucket_queue *queue, char *computed, float *gradients, char *scratch);

/* The bucket's gradients of this rank are final: they are replaced by the sum over the data ranks; with a sharded
 * optimizer only in this rank's piece. */
void bucket_queue_sum(struct bucket_queue *queue, int bucket);

/* What computations read of this rank's piece is new: all data ranks get it. */
void bucket_queue_gather(struct bucket_queue *queue, int bucket);

/* Advances what is under way; to be called between matmuls. */
void bucket_queue_progress(struct bucket_queue *queue);

/* Waits until all weights of the local layer are there. */
void bucket_queue_wait_weights(struct bucket_queue *queue, int layer);

/* Waits until everything asked for is done. */
void bucket_queue_drain(struct bucket_queue *queue);

#endif
