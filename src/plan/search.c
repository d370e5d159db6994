#include "plan/search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "pipeline/generate.h"

#define MOST_MICROBATCHES (1 << 20)
#define MOST_MICROBATCH_SIZE 64
#define MOST_STAGE_MICROBATCHES (INT64_C(1) << 26) /* pairs in a table, as in generate.c */

/* A closed form of the memory is taken for an excess only beyond this: the forecast decides in between. */
#define MEMORY_DOUBT 1.1

const char *const search_reason_names[SEARCH_REASONS_COUNT] = {
#define X(name, text) text,
    SEARCH_REASONS(X)
#undef X
};

/* A cut of the layers by their times. */
struct cut {
    int stages;
    int *first_layer;
    struct cut *next;
};

/* What all configurations with one microbatch size, number of tensor ranks and recompute mode have in common. Sums
 * over the layers before each: [layers + 1]. */
struct shape {
    int tensor, microbatch_size;
    enum recompute_choice recompute;
    double *time, *forward, *input, *weight;
    double *kept;                        /* bytes of an activation set, boundaries included */
    double *elements;                    /* of parameters on one tensor rank */
    double pending, workspace, boundary; /* bytes, the largest */
    struct cut *cuts;
    struct shape *next;
};

struct walk {
    struct search *search;
    const struct planning *planning;
    double limit;
    struct shape *shapes;
};

static double elements_of(const struct declaration *declaration, int tensor)
{
    double sum = 0;
    for (int i = 0; i < declaration->parameter_count; i++) {
        const struct parameter *parameter = &declaration->parameters[i];
        double all = 1;
        for (int axis = 0; axis < parameter->axes; axis++)
            all *= axis == parameter->split ? (double)share_of(parameter->shape[axis], tensor, 0).count
                                            : (double)parameter->shape[axis];
        sum += all;
    }
    return sum;
}

static void fill_shape(struct shape *shape, const struct planning *planning)
{
    const struct model *model = &planning->model;
    const struct candidate candidate = {
        .tensor = shape->tensor, .microbatch_size = shape->microbatch_size, .recompute = shape->recompute};
    struct circumstances circumstances = planning_circumstances(planning, &candidate);
    for (int i = 0; i < model->layer_count; i++) {
        const struct layer *layer = &model->layers[i];
        const struct declaration *declaration = &model->declarations[i];
        struct cost_seconds cost = cost_layer(&planning->machine, model, i, planning->kinds[i], &circumstances);
        struct layer_bytes bytes = layer->kind->bytes(layer, &circumstances);
        double behind = 0;
        for (int b = 0; b < declaration->after_count; b++)
            behind += (double)boundary_bytes(&declaration->after[b], &circumstances, circumstances.sequences);
        shape->forward[i + 1] = shape->forward[i] + cost.forward;
        shape->input[i + 1] = shape->input[i] + cost.input;
        shape->weight[i + 1] = shape->weight[i] + cost.weight;
        shape->time[i + 1] = shape->time[i] + cost.forward + cost.input + cost.weight;
        shape->kept[i + 1] = shape->kept[i] + (double)bytes.kept + behind;
        shape->elements[i + 1] = shape->elements[i] + elements_of(declaration, shape->tensor);
        shape->pending = fmax(shape->pending, (double)bytes.pending);
        shape->workspace = fmax(shape->workspace, (double)bytes.workspace);
        shape->boundary = fmax(shape->boundary, behind);
    }
}

static struct shape *shape_of(struct walk *walk, int tensor, int microbatch_size, enum recompute_choice recompute)
{
    for (struct shape *shape = walk->shapes; shape; shape = shape->next)
        if (shape->tensor == tensor && shape->microbatch_size == microbatch_size && shape->recompute == recompute)
            return shape;
    struct shape *shape = allocate(1, sizeof *shape);
    size_t count = (size_t)walk->planning->model.layer_count + 1;
    double *sums = allocate(6 * count, sizeof *sums);
    *shape = (struct shape){.tensor = tensor,
                            .microbatch_size = microbatch_size,
                            .recompute = recompute,
                            .time = sums,
                            .forward = sums + count,
                            .input = sums + 2 * count,
                            .weight = sums + 3 * count,
                            .kept = sums + 4 * count,
                            .elements = sums + 5 * count,
                            .next = walk->shapes};
    fill_shape(shape, walk->planning);
    walk->shapes = shape;
    return shape;
}

/* Fills stages up to `load` from the front, at least one layer each and leaving one for each that follows; false when
 * layers are left over. */
