#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "plan/footprint.h"

/* Of the arenas of a rank (model/parameters.h) and of what is dealt to data ranks (model/shards.h). */
struct arenas {
    int64_t weights, gradients; /* elements */
    int64_t computed;           /* bytes, where computations do not read the weights themselves */
    int64_t apart;              /* layers that have these read as something else than float32 */
    int64_t replicated;         /* elements whose gradients sequence parallelism leaves partial */
    int64_t buckets, ties;
};

/* One end of a tied parameter. */
struct tied_end {
    int layer, index; /* in the layer's declaration */
    int logical;
    int64_t count;
};

/* One stage's sizes. */
struct known {
    bool asked;
    struct stage_bytes bytes;
    size_t tensor_scratch;
};

/* Sizes of all stages that hold as many sets and split their backward alike. */
struct variant {
    int live;
    bool split;
    struct known **known; /* [layers] by the first layer, then by the last; NULL: none asked for yet */
};

/* One of the two schedules. */
struct program_sizes {
    const struct schedule *schedule; /* NULL: not run */
    struct stage_slots *slots;       /* [stages] */
    int *variant_of;                 /* [stages] */
    size_t losses;                   /* bytes of all losses */
    size_t field;                    /* bytes of a field of the batch, 0 where the device reads the host's memory */
};

struct footprint_sizes {
    struct layout layout;
    const struct schedule *schedule; /* either of them, for where stages are */
    struct program_sizes train, evaluate;
    struct variant *variants;
    int variant_count;
    struct arenas *before; /* [layers + 1] of all layers before */
    int64_t *bucket;       /* [layers] elements of the layer's largest bucket, at most */
    struct tied_end *ends; /* in the order of layers */
    int end_count;
    int loss_layer;                   /* that has the losses, or -1 */
    struct communicator data, tensor; /* on paper */
};

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static bool is_partial(const struct footprint_sizes *sizes, const struct parameter *parameter)
{
    const struct circumstances *circumstances = &sizes->layout.circumstances;
    return circumstances->sequence_parallel && circumstances->tensor > 1 && parameter->split < 0;
}

/* The buckets of shares that lie one behind another; returns the largest one's elements, at most. */
static int64_t count_buckets(const struct parameter_share *shares, int count, int64_t *buckets)
{
    int64_t largest = 0;
    for (int first = 0, next; first < count; first = next) {
        int64_t elements = shares[first].count;
        for (next = first + 1; !shares[first].parameter->tied && next < count && !shares[next].parameter->tied; next++)
            elements += shares[next].count;
        *buckets += shards_most_buckets(elements);
        largest = larger(largest, elements);
    }
    return largest < BUCKET_ELEMENTS ? largest : BUCKET_ELEMENTS;
}

static struct arenas arenas_of(const struct footprint_sizes *sizes, const struct parameters *parameters)
{
    struct arenas arenas = {.weights = parameters->weight_elements,
                            .gradients = parameters->gradient_elements,
                            .computed = (int64_t)parameters->computed_bytes,
                            .apart = parameters->computed_bytes > 0};
    if (!arenas.apart)
        arenas.computed = arenas.weights * (int64_t)sizeof(float);
    for (int i = 0; i < parameters->count; i++) {
        const struct parameter_share *share = &parameters->shares[i];
        arenas.replicated += is_partial(sizes, share->parameter) ? share->count : 0;
        arenas.ties += share->parameter->tied && share->gradient == share->weight;
    }
    for (int layer = 0; layer < parameters->local_layers; layer++) {
        int first = parameters->layer_first[layer];
        count_buckets(&parameters->shares[first], parameters->layer_first[layer + 1] - first, &arenas.buckets);
    }
    return arenas;
}

static void add_arenas(struct arenas *sum, const struct arenas *term, int sign)
{
    sum->weights += sign * term->weights;
    sum->gradients += sign * term->gradients;
    sum->computed += sign * term->computed;
    sum->apart += sign * term->apart;
    sum->replicated += sign * term->replicated;
    sum->buckets += sign * term->buckets;
    sum->ties += sign * term->ties;
}

