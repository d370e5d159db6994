#include "model/shards.h"

#include <stdlib.h>

#include "base/memory.h"

#define PIECE_ALIGNMENT 16 /* elements: 64 bytes, of pieces in the arenas of moments */

/* Consecutive elements of a share that stay together: SQUARES_BLOCK of them, or what is left. */
struct block {
    int share;
    int64_t first, count;
    int64_t largest; /* count on the tensor rank that has most of it: cuts are made by these */
};

/* What dealing goes by. */
struct deal {
    const struct parameters *parameters;
    int tensor;
    struct block *blocks; /* of one run of shares */
    int64_t *loads;       /* [data] elements dealt so far */
    int64_t *tie_loads;   /* [data] of the tied parameter at hand alone */
};

static int64_t largest_share(const struct parameter_share *share, int tensor)
{
    return share->outer * share_of(share->split_size, tensor, 0).count * share->inner;
}

static int64_t at_most(int64_t count, int64_t most)
{
    return count < most ? count : most;
}

static int64_t list_blocks(const struct deal *deal, int first_share, int last_share)
{
    int64_t count = 0;
    for (int i = first_share; i < last_share; i++) {
        const struct parameter_share *share = &deal->parameters->shares[i];
        int64_t largest = largest_share(share, deal->tensor);
        for (int64_t first = 0; first < largest; first += SQUARES_BLOCK) {
            int64_t here = at_most(first, share->count);
            deal->blocks[count++] = (struct block){.share = i,
                                                   .first = here,
                                                   .count = at_most(share->count - here, SQUARES_BLOCK),
                                                   .largest = at_most(largest - first, SQUARES_BLOCK)};
        }
    }
    return count;
}

/* The level up to which `count` elements fill the ranks when those with least are filled first. */
static int64_t level_of(const int64_t *loads, int data, int64_t count)
{
    int64_t low = 0, high = count;
    for (int d = 0; d < data; d++)
        high = loads[d] + count > high ? loads[d] + count : high;
    while (low < high) {
        int64_t level = low + (high - low) / 2, room = 0;
        for (int d = 0; d < data; d++)
            room += level > loads[d] ? level - loads[d] : 0;
        if (room >= count)
            high = level;
        else
            low = level + 1;
    }
    return low;
}

/* Where an element of a share lies in what computations read, bytes. */
static int64_t computed_of(const struct parameter_share *share, int64_t element)
{
    return share->computed + element * (int64_t)element_bytes(share->parameter->element);
}

/* This rank holds the block: one more range, or a longer one. */
static void hold(struct shards *shards, struct bucket *bucket, const struct parameter_share *share,
                 const struct block *block, bool later_end)
{
    if (block->count == 0)
        return;
    if (bucket->ranges > 0 && shards->shards[shards->range_count - 1].share == block->share) {
        shards->ranges[shards->range_count - 1].count += block->count;
    } else {
        shards->shards[shards->range_count] = (struct shard){block->share, block->first};
        const int64_t weight = share->weight + block->first;
        shards->ranges[shards->range_count++] =
            (struct optimizer_range){.count = block->count,
                                     .weight = shards->weights_sharded ? shards->moment_elements : weight,
                                     .gradient = share->gradient + block->first,
                                     .moment = shards->sharded ? shards->moment_elements : weight,
                                     .computed = computed_of(share, block->first),
                                     .element = share->parameter->element,
                                     .decay = share->parameter->decay};
        bucket->ranges++;
    }
    if (shards->sharded && !later_end)
        shards->moment_elements += block->count;
}

/* Where the next block of the bucket, or what is behind the last, lies in what computations read. */
static int64_t computed_behind(const struct deal *deal, const struct block *blocks, int64_t block_count, int64_t i)
{
    const struct block *block = &blocks[i + 1 < block_count ? i + 1 : i];
    return computed_of(&deal->parameters->shares[block->share],
                       i + 1 < block_count ? block->first : block->first + block->count);
}

