/* How a rank's parameters are dealt to its data ranks: the buckets in which gradients are summed and weights gathered,
 * the piece of each bucket that belongs to each data rank, and what of the optimizer's state this rank holds.
 *
 * A bucket is a range of one layer in the arena of gradients, of at most BUCKET_ELEMENTS, and is cut into a piece for
 * each data rank, in their order. Cuts lie on the boundaries of the blocks whose squares are summed (kernels.h), so
 * that a block belongs to one rank. They are made for the largest share that a tensor rank has, so that all tensor
 * ranks cut alike, and give each data rank about as much of the whole as the others. A tied parameter has buckets of
 * its own, whose cuts follow from its size and the number of data ranks, so that its ends are cut alike wherever they
 * are. */
#ifndef MODEL_SHARDS_H
#define MODEL_SHARDS_H

#include "model/parameters.h"

#define BUCKET_ELEMENTS (1 << 20) /* large enough for full bandwidth, small enough to start early */

struct bucket {
    int layer;                /* local */
    int share;                /* the first of the parameter shares in it */
    int first_end;            /* the bucket of the same weights at a tie's first end on this rank; else itself */
    int64_t weight, gradient; /* offsets of its first element in the arenas */
    int64_t count;            /* elements */
    int64_t *pieces;          /* [data ranks] elements of each one's piece */
    int64_t own;              /* where this rank's piece begins, elements from the bucket's first */
    int64_t computed;         /* the same in what computations read, bytes; gaps belong to the piece before them */
    int64_t *computed_pieces; /* [data ranks] */
    int64_t computed_own;
    int first_range, ranges; /* what this rank holds of it, in `ranges` */
};

/* Which elements of its share a range of the optimizer is. */
struct shard {
    int share;
    int64_t first; /* a multiple of SQUARES_BLOCK */
};

struct shards {
    int data, d;            /* number of data ranks, this one */
    bool sharded;           /* the optimizer's state is split over them */
    bool weights_sharded;   /* so are the float32 weights, as computations read others: they lie as the moments do */
    struct bucket *buckets; /* layer by layer, in the order of the arena of gradients but for later ends of ties */
    int bucket_count;
    int *layer_first; /* [local layers + 1] first bucket of a local layer */
    int *share_first; /* [shares] the bucket in which a share begins */
    /* What this rank holds: its own pieces with `sharded`, else everything. Each range lies within one share and one
     * bucket. Those of later ends are not the optimizer's. */
    struct optimizer_range *ranges;
    struct shard *shards; /* [range_count] */
    int range_count;
    int64_t moment_elements; /* of the arena of each moment: held ranges of first ends, or laid out as the weights */
    int64_t weight_elements; /* of the arena of weights */
    int64_t *pieces;         /* of all buckets, in elements and in bytes */
};

/* For data rank d of D and any one of `tensor` tensor ranks. With one data rank nothing is split. */
void shards_create(struct shards *shards, const struct parameters *parameters, int tensor, int data, int d,
                   bool sharded);
void shards_destroy(struct shards *shards);

/* The part of a bucket whose gradients become those of the global batch on this rank: *begin from its first element.
 * Returns the number of elements. */
int64_t shards_held(const struct shards *shards, const struct bucket *bucket, int64_t *begin);

/* For those who plan, on tensor rank 0, whose shares are the largest: of what is dealt out in buckets, `ties` tied
 * parameters among it, at least as many elements as any of `data` ranks holds, and gaps; the elements of its piece of a
 * bucket of `count`; and the buckets of a run of shares without a tied one, or of a tied one. */
int64_t shards_most(int64_t elements, int data, int64_t buckets, int ties);
int64_t shards_most_of_bucket(int64_t count, int data, int ties);
int64_t shards_most_buckets(int64_t elements);

#endif