/* Layers add up, but for the later ends of ties. */
static void measure_layers(struct footprint_sizes *sizes)
{
    const struct model *model = sizes->layout.model;
    const struct circumstances *circumstances = &sizes->layout.circumstances;
    size_t layers = (size_t)model->layer_count;
    sizes->before = allocate(layers + 1, sizeof *sizes->before);
    sizes->bucket = allocate(layers, sizeof *sizes->bucket);
    sizes->ends = allocate(layers * LAYER_MAX_PARAMETERS, sizeof *sizes->ends);
    for (int layer = 0; layer < model->layer_count; layer++) {
        struct parameters own;
        struct slice slice = {0, layer, layer + 1};
        int64_t buckets = 0;
        parameters_create(&own, model, &slice, 1, circumstances->tensor, circumstances->t);
        struct arenas arenas = arenas_of(sizes, &own);
        sizes->before[layer + 1] = sizes->before[layer];
        add_arenas(&sizes->before[layer + 1], &arenas, 1);
        sizes->bucket[layer] = count_buckets(own.shares, own.count, &buckets);
        for (int i = 0; i < own.count; i++)
            if (own.shares[i].parameter->tied)
                sizes->ends[sizes->end_count++] =
                    (struct tied_end){layer, i, own.shares[i].logical, own.shares[i].count};
        parameters_destroy(&own);
    }
}

static int find_variant(struct footprint_sizes *sizes, int live, bool split)
{
    int found = 0;
    while (found < sizes->variant_count &&
           (sizes->variants[found].live != live || sizes->variants[found].split != split))
        found++;
    if (found == sizes->variant_count)
        sizes->variants[sizes->variant_count++] =
            (struct variant){live, split, allocate((size_t)sizes->layout.model->layer_count, sizeof(struct known *))};
    return found;
}

static void measure_program(struct footprint_sizes *sizes, struct program_sizes *program, struct proven proven)
{
    const struct schedule *schedule = proven.schedule;
    program->schedule = schedule;
    if (!schedule)
        return;
    size_t stages = (size_t)schedule->stages;
    int64_t rows = sizes->layout.circumstances.sequences * sizes->layout.model->sequence;
    program->slots = allocate(stages, sizeof *program->slots);
    program->variant_of = allocate(stages, sizeof *program->variant_of);
    program->losses = aligned((size_t)schedule->microbatches * (size_t)rows * sizeof(float));
    program->field = sizes->layout.circumstances.device->host_memory ? 0 : footprint_field(schedule, rows);
    for (int stage = 0; stage < schedule->stages; stage++) {
        program->slots[stage] = footprint_slots(schedule, proven.validation, stage);
        program->variant_of[stage] =
            find_variant(sizes, proven.validation->peak_sets[stage], footprint_splits(schedule, stage));
    }
}

struct footprint_sizes *footprint_sizes_create(const struct layout *layout)
{
    const struct model *model = layout->model;
    struct footprint_sizes *sizes = allocate(1, sizeof *sizes);
    *sizes = (struct footprint_sizes){.layout = *layout, .loss_layer = model->layer_count - 1};
    sizes->schedule = layout->train.schedule ? layout->train.schedule : layout->evaluate.schedule;
    sizes->variants = allocate(2 * (size_t)sizes->schedule->stages, sizeof *sizes->variants);
    measure_program(sizes, &sizes->train, layout->train);
    measure_program(sizes, &sizes->evaluate, layout->evaluate);
    while (sizes->loss_layer >= 0 && !model->declarations[sizes->loss_layer].loss)
        sizes->loss_layer--;
    communicator_outline_init(&sizes->data, layout->circumstances.device, 0, layout->data);
    communicator_outline_init(&sizes->tensor, layout->circumstances.device, layout->circumstances.t,
                              layout->circumstances.tensor);
    measure_layers(sizes);
    return sizes;
}

void footprint_sizes_destroy(struct footprint_sizes *sizes)
{
    if (!sizes)
        return;
    for (int i = 0; i < sizes->variant_count; i++) {
        for (int layer = 0; layer < sizes->layout.model->layer_count; layer++)
            free(sizes->variants[i].known[layer]);
        free(sizes->variants[i].known);
    }
    free(sizes->variants);
    free(sizes->train.slots);
    free(sizes->train.variant_of);
    free(sizes->evaluate.slots);
    free(sizes->evaluate.variant_of);
    free(sizes->before);
    free(sizes->bucket);
    free(sizes->ends);
    communicator_outline_fini(&sizes->data);
    communicator_outline_fini(&sizes->tensor);
    free(sizes);
}