static bool fill_stages(const struct shape *shape, int layers, struct cut *cut, double load)
{
    int layer = 0;
    for (int stage = 0; stage < cut->stages; stage++) {
        int behind = cut->stages - 1 - stage, end = layer + 1;
        while (end < layers - behind && shape->time[end + 1] - shape->time[layer] <= load)
            end++;
        if (shape->time[end] - shape->time[layer] > load)
            return false;
        layer = cut->first_layer[stage + 1] = end;
    }
    return layer == layers;
}

/* The smallest load of the most loaded stage, by bisection; the forecast cuts exactly. */
static const struct cut *cut_of(struct shape *shape, int layers, int stages)
{
    for (const struct cut *cut = shape->cuts; cut; cut = cut->next)
        if (cut->stages == stages)
            return cut;
    struct cut *cut = allocate(1, sizeof *cut);
    *cut = (struct cut){stages, allocate((size_t)stages + 1, sizeof(int)), shape->cuts};
    double low = 0, high = shape->time[layers];
    for (int round = 0; round < 30; round++) {
        double middle = (low + high) / 2;
        if (fill_stages(shape, layers, cut, middle))
            high = middle;
        else
            low = middle;
    }
    fill_stages(shape, layers, cut, high * (1 + 1e-9));
    shape->cuts = cut;
    return cut;
}

static int stage_at(const struct candidate *c, int rank, int chunk)
{
    bool v = c->schedule == SCHEDULE_ZB_V || c->schedule == SCHEDULE_V_HALF || c->schedule == SCHEDULE_V_MIN;
    return chunk * c->pipeline + (v && chunk % 2 == 1 ? c->pipeline - 1 - rank : rank);
}

/* Activation sets alive on a rank, counted in chunks. */
static double live_sets(const struct candidate *c, int rank)
{
    double p = c->pipeline, m = c->microbatches, v = c->chunks;
    switch (c->schedule) {
    case SCHEDULE_GPIPE:
    case SCHEDULE_LOOPED_BFS:
        return m * v;
    case SCHEDULE_1F1B:
        return fmin(m, p - rank);
    case SCHEDULE_EAGER_1F1B:
        return fmin(m, 2 * (p - rank) - 1);
    case SCHEDULE_INTERLEAVED:
        return fmin(m * v, 2 * (p - 1 - rank) + (v - 1) * p + 1);
    case SCHEDULE_ZB_H1:
        return fmin(m, p);
    case SCHEDULE_ZB_V:
        return fmin(2 * m, 2 * p);
    case SCHEDULE_V_HALF:
        return fmin(2 * m, p + 2);
    case SCHEDULE_V_MIN:
        return fmin(2 * m, ceil(2 * p / 3) + 2);
    case SCHEDULE_CSV:
        break;
    }
    return 0;
}

/* Pending sets of a rank's chunk where input and weight gradients run apart; 0: they do not, and the layers share one.
 */
static int pending_sets(const struct candidate *c, int rank, int chunk)
{
    switch (c->schedule) {
    case SCHEDULE_ZB_H1:
        return rank + 1 < c->microbatches ? rank + 1 : c->microbatches;
    case SCHEDULE_ZB_V:
        return chunk == 0 ? rank + 1 : rank > 1 ? rank : 1;
    case SCHEDULE_V_HALF:
    case SCHEDULE_V_MIN:
        return 1;
    case SCHEDULE_GPIPE:
    case SCHEDULE_1F1B:
    case SCHEDULE_EAGER_1F1B:
    case SCHEDULE_INTERLEAVED:
    case SCHEDULE_LOOPED_BFS:
    case SCHEDULE_CSV:
        break;
    }
    return 0;
}

/* Bytes of weights, gradients and moments for each parameter; `element` bytes of it are what computations read. */
static double state_bytes(double element, const struct candidate *c)
{
    double shares = c->sharded ? c->data : 1, whole = sizeof(float);
    return element + whole + (2 * whole + (element < whole ? whole : 0)) / shares;
}

/* Bytes on the rank that holds most. */
static double guess_memory(const struct shape *shape, const struct candidate *c, const struct cut *cut, double element)
{
    double most = 0;
    for (int rank = 0; rank < c->pipeline; rank++) {
        double elements = 0, set = 0, pending = 0;
        for (int chunk = 0; chunk < c->chunks; chunk++) {
            int stage = stage_at(c, rank, chunk);
            int first = cut->first_layer[stage], last = cut->first_layer[stage + 1];
            elements += shape->elements[last] - shape->elements[first];
            set += shape->kept[last] - shape->kept[first];
            int sets = pending_sets(c, rank, chunk);
            pending += sets > 0 ? sets * (last - first) * shape->pending : shape->pending;
        }
        double bytes = elements * state_bytes(element, c) + live_sets(c, rank) * set / c->chunks + pending +
                       shape->workspace + 4 * c->chunks * shape->boundary;
        most = fmax(most, bytes);
    }
    return most;
}

