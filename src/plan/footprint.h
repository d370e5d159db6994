/* What a rank will hold in memory: the numbers of buffers that a proven schedule needs, and all its bytes. The trainer
 * allocates exactly this, the planner tells it, and balance = 'memory' cuts by it. */
#ifndef PLAN_FOOTPRINT_H
#define PLAN_FOOTPRINT_H

#include "model/shards.h"
#include "model/stage.h"
#include "pipeline/partition.h"
#include "plan/program.h"

/* What may be under way at once: sends of one stage and direction, transfers of buckets between data ranks, sums over
 * the ends of a tied parameter. */
#define SEND_SLOTS 2
#define BUCKETS_UNDER_WAY 4
#define TIES_UNDER_WAY 4

/* Buffers of one stage on its rank. */
struct stage_slots {
    int sets, pending;
    int inputs;        /* activations before the stage: received ahead, then part of the activation set */
    int outputs;       /* activations behind it, to be sent */
    int out_gradients; /* received ahead, then until the end of the backward */
    int in_gradients;  /* to be sent */
};

struct stage_slots footprint_slots(const struct schedule *schedule, const struct validation *validation, int stage);

/* Whether the stage's input and weight gradients run apart. */
bool footprint_splits(const struct schedule *schedule, int stage);

/* Bytes on one rank: seven parts that add up to all of it, and the sizes of the pieces of memory that activations and
 * buffers lie in. */
struct footprint {
    size_t weights;  /* float32, that the optimizer changes */
    size_t computed; /* what computations read of them, 0 where they read them as they are */
    size_t gradients, moments;
    size_t activations; /* activation and pending sets with their inputs */
    size_t buffers;     /* messages, losses, scratch of sums */
    size_t workspace;

    size_t arena;          /* all activations and messages of training and evaluation, which take turns in it */
    size_t queue_scratch;  /* of the transfers between data ranks */
    size_t sum_scratch;    /* of the other sums of gradients */
    size_t tensor_scratch; /* of the sums over tensor ranks */
};

size_t footprint_total(const struct footprint *memory);

/* Bytes that a buffer takes: whole cache lines, never none, as a stage that keeps nothing has buffers too. */
size_t footprint_buffer(size_t bytes);

/* Bytes of one field of the batch in the memory of a device that does not read the host's: `rows` tokens in each
 * microbatch. */
size_t footprint_field(const struct schedule *schedule, int64_t rows);

/* Adds the sets and messages of one stage. */
void footprint_add_stage(struct footprint *memory, const struct stage_slots *slots, const struct stage_bytes *bytes);

/* What decides what ranks hold, but the cut. */
struct layout {
    const struct model *model;
    struct circumstances circumstances; /* of the tensor rank; live is filled in where needed */
    int data;                           /* data ranks */
    bool sharded;                       /* the optimizer's state is split over them */
    struct proven train, evaluate;      /* schedule NULL: not run; one of them is */
};

/* Sizes of the model's slices under a layout, worked out as they are asked for. */
struct footprint_sizes;

/* Holds on to what the layout points to; freed by footprint_sizes_destroy(), which accepts NULL. Local. */
struct footprint_sizes *footprint_sizes_create(const struct layout *layout);
void footprint_sizes_destroy(struct footprint_sizes *sizes);

/* What a rank with these slices, in ascending order, holds, whichever data rank it is. On tensor rank 0, whose share is
 * the largest, that is at least as much as any holds: by shards_most() of what is split over data ranks, and for the
 * sums over the ends of a weight that is tied in more than two places as if the others were all on one rank. Everything
 * else is exact. */
struct footprint footprint_of_slices(struct footprint_sizes *sizes, const struct partition_slice *slices, int count);

/* The same for a pipeline rank under a cut, which tells where the other ends are. With the rank's own parameters and
 * shards in place of NULL it is exact. */
struct footprint footprint_of_rank(struct footprint_sizes *sizes, const int *first_layer, int rank,
                                   const struct parameters *parameters, const struct shards *shards);

#endif