/* A stage's own sizes, as the trainer's stage has them. */
static const struct known *stage_of(struct footprint_sizes *sizes, const struct program_sizes *program,
                                    const struct partition_slice *slice)
{
    struct variant *variant = &sizes->variants[program->variant_of[slice->stage]];
    struct known **row = &variant->known[slice->first];
    if (!*row)
        *row = allocate((size_t)(sizes->layout.model->layer_count - slice->first), sizeof **row);
    struct known *known = &(*row)[slice->end - 1 - slice->first];
    if (!known->asked) {
        struct circumstances circumstances = sizes->layout.circumstances;
        circumstances.live = variant->live;
        struct stage *stage = stage_create(sizes->layout.model, (struct slice){slice->stage, slice->first, slice->end},
                                           &circumstances, variant->split, NULL, 0);
        *known = (struct known){true, *stage_bytes(stage), stage_tensor_scratch(stage, &sizes->tensor)};
        stage_destroy(stage);
    }
    return known;
}

static bool holds(const struct partition_slice *slices, int count, int layer)
{
    for (int i = 0; i < count; i++)
        if (layer >= slices[i].first && layer < slices[i].end)
            return true;
    return false;
}

/* Whether an earlier layer of the rank holds an end of the same tie. */
static bool is_later_end(const struct footprint_sizes *sizes, const struct partition_slice *slices, int count, int end)
{
    for (int earlier = 0; earlier < end; earlier++)
        if (sizes->ends[earlier].logical == sizes->ends[end].logical &&
            holds(slices, count, sizes->ends[earlier].layer))
            return true;
    return false;
}

static struct arenas sum_arenas(const struct footprint_sizes *sizes, const struct partition_slice *slices, int count)
{
    struct arenas arenas = {0};
    bool tie = false;
    for (int end = 0; end < sizes->end_count; end++)
        tie = tie || (holds(slices, count, sizes->ends[end].layer) && is_later_end(sizes, slices, count, end));
    for (int i = 0; i < count && !tie; i++) {
        add_arenas(&arenas, &sizes->before[slices[i].end], 1);
        add_arenas(&arenas, &sizes->before[slices[i].first], -1);
    }
    if (tie) {
        struct parameters parameters;
        struct slice *own = allocate((size_t)count, sizeof *own);
        for (int i = 0; i < count; i++)
            own[i] = (struct slice){slices[i].stage, slices[i].first, slices[i].end};
        parameters_create(&parameters, sizes->layout.model, own, count, sizes->layout.circumstances.tensor,
                          sizes->layout.circumstances.t);
        arenas = arenas_of(sizes, &parameters);
        parameters_destroy(&parameters);
        free(own);
    }
    return arenas;
}

/* How many fields of the batch the layers read. */
static size_t count_fields(const struct footprint_sizes *sizes, const struct partition_slice *slices, int count)
{
    const char *names[LAYER_MAX_FIELDS];
    size_t known = 0;
    for (int i = 0; i < count; i++)
        for (int layer = slices[i].first; layer < slices[i].end; layer++) {
            const struct declaration *declaration = &sizes->layout.model->declarations[layer];
            for (int field = 0; field < declaration->field_count; field++) {
                size_t at = 0;
                while (at < known && strcmp(names[at], declaration->fields[field]) != 0)
                    at++;
                if (at == known && known < LAYER_MAX_FIELDS)
                    names[known++] = declaration->fields[field];
            }
        }
    return known;
}

/* Adds the buffers of one program, in their two parts; returns what they come to. */
static size_t add_program(struct footprint_sizes *sizes, const struct program_sizes *program,
                          const struct partition_slice *slices, int count, struct footprint *memory)
{
    struct footprint own = {0};
    if (!program->schedule)
        return 0;
    for (int i = 0; i < count; i++) {
        const struct known *stage = stage_of(sizes, program, &slices[i]);
        footprint_add_stage(&own, &program->slots[slices[i].stage], &stage->bytes);
        if (stage->bytes.workspace > memory->workspace)
            memory->workspace = stage->bytes.workspace;
        if (stage->tensor_scratch > memory->tensor_scratch)
            memory->tensor_scratch = stage->tensor_scratch;
    }
    if (holds(slices, count, sizes->loss_layer))
        own.buffers += program->losses;
    if (program->field > 0)
        own.buffers += count_fields(sizes, slices, count) * program->field;
    memory->activations += own.activations;
    memory->buffers += own.buffers;
    return own.activations + own.buffers;
}