/* Idle time of a rank, and messages that no computation hides, for the average stage's times f, i and w and a message's
 * m: the closed forms hold for even stages and M >= P. */
static double guess_idle(const struct candidate *c, double f, double i, double w, double m)
{
    double p = c->pipeline, v = c->chunks, microbatches = c->microbatches, turns = p - 1;
    /* V-Half and V-Min are laid out for three equal parts: what the longest one takes more, the others wait. */
    double uneven = microbatches * v * (3 * fmax(f, fmax(i, w)) - (f + i + w));
    switch (c->schedule) {
    case SCHEDULE_GPIPE:
    case SCHEDULE_LOOPED_BFS:
        return turns * (f + i + w) + 2 * turns * m;
    case SCHEDULE_1F1B:
        return turns * (f + i + w) + 2 * microbatches * m;
    case SCHEDULE_EAGER_1F1B:
        return turns * (f + i + w) + 2 * turns * m;
    case SCHEDULE_INTERLEAVED:
        return turns * (f + i + w) + 2 * (p * v - 1) * m;
    case SCHEDULE_ZB_H1:
        return turns * fmax(0, f + i - w) + fmax(0, 2 * microbatches - p) * m;
    case SCHEDULE_ZB_V:
        return turns * fmax(0, f + i - w) + 3 * p * m;
    case SCHEDULE_V_HALF:
        return turns * 4 / 3 * (f + i + w) + 2 * microbatches * m + uneven / 4;
    case SCHEDULE_V_MIN:
        return turns * 4 / 3 * (f + i + w) + 5 * microbatches * m + uneven;
    case SCHEDULE_CSV:
        break;
    }
    return 0;
}

static double guess_seconds(const struct planning *planning, const struct shape *shape, const struct candidate *c,
                            const struct cut *cut)
{
    const struct cost_machine *machine = &planning->machine;
    int layers = planning->model.layer_count, stages = cut->stages;
    bool far = planning_pipeline_far(planning, c), data_far = planning_data_far(planning, c);
    double slowest = 0, elements = 0;
    for (int rank = 0; rank < c->pipeline; rank++) {
        double time = 0, own = 0;
        for (int chunk = 0; chunk < c->chunks; chunk++) {
            int stage = stage_at(c, rank, chunk), first = cut->first_layer[stage], last = cut->first_layer[stage + 1];
            time += shape->time[last] - shape->time[first];
            own += shape->elements[last] - shape->elements[first];
        }
        slowest = fmax(slowest, time);
        elements = fmax(elements, own);
    }
    double message = c->pipeline > 1 ? cost_message(machine, shape->boundary, far) : 0;
    double stall = c->pipeline > 1 ? 4 * c->chunks * cost_stall(machine, shape->boundary, far) : 0;
    double idle = guess_idle(c, shape->forward[layers] / stages, shape->input[layers] / stages,
                             shape->weight[layers] / stages, message);
    double overlap = machine->figures->message_overlap > 0 ? machine->figures->message_overlap : 1;
    double sum = cost_reduction(machine, elements, c->data, data_far), gather = 0;
    if (c->sharded) { /* half of it, and the weights as computations read them for the other half */
        sum /= 2;
        gather = sum * machine->element_bytes / sizeof(float);
    }
    double window = shape->input[layers] / c->pipeline + shape->weight[layers] / c->pipeline;
    return c->microbatches * (slowest + stall) + idle + sum - fmin(sum, overlap * window) + gather +
           cost_optimizer(machine, elements / (c->sharded ? c->data : 1));
}

static void add_guess(struct search *search, const struct guess *guess)
{
    if (search->count == search->capacity) {
        search->capacity = search->capacity ? 2 * search->capacity : 4096;
        search->guesses = realloc(search->guesses, (size_t)search->capacity * sizeof *search->guesses);
        if (!search->guesses)
            fatal("out of host memory");
    }
    search->guesses[search->count++] = *guess;
}

