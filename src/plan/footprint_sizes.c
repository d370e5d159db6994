#include <stdlib.h>

#include "base/memory.h"
#include "plan/footprint.h"

/* Of the arenas of a rank (model/parameters.h). */
struct arenas {
    int64_t weights, gradients; /* elements */
    int64_t computed;           /* bytes, where computations do not read the weights themselves */
    int64_t apart;              /* layers that have these read as something else than float32 */
};

/* One end of a tied parameter. */
struct tied_end {
    int layer, logical;
};

/* One stage's sizes. */
struct known {
    bool asked;
    struct stage_bytes bytes;
};

/* Sizes of all stages that hold as many sets and split their backward alike. */
struct variant {
    int live;
    bool split;
    struct known **known; /* [layers] by the first layer, then by the last; NULL: none asked for yet */
};

struct footprint_sizes {
    const struct model *model;
    struct circumstances circumstances;
    const struct schedule *schedule;
    int moment_shares;
    struct stage_slots *slots; /* [stages] */
    int *variant_of;           /* [stages] */
    struct variant *variants;
    int variant_count;
    struct arenas *before; /* [layers + 1] of all layers before */
    struct tied_end *ends; /* in the order of layers */
    int end_count;
    int loss_layer; /* that has the losses, or -1 */
    size_t losses;  /* bytes of all losses of a step */
};

static struct arenas arenas_of(const struct footprint_sizes *sizes, const struct slice *slices, int count)
{
    struct parameters parameters;
    parameters_create(&parameters, sizes->model, slices, count, sizes->circumstances.tensor, sizes->circumstances.t);
    struct arenas arenas = {.weights = parameters.weight_elements,
                            .gradients = parameters.gradient_elements,
                            .computed = (int64_t)parameters.computed_bytes,
                            .apart = parameters.computed_bytes > 0};
    if (!arenas.apart)
        arenas.computed = arenas.weights * (int64_t)sizeof(float);
    parameters_destroy(&parameters);
    return arenas;
}

static void add_arenas(struct arenas *sum, const struct arenas *term, int sign)
{
    sum->weights += sign * term->weights;
    sum->gradients += sign * term->gradients;
    sum->computed += sign * term->computed;
    sum->apart += sign * term->apart;
}