/* Training and evaluation take turns in the same memory, whose parts are training's as far as it goes. */
static void add_programs(struct footprint_sizes *sizes, const struct partition_slice *slices, int count,
                         struct footprint *memory)
{
    struct footprint other = {0};
    bool training = sizes->train.schedule != NULL;
    memory->arena = add_program(sizes, training ? &sizes->train : &sizes->evaluate, slices, count, memory);
    size_t evaluate = training ? add_program(sizes, &sizes->evaluate, slices, count, &other) : 0;
    if (evaluate > memory->arena) {
        memory->activations += evaluate - memory->arena;
        memory->arena = evaluate;
    }
    if (other.workspace > memory->workspace)
        memory->workspace = other.workspace;
    if (other.tensor_scratch > memory->tensor_scratch)
        memory->tensor_scratch = other.tensor_scratch;
}

/* Of one transfer of a bucket of which a rank holds so many elements. */
static size_t bucket_scratch(const struct footprint_sizes *sizes, int64_t held)
{
    const struct communicator *data = &sizes->data;
    if (sizes->layout.sharded)
        return aligned(data->ops->scatter_scratch(data, ELEMENT_FLOAT32, held));
    return aligned(data->ops->sum_scratch(data, ELEMENT_FLOAT32, held, communicator_one_each(data)));
}

/* Of the sum over tensor ranks of gradients that are partial. */
static size_t partial_scratch(const struct footprint_sizes *sizes, int64_t elements)
{
    const struct communicator *tensor = &sizes->tensor;
    return aligned((size_t)elements * sizeof(float)) +
           aligned(tensor->ops->sum_scratch(tensor, ELEMENT_FLOAT32, elements, communicator_one_each(tensor)));
}

static int rank_of_layer(const struct footprint_sizes *sizes, const int *first_layer, int layer)
{
    int stage = 0;
    while (first_layer[stage + 1] <= layer)
        stage++;
    return schedule_rank_of(sizes->schedule, stage);
}

/* A rank that is being counted. */
struct holder {
    const struct partition_slice *slices;
    int count;
    const int *first_layer; /* the cut, or NULL */
    int rank;               /* of the pipeline, under the cut */
    const struct parameters *parameters;
    const struct shards *shards; /* its own, or NULL */
};

/* The elements of a tied end's largest bucket that the rank holds. */
static int64_t tied_bucket(const struct footprint_sizes *sizes, const struct holder *holder, const struct tied_end *end)
{
    const struct shards *shards = holder->shards;
    int64_t most = end->count < BUCKET_ELEMENTS ? end->count : BUCKET_ELEMENTS, begin;
    if (!shards)
        return sizes->layout.sharded ? shards_most_of_bucket(most, sizes->layout.data, 0) : most;
    int share = 0;
    while (holder->parameters->shares[share].layer != end->layer)
        share++;
    share += end->index;
    most = 0;
    for (int b = shards->share_first[share]; b < shards->bucket_count && shards->buckets[b].share == share; b++)
        most = larger(most, shards_held(shards, &shards->buckets[b], &begin));
    return most;
}

/* Numbers the ranks that hold the `ends` ends on rank_of[] from 0; returns how many there are, *own is the number of
 * this rank. Without a cut this rank has number 0 and the others number 1 in common. */
static int number_members(const struct footprint_sizes *sizes, const struct holder *holder, int logical, int *rank_of,
                          int *ends, int *own)
{
    int ranks = holder->first_layer ? sizes->schedule->ranks : 2, members = 0;
    int *number = allocate((size_t)ranks, sizeof *number);
    *ends = 0;
    for (int i = 0; i < sizes->end_count; i++) {
        int layer = sizes->ends[i].layer;
        if (sizes->ends[i].logical != logical)
            continue;
        rank_of[*ends] = holder->first_layer ? rank_of_layer(sizes, holder->first_layer, layer)
                                             : !holds(holder->slices, holder->count, layer);
        number[rank_of[(*ends)++]] = 1;
    }
    for (int p = 0; p < ranks; p++)
        number[p] = number[p] ? members++ : -1;
    for (int i = 0; i < *ends; i++)
        rank_of[i] = number[rank_of[i]];
    *own = number[holder->first_layer ? holder->rank : 0];
    free(number);
    return members;
}