/* Makes a bucket of the blocks and deals them out, each to the rank in whose part of the whole its middle lies. */
static void add_bucket(struct shards *shards, const struct deal *deal, int layer, const struct block *blocks,
                       int64_t block_count, int64_t *loads)
{
    const struct parameter_share *share = &deal->parameters->shares[blocks->share];
    bool later_end = share->gradient != share->weight;
    struct bucket *bucket = &shards->buckets[shards->bucket_count];
    *bucket = (struct bucket){.layer = layer,
                              .share = blocks->share,
                              .first_end = shards->bucket_count,
                              .weight = share->weight + blocks->first,
                              .gradient = share->gradient + blocks->first,
                              .pieces = shards->pieces + (int64_t)shards->bucket_count * 2 * shards->data,
                              .computed = computed_of(share, blocks->first),
                              .first_range = shards->range_count};
    bucket->computed_pieces = bucket->pieces + shards->data;
    shards->bucket_count++;
    if (shards->sharded)
        shards->moment_elements = (shards->moment_elements + PIECE_ALIGNMENT - 1) / PIECE_ALIGNMENT * PIECE_ALIGNMENT;
    int64_t all = 0, before = 0;
    for (int64_t i = 0; i < block_count; i++)
        all += blocks[i].largest;
    int64_t level = level_of(loads, shards->data, all);
    int d = 0;
    int64_t end = level > loads[0] ? level - loads[0] : 0; /* of rank d's part */
    for (int64_t i = 0; i < block_count; i++) {
        while (d < shards->data - 1 && before + blocks[i].largest / 2 >= end) {
            d++;
            end += level > loads[d] ? level - loads[d] : 0;
        }
        before += blocks[i].largest;
        loads[d] += blocks[i].largest;
        bucket->pieces[d] += blocks[i].count;
        bucket->count += blocks[i].count;
        bucket->computed_pieces[d] += computed_behind(deal, blocks, block_count, i) -
                                      computed_of(&deal->parameters->shares[blocks[i].share], blocks[i].first);
        if (!shards->sharded || d == shards->d)
            hold(shards, bucket, &deal->parameters->shares[blocks[i].share], &blocks[i], later_end);
    }
    for (d = 0; d < shards->d; d++) {
        bucket->own += bucket->pieces[d];
        bucket->computed_own += bucket->computed_pieces[d];
    }
}

/* The share of the same weights at a tie's first end on this rank. */
static int first_end_of(const struct parameters *parameters, int share)
{
    int first = 0;
    while (parameters->shares[first].logical != parameters->shares[share].logical)
        first++;
    return first;
}

/* Shares that lie one behind another in the arena of gradients, or one tied share. */
static void add_run(struct shards *shards, const struct deal *deal, int layer, int first_share, int last_share)
{
    const struct parameters *parameters = deal->parameters;
    bool tied = parameters->shares[first_share].parameter->tied;
    int first_bucket = shards->bucket_count;
    int64_t *loads = tied ? deal->tie_loads : deal->loads;
    for (int d = 0; d < shards->data && tied; d++)
        loads[d] = 0;
    int64_t block_count = list_blocks(deal, first_share, last_share), first = 0, elements = 0;
    for (int64_t i = 0; i < block_count; i++) {
        const struct block *block = &deal->blocks[i];
        if (elements + block->largest > BUCKET_ELEMENTS) {
            add_bucket(shards, deal, layer, &deal->blocks[first], i - first, loads);
            first = i;
            elements = 0;
        }
        if (i == 0 || block[-1].share != block->share)
            shards->share_first[block->share] = shards->bucket_count;
        elements += block->largest;
    }
    if (first < block_count)
        add_bucket(shards, deal, layer, &deal->blocks[first], block_count - first, loads);
    if (!tied)
        return;
    int first_end = first_end_of(parameters, first_share);
    if (first_end == first_share)
        for (int d = 0; d < shards->data; d++)
            deal->loads[d] += loads[d];
    else
        for (int b = first_bucket; b < shards->bucket_count; b++)
            shards->buckets[b].first_end = shards->share_first[first_end] + b - first_bucket;
}