/* Layers add up, but for the later ends of ties. */
static void measure_parameters(struct footprint_sizes *sizes)
{
    const struct model *model = sizes->model;
    struct parameters all;
    struct slice whole = {0, 0, model->layer_count};
    parameters_create(&all, model, &whole, 1, sizes->circumstances.tensor, sizes->circumstances.t);
    sizes->ends = allocate((size_t)all.count, sizeof *sizes->ends);
    for (int i = 0; i < all.count; i++)
        if (all.shares[i].parameter->tied)
            sizes->ends[sizes->end_count++] = (struct tied_end){all.shares[i].layer, all.shares[i].logical};
    parameters_destroy(&all);
    sizes->before = allocate((size_t)model->layer_count + 1, sizeof *sizes->before);
    for (int layer = 0; layer < model->layer_count; layer++) {
        struct arenas own = arenas_of(sizes, &(struct slice){0, layer, layer + 1}, 1);
        sizes->before[layer + 1] = sizes->before[layer];
        add_arenas(&sizes->before[layer + 1], &own, 1);
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
            (struct variant){live, split, allocate((size_t)sizes->model->layer_count, sizeof(struct known *))};
    return found;
}

struct footprint_sizes *footprint_sizes_create(const struct model *model, const struct circumstances *circumstances,
                                               const struct schedule *schedule, const struct validation *validation,
                                               int moment_shares)
{
    size_t stages = (size_t)schedule->stages;
    struct footprint_sizes *sizes = allocate(1, sizeof *sizes);
    *sizes = (struct footprint_sizes){.model = model,
                                      .circumstances = *circumstances,
                                      .schedule = schedule,
                                      .moment_shares = moment_shares,
                                      .slots = allocate(stages, sizeof *sizes->slots),
                                      .variant_of = allocate(stages, sizeof *sizes->variant_of),
                                      .variants = allocate(stages, sizeof *sizes->variants)};
    for (int stage = 0; stage < schedule->stages; stage++) {
        sizes->slots[stage] = footprint_slots(schedule, validation, stage);
        sizes->variant_of[stage] = find_variant(sizes, validation->peak_sets[stage], footprint_splits(schedule, stage));
    }
    sizes->loss_layer = model->layer_count - 1;
    while (sizes->loss_layer >= 0 && !model->declarations[sizes->loss_layer].loss)
        sizes->loss_layer--;
    sizes->losses =
        (size_t)schedule->microbatches * (size_t)(circumstances->sequences * model->sequence) * sizeof(float);
    measure_parameters(sizes);
    return sizes;
}

void footprint_sizes_destroy(struct footprint_sizes *sizes)
{
    if (!sizes)
        return;
    for (int i = 0; i < sizes->variant_count; i++) {
        for (int layer = 0; layer < sizes->model->layer_count; layer++)
            free(sizes->variants[i].known[layer]);
        free(sizes->variants[i].known);
    }
    free(sizes->slots);
    free(sizes->variant_of);
    free(sizes->variants);
    free(sizes->before);
    free(sizes->ends);
    free(sizes);
}

/* A stage's own sizes, as the trainer's stage has them. */
static const struct stage_bytes *bytes_of(struct footprint_sizes *sizes, const struct partition_slice *slice)
{
    struct variant *variant = &sizes->variants[sizes->variant_of[slice->stage]];
    struct known **row = &variant->known[slice->first];
    if (!*row)
        *row = allocate((size_t)(sizes->model->layer_count - slice->first), sizeof **row);
    struct known *known = &(*row)[slice->end - 1 - slice->first];
    if (!known->asked) {
        struct circumstances circumstances = sizes->circumstances;
        circumstances.live = variant->live;
        struct stage *stage = stage_create(sizes->model, (struct slice){slice->stage, slice->first, slice->end},
                                           &circumstances, variant->split, NULL, 0);
        *known = (struct known){true, *stage_bytes(stage)};
        stage_destroy(stage);
    }
    return &known->bytes;
}

static bool holds(const struct partition_slice *slices, int count, int layer)
{
    for (int i = 0; i < count; i++)
        if (layer >= slices[i].first && layer < slices[i].end)
            return true;
    return false;
}

/* Whether the rank holds two ends of a tie. */
static bool holds_tie(const struct footprint_sizes *sizes, const struct partition_slice *slices, int count)
{
    for (int later = 1; later < sizes->end_count; later++)
        for (int earlier = 0; earlier < later && holds(slices, count, sizes->ends[later].layer); earlier++)
            if (sizes->ends[earlier].logical == sizes->ends[later].logical &&
                holds(slices, count, sizes->ends[earlier].layer))
                return true;
    return false;
}

static struct arenas sum_arenas(const struct footprint_sizes *sizes, const struct partition_slice *slices, int count)
{
    struct arenas arenas = {0};
    if (holds_tie(sizes, slices, count)) {
        struct slice *own = allocate((size_t)count, sizeof *own);
        for (int i = 0; i < count; i++)
            own[i] = (struct slice){slices[i].stage, slices[i].first, slices[i].end};
        arenas = arenas_of(sizes, own, count);
        free(own);
        return arenas;
    }
    for (int i = 0; i < count; i++) {
        add_arenas(&arenas, &sizes->before[slices[i].end], 1);
        add_arenas(&arenas, &sizes->before[slices[i].first], -1);
    }
    return arenas;
}

struct footprint footprint_of_rank(struct footprint_sizes *sizes, const struct partition_slice *slices, int count)
{
    const struct arenas arenas = sum_arenas(sizes, slices, count);
    struct footprint memory = {.weights = (size_t)arenas.weights * sizeof(float),
                               .computed = arenas.apart ? (size_t)arenas.computed : 0};
    if (!sizes->schedule->forward_only) {
        size_t shares = (size_t)sizes->moment_shares;
        memory.gradients = (size_t)arenas.gradients * sizeof(float);
        memory.moments = (2 * memory.weights + shares - 1) / shares;
        if (memory.computed > 0)
            memory.weights = (memory.weights + shares - 1) / shares;
    }
    for (int i = 0; i < count; i++) {
        const struct stage_bytes *bytes = bytes_of(sizes, &slices[i]);
        footprint_add_stage(&memory, &sizes->slots[slices[i].stage], bytes);
        if (bytes->workspace > memory.workspace)
            memory.workspace = bytes->workspace;
    }
    if (holds(slices, count, sizes->loss_layer))
        memory.buffers += (sizes->losses + 63) / 64 * 64;
    return memory;
}

struct footprint footprint_of_cut(struct footprint_sizes *sizes, const int *first_layer, int rank)
{
    const struct schedule *schedule = sizes->schedule;
    struct partition_slice *slices = allocate((size_t)schedule->chunks, sizeof *slices);
    for (int chunk = 0; chunk < schedule->chunks; chunk++) {
        int stage = schedule_stage_of(schedule, rank, chunk);
        slices[chunk] = (struct partition_slice){stage, first_layer[stage], first_layer[stage + 1]};
    }
    struct footprint memory = footprint_of_rank(sizes, slices, schedule->chunks);
    free(slices);
    return memory;
}