/* Of the sums over the ends of all tied parameters of which the rank has one. */
static size_t tie_scratch(const struct footprint_sizes *sizes, const struct holder *holder)
{
    size_t bytes = 0;
    int *rank_of = allocate((size_t)sizes->end_count, sizeof *rank_of);
    for (int i = 0; i < sizes->end_count; i++) {
        const struct tied_end *end = &sizes->ends[i];
        if (!holds(holder->slices, holder->count, end->layer) || is_later_end(sizes, holder->slices, holder->count, i))
            continue;
        int ends, own, members = number_members(sizes, holder, end->logical, rank_of, &ends, &own);
        struct communicator group;
        communicator_outline_init(&group, sizes->layout.circumstances.device, own, members);
        bytes +=
            TIES_UNDER_WAY * aligned(group.ops->sum_scratch(&group, ELEMENT_FLOAT32, tied_bucket(sizes, holder, end),
                                                            &(struct contributions){ends, rank_of}));
        communicator_outline_fini(&group);
    }
    free(rank_of);
    return bytes;
}

/* What is split over the data ranks, and the scratch of sums of gradients: whichever data rank it is. */
static void add_shards_most(const struct footprint_sizes *sizes, const struct holder *holder,
                            const struct arenas *arenas, struct footprint *memory)
{
    const struct layout *layout = &sizes->layout;
    const int ties = (int)arenas->ties;
    int64_t bucket = 0;
    for (int i = 0; i < holder->count; i++)
        for (int layer = holder->slices[i].first; layer < holder->slices[i].end; layer++)
            bucket = larger(bucket, sizes->bucket[layer]);
    memory->moments = 2 * memory->weights;
    if (layout->sharded && layout->data > 1) {
        memory->moments = 2 * (size_t)shards_most(arenas->weights, layout->data, arenas->buckets, ties) * sizeof(float);
        memory->weights = memory->computed > 0 ? memory->moments / 2 : memory->weights;
        bucket = shards_most_of_bucket(bucket, layout->data, ties);
    }
    memory->queue_scratch = BUCKETS_UNDER_WAY * bucket_scratch(sizes, bucket);
    memory->sum_scratch = partial_scratch(sizes, arenas->replicated);
}

/* The same of the rank's own shards. */
static void add_shards(const struct footprint_sizes *sizes, const struct holder *holder, struct footprint *memory)
{
    const struct shards *shards = holder->shards;
    int64_t bucket = 0, partial = 0, begin;
    for (int b = 0; b < shards->bucket_count; b++)
        bucket = larger(bucket, shards_held(shards, &shards->buckets[b], &begin));
    for (int i = 0; i < shards->range_count; i++)
        if (is_partial(sizes, holder->parameters->shares[shards->shards[i].share].parameter))
            partial += shards->ranges[i].count;
    memory->weights = (size_t)shards->weight_elements * sizeof(float);
    memory->moments = 2 * (size_t)shards->moment_elements * sizeof(float);
    memory->queue_scratch = BUCKETS_UNDER_WAY * bucket_scratch(sizes, bucket);
    memory->sum_scratch = partial_scratch(sizes, partial);
}

static struct footprint count(struct footprint_sizes *sizes, const struct holder *holder)
{
    const struct arenas arenas = sum_arenas(sizes, holder->slices, holder->count);
    struct footprint memory = {.weights = (size_t)arenas.weights * sizeof(float),
                               .computed = arenas.apart ? (size_t)arenas.computed : 0};
    add_programs(sizes, holder->slices, holder->count, &memory);
    if (sizes->train.schedule) {
        memory.gradients = (size_t)arenas.gradients * sizeof(float);
        if (holder->shards)
            add_shards(sizes, holder, &memory);
        else
            add_shards_most(sizes, holder, &arenas, &memory);
        memory.sum_scratch += tie_scratch(sizes, holder);
    }
    memory.buffers += memory.queue_scratch + memory.sum_scratch + memory.tensor_scratch;
    return memory;
}

struct footprint footprint_of_slices(struct footprint_sizes *sizes, const struct partition_slice *slices,
                                     int slice_count)
{
    return count(sizes, &(struct holder){.slices = slices, .count = slice_count});
}

struct footprint footprint_of_rank(struct footprint_sizes *sizes, const int *first_layer, int rank,
                                   const struct parameters *parameters, const struct shards *shards)
{
    int chunks = sizes->schedule->chunks;
    struct partition_slice *slices = allocate((size_t)chunks, sizeof *slices);
    for (int chunk = 0; chunk < chunks; chunk++) {
        int stage = schedule_stage_of(sizes->schedule, rank, chunk);
        slices[chunk] = (struct partition_slice){stage, first_layer[stage], first_layer[stage + 1]};
    }
    struct footprint memory = count(sizes, &(struct holder){slices, chunks, first_layer, rank, parameters, shards});
    free(slices);
    return memory;
}