static void add_layer(struct shards *shards, const struct deal *deal, int layer)
{
    const struct parameters *parameters = deal->parameters;
    int last = parameters->layer_first[layer + 1];
    for (int first = parameters->layer_first[layer], next; first < last; first = next) {
        next = first + 1;
        while (!parameters->shares[first].parameter->tied && next < last && !parameters->shares[next].parameter->tied)
            next++;
        add_run(shards, deal, layer, first, next);
    }
}

void shards_create(struct shards *shards, const struct parameters *parameters, int tensor, int data, int d,
                   bool sharded)
{
    *shards = (struct shards){.data = data, .d = d, .sharded = sharded && data > 1};
    shards->weights_sharded = shards->sharded && parameters->computed_bytes > 0;
    int64_t elements = 0, blocks = 0;
    for (int i = 0; i < parameters->count; i++) {
        int64_t largest = largest_share(&parameters->shares[i], tensor);
        elements += largest;
        blocks += (largest + SQUARES_BLOCK - 1) / SQUARES_BLOCK;
    }
    /* Each run may end with a bucket that is not full. */
    size_t buckets = (size_t)shards_most_buckets(elements) + (size_t)parameters->count;
    size_t ranges = buckets + (size_t)parameters->count;
    shards->buckets = allocate(buckets, sizeof *shards->buckets);
    shards->pieces = allocate(buckets * 2 * (size_t)data, sizeof *shards->pieces);
    shards->layer_first = allocate((size_t)parameters->local_layers + 1, sizeof *shards->layer_first);
    shards->share_first = allocate((size_t)parameters->count, sizeof *shards->share_first);
    shards->ranges = allocate(ranges, sizeof *shards->ranges);
    shards->shards = allocate(ranges, sizeof *shards->shards);
    struct deal deal = {.parameters = parameters, .tensor = tensor};
    deal.blocks = allocate((size_t)blocks, sizeof *deal.blocks);
    deal.loads = allocate((size_t)data, sizeof *deal.loads);
    deal.tie_loads = allocate((size_t)data, sizeof *deal.tie_loads);
    for (int layer = 0; layer < parameters->local_layers; layer++) {
        shards->layer_first[layer] = shards->bucket_count;
        add_layer(shards, &deal, layer);
    }
    shards->layer_first[parameters->local_layers] = shards->bucket_count;
    if (!shards->sharded)
        shards->moment_elements = parameters->weight_elements;
    shards->weight_elements = shards->weights_sharded ? shards->moment_elements : parameters->weight_elements;
    free(deal.blocks);
    free(deal.loads);
    free(deal.tie_loads);
}

void shards_destroy(struct shards *shards)
{
    free(shards->buckets);
    free(shards->pieces);
    free(shards->layer_first);
    free(shards->share_first);
    free(shards->ranges);
    free(shards->shards);
    *shards = (struct shards){0};
}

/* A cut is at most half a block away from where it would be without blocks, so no rank's part of a bucket is more than
 * a block from what lifts the rank to the level, which is at most the mean: no rank holds more than the mean and a
 * block, nor `uneven` more than another. Each tied parameter, dealt out by itself, may add as much to that once. */
int64_t shards_most(int64_t elements, int data, int64_t buckets, int ties)
{
    int64_t most = elements / data + (1 + ties) * (SQUARES_BLOCK + 2);
    return at_most(elements, most) + buckets * PIECE_ALIGNMENT;
}

int64_t shards_most_of_bucket(int64_t count, int data, int ties)
{
    int64_t uneven = (1 + ties) * (2 * SQUARES_BLOCK + data);
    return at_most(count, count / data + uneven + SQUARES_BLOCK + 1);
}

int64_t shards_most_buckets(int64_t elements)
{
    return elements / (BUCKET_ELEMENTS - SQUARES_BLOCK) + 1; /* a full bucket lacks less than a block */
}

int64_t shards_held(const struct shards *shards, const struct bucket *bucket, int64_t *begin)
{
    *begin = shards->sharded ? bucket->own : 0;
    return shards->sharded ? bucket->pieces[shards->d] : bucket->count;
}