static void try_one(struct walk *walk, const struct candidate *c)
{
    struct search *search = walk->search;
    int layers = walk->planning->model.layer_count;
    int64_t stages = (int64_t)c->pipeline * c->chunks;
    search->tried++;
    if (stages > layers) {
        search->rejected[REJECT_STAGES]++;
        return;
    }
    if (c->microbatches > MOST_MICROBATCHES || stages * c->microbatches > MOST_STAGE_MICROBATCHES) {
        search->rejected[REJECT_TABLE]++;
        return;
    }
    struct shape *shape = shape_of(walk, c->tensor, c->microbatch_size, c->recompute);
    const struct cut *cut = cut_of(shape, layers, (int)stages);
    struct guess guess = {.candidate = *c,
                          .step_seconds = guess_seconds(walk->planning, shape, c, cut),
                          .memory = guess_memory(shape, c, cut, walk->planning->machine.element_bytes)};
    if (guess.memory > MEMORY_DOUBT * walk->limit) {
        search->rejected[REJECT_MEMORY]++;
        if (search->nearest.candidate.microbatch_size == 0 || guess.memory < search->nearest.memory)
            search->nearest = guess;
        return;
    }
    add_guess(search, &guess);
}

/* All schedules and recompute modes of a grid and microbatch size. */
static void try_schedules(struct walk *walk, struct candidate c)
{
    static const int chunk_choices[] = {1, 2, 3, 4, 6, 8};
    for (int schedule = 0; schedule < SCHEDULE_CSV; schedule++)
        for (size_t i = 0; i < sizeof chunk_choices / sizeof *chunk_choices; i++)
            for (int recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_FULL; recompute++) {
                struct err err;
                c.schedule = (enum schedule_choice)schedule;
                c.chunks = chunk_choices[i];
                c.recompute = (enum recompute_choice)recompute;
                if (c.pipeline == 1 ? c.schedule != SCHEDULE_1F1B || c.chunks != 1
                                    : generate_check(schedule_names[schedule], c.chunks, &err) < 0)
                    continue;
                for (int sharded = 0; sharded <= (c.data > 1); sharded++) {
                    c.sharded = sharded;
                    try_one(walk, &c);
                }
            }
}

static void try_batches(struct walk *walk, struct candidate c)
{
    const int64_t global = walk->planning->settings->pipeline.global_batch;
    if (global % c.data != 0) {
        walk->search->tried++;
        walk->search->rejected[REJECT_BATCH]++;
        return;
    }
    for (int size = 1; size <= MOST_MICROBATCH_SIZE && size <= global / c.data; size++) {
        if (global / c.data % size != 0)
            continue;
        int64_t microbatches = global / c.data / size;
        c.microbatch_size = size;
        c.microbatches = microbatches > MOST_MICROBATCHES ? MOST_MICROBATCHES + 1 : (int)microbatches;
        try_schedules(walk, c);
    }
}

static int compare(const void *a, const void *b)
{
    const struct guess *x = a, *y = b;
    if (x->step_seconds != y->step_seconds)
        return x->step_seconds < y->step_seconds ? -1 : 1;
    return x->memory < y->memory ? -1 : x->memory > y->memory;
}

static void free_shapes(struct shape *shape)
{
    while (shape) {
        struct shape *next = shape->next;
        while (shape->cuts) {
            struct cut *cut = shape->cuts;
            shape->cuts = cut->next;
            free(cut->first_layer);
            free(cut);
        }
        free(shape->time);
        free(shape);
        shape = next;
    }
}

void search_run(struct search *search, const struct planning *planning, double memory_limit)
{
    const struct settings *s = planning->settings;
    const int devices = s->plan.devices;
    struct walk walk = {.search = search, .planning = planning, .limit = memory_limit};
    *search = (struct search){0};
    for (int tensor = 1; tensor <= devices; tensor++) {
        if (devices % tensor != 0)
            continue;
        if (s->model.heads % tensor != 0 || s->model.kv_heads % tensor != 0 || s->model.ffn_hidden % tensor != 0) {
            search->tried++;
            search->rejected[REJECT_TENSOR]++;
            continue;
        }
        for (int pipeline = 1; pipeline <= devices / tensor; pipeline++)
            if (devices / tensor % pipeline == 0)
                try_batches(&walk, (struct candidate){
                                       .pipeline = pipeline, .data = devices / tensor / pipeline, .tensor = tensor});
    }
    free_shapes(walk.shapes);
    qsort(search->guesses, (size_t)search->count, sizeof *search->guesses, compare);
}

void search_fini(struct search *search)
{
    free(search->guesses);
    *search = (struct search){0};
}
