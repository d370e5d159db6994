#include "run/replay.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/host_memory.h"
#include "parallel/flight.h"

/* What a tensor is to its layer. */
enum role {
    ROLE_WEIGHT,
    ROLE_INPUT,
    ROLE_OUTPUT,
    ROLE_LOSSES,
    ROLE_OUTPUT_GRADIENT,
    ROLE_INPUT_GRADIENT,
    ROLE_WEIGHT_GRADIENT
};

/* A tensor in the order of computation: by microbatch, the forward before the backward, layer by layer; within a layer
 * by role, then by number. */
struct tensor {
    int microbatch, layer;
    enum role role;
    int number;                        /* among those of its role */
    const char *name;                  /* of a boundary tensor; else NULL */
    const struct parameter *parameter; /* of weights and their gradients; else NULL */
};

#define BLOCKS 64 /* of numbers that are looked at together */

struct replay {
    struct trainer *trainer;
    struct tensor first; /* found on this rank */
    double position;     /* of `first`, INFINITY: none was found */
    bool *spoilt;        /* [shares]: a gradient that was found already, which stays as it is: gradients add up */
    double *squares;     /* [BLOCKS], where the device copies to */
};

/* The place in the order as a number, which is exact: it is below 2^45 for 2^20 microbatches and 2^17 layers. */
static double position_of(const struct replay *replay, const struct tensor *tensor)
{
    enum {
        NUMBERS = LAYER_MAX_PARAMETERS > 2 * LAYER_MAX_BOUNDARIES ? LAYER_MAX_PARAMETERS : 2 * LAYER_MAX_BOUNDARIES,
        ROLES = ROLE_WEIGHT_GRADIENT + 1
    };
    const int layers = replay->trainer->model.layer_count;
    bool backward = tensor->role >= ROLE_OUTPUT_GRADIENT;
    int64_t position = (int64_t)tensor->microbatch * 2 + backward;
    position = position * layers + (backward ? layers - 1 - tensor->layer : tensor->layer);
    return (double)((position * ROLES + tensor->role) * NUMBERS + tensor->number);
}

/* Whether all elements, in memory of the device, are finite; looks in bounded pieces. Squares of float32 are finite in
 * float64 where the elements are. */
static bool is_finite(const struct replay *replay, enum element element, const void *elements, int64_t count)
{
    const struct context *context = &replay->trainer->context;
    for (int64_t done = 0; done < count; done += BLOCKS * SQUARES_BLOCK) {
        int64_t left = count - done, piece = left < BLOCKS * SQUARES_BLOCK ? left : BLOCKS * SQUARES_BLOCK;
        context->device->squares(context->stream, element, replay->squares,
                                 (const char *)elements + done * (int64_t)element_bytes(element), piece);
        context->device->stream_wait(context->stream);
        for (int64_t block = 0; block * SQUARES_BLOCK < piece; block++)
            if (!isfinite(replay->squares[block]))
                return false;
    }
    return true;
}

/* Looks at one tensor; true when it is not finite. */
static bool check(struct replay *replay, const struct tensor *tensor, enum element element, const void *elements,
                  int64_t count)
{
    if (is_finite(replay, element, elements, count))
        return false;
    double position = position_of(replay, tensor);
    if (position < replay->position) {
        replay->first = *tensor;
        replay->position = position;
    }
    return true;
}

static void check_boundary(struct replay *replay, const struct stage_look *look, enum role role, int number,
                           const struct boundary *boundary, const void *elements)
{
    const struct circumstances *circumstances = &replay->trainer->context.circumstances;
    struct share rows = context_rows(circumstances, look->passage->sequences * boundary->rows_per_sequence);
    struct tensor tensor = {look->microbatch, look->layer, role, number, boundary->name, NULL};
    check(replay, &tensor, boundary->element, elements, rows.count * boundary->width);
}

/* The boundary tensor that the layer reads by this name. */
static const struct boundary *read_boundary(const struct replay *replay, int layer, const char *name)
{
    const struct declaration *before = &replay->trainer->model.declarations[layer - 1];
    int i = 0;
    while (strcmp(before->after[i].name, name) != 0)
        i++;
    return &before->after[i];
}

static void check_weights(struct replay *replay, const struct stage_look *look)
{
    const struct parameters *parameters = &replay->trainer->parameters;
    const int first = parameters->layer_first[look->local_layer];
    for (int i = first; i < parameters->layer_first[look->local_layer + 1]; i++) {
        const struct parameter_share *share = &parameters->shares[i];
        struct tensor tensor = {look->microbatch, look->layer, ROLE_WEIGHT, i - first, NULL, share->parameter};
        check(replay, &tensor, share->parameter->element, look->passage->weights[i - first], share->count);
    }
}

static void check_weight_gradients(struct replay *replay, const struct stage_look *look)
{
    const struct parameters *parameters = &replay->trainer->parameters;
    const int first = parameters->layer_first[look->local_layer];
    for (int i = first; i < parameters->layer_first[look->local_layer + 1]; i++) {
        const struct parameter_share *share = &parameters->shares[i];
        struct tensor tensor = {look->microbatch, look->layer, ROLE_WEIGHT_GRADIENT, i - first, NULL, share->parameter};
        if (!replay->spoilt[i])
            replay->spoilt[i] =
                check(replay, &tensor, ELEMENT_FLOAT32, look->passage->gradients[i - first], share->count);
    }
}

static void check_forward(struct replay *replay, const struct stage_look *look, const struct declaration *declaration)
{
    const struct passage *passage = look->passage;
    check_weights(replay, look);
    for (int r = 0; r < declaration->read_count; r++)
        check_boundary(replay, look, ROLE_INPUT, r, read_boundary(replay, look->layer, declaration->reads[r]),
                       passage->in[r]);
    for (int i = 0; i < declaration->after_count; i++)
        if (declaration->after[i].written)
            check_boundary(replay, look, ROLE_OUTPUT, i, &declaration->after[i], passage->out[i]);
    struct tensor losses = {look->microbatch, look->layer, ROLE_LOSSES, 0, NULL, NULL};
    if (declaration->loss)
        check(replay, &losses, ELEMENT_FLOAT32, passage->losses, passage->sequences * replay->trainer->model.sequence);
}

static void check_input_gradient(struct replay *replay, const struct stage_look *look,
                                 const struct declaration *declaration)
{
    const struct passage *passage = look->passage;
    for (int i = 0; i < declaration->after_count; i++)
        if (declaration->after[i].written)
            check_boundary(replay, look, ROLE_OUTPUT_GRADIENT, i, &declaration->after[i], passage->out_gradient[i]);
    for (int r = 0; r < declaration->read_count; r++) {
        const struct boundary *boundary = read_boundary(replay, look->layer, declaration->reads[r]);
        if (passage->pass_gradient[r])
            check_boundary(replay, look, ROLE_OUTPUT_GRADIENT, LAYER_MAX_BOUNDARIES + r, boundary,
                           passage->pass_gradient[r]);
        check_boundary(replay, look, ROLE_INPUT_GRADIENT, r, boundary, passage->in_gradient[r]);
    }
}

static void inspect(void *of, const struct stage_look *look)
{
    struct replay *replay = of;
    const struct declaration *declaration = &replay->trainer->model.declarations[look->layer];
    switch (look->pass) {
    case PASS_FORWARD:
        check_forward(replay, look, declaration);
        break;
    case PASS_INPUT:
        check_input_gradient(replay, look, declaration);
        check_weight_gradients(replay, look); /* norms write theirs here */
        break;
    case PASS_WEIGHT:
        check_weight_gradients(replay, look);
        break;
    }
}

static void layer_done(void *of, int local_layer)
{
    const struct replay *replay = of;
    gradients_layer_done(replay->trainer->gradients, local_layer);
}

static void progress(void *of)
{
    const struct replay *replay = of;
    bucket_queue_progress(replay->trainer->queue);
}

/* "blocks/mlp/up/weight[3]" */
static struct err name_of(const struct parameter *parameter)
{
    struct err name;
    err_set(&name, parameter->stack_size ? "%s[%d]" : "%s", parameter->path, parameter->index);
    return name;
}

static void describe(const struct replay *replay, struct err *trouble)
{
    const struct trainer *trainer = replay->trainer;
    const struct tensor *tensor = &replay->first;
    const char *boundary = tensor->name ? tensor->name : "";
    struct err parameter = {0}, what;
    if (tensor->parameter)
        parameter = name_of(tensor->parameter);
    switch (tensor->role) {
    case ROLE_WEIGHT:
        err_set(&what, "%.100s itself is not finite; this layer is only where it shows first", parameter.text);
        break;
    case ROLE_INPUT:
        err_set(&what, "input '%s' is not finite, though it was where it was written", boundary);
        break;
    case ROLE_OUTPUT:
        err_set(&what, "output '%s' is the first tensor that is not finite", boundary);
        break;
    case ROLE_LOSSES:
        err_set(&what, "the loss is the first tensor that is not finite");
        break;
    case ROLE_OUTPUT_GRADIENT:
        err_set(&what, "the gradient of output '%s' is not finite, though it was where it was written", boundary);
        break;
    case ROLE_INPUT_GRADIENT:
        err_set(&what, "the gradient of input '%s' is the first tensor that is not finite", boundary);
        break;
    case ROLE_WEIGHT_GRADIENT:
        err_set(&what, "the gradient of %.100s is the first tensor that is not finite", parameter.text);
        break;
    }
    err_set(trouble, "%s %s stage %d microbatch %d, layer %d (%s): %.500s", error_place(),
            tensor->role < ROLE_OUTPUT_GRADIENT ? "FORWARD" : "BACKWARD", trainer->stage_of_layer[tensor->layer],
            tensor->microbatch, tensor->layer, trainer->model.layers[tensor->layer].kind->name, what.text);
}

/* The ranks' first tensor in the order of computation, on the lowest rank that has it; its text goes to all. False when
 * there is none. */
static bool agree_on_first(const struct replay *replay, struct err *trouble)
{
    const struct grid *grid = &replay->trainer->grid;
    double position = replay->position;
    control_min(grid->world, &position, 1);
    if (position == INFINITY)
        return false;
    double rank = position == replay->position ? grid->rank : grid->size;
    control_min(grid->world, &rank, 1);
    if (grid->rank == (int)rank)
        describe(replay, trouble);
    control_broadcast(grid->world, trouble, sizeof *trouble, (int)rank);
    return true;
}

/* The first layer of the model that holds a logical parameter, and which of its parameters that is. */
static const struct parameter *find_logical(const struct trainer *trainer, int logical, int *layer)
{
    const struct model *model = &trainer->model;
    for (*layer = 0; *layer < model->layer_count; ++*layer)
        for (int i = 0; i < model->declarations[*layer].parameter_count; i++)
            if (parameters_logical(model, *layer, i) == logical)
                return &model->declarations[*layer].parameters[i];
    return NULL;
}

/* The last parameter whose gradient of the whole batch is not finite, with its place; "" when all are. */
static struct err bad_gradient(const struct trainer *trainer, const double *squares)
{
    const struct grid *grid = &trainer->grid;
    struct err text = {0};
    int64_t i = (int64_t)trainer->parameters.logical_count * grid->tensor - 1;
    while (i >= 0 && isfinite(squares[i]))
        i--;
    if (i < 0)
        return text;
    int layer, t = (int)(i % grid->tensor);
    const struct parameter *parameter = find_logical(trainer, (int)(i / grid->tensor), &layer);
    int stage = trainer->stage_of_layer[layer], p = schedule_rank_of(trainer->train.schedule, stage);
    err_set(&text, "the gradient of %.100s (rank %d (p%d d0 t%d), stage %d, layer %d: %s)", name_of(parameter).text,
            grid_rank(grid, p, 0, t), p, t, stage, layer, trainer->model.layers[layer].kind->name);
    return text;
}

/* What the step itself has shown. */
static struct err shown(const struct trainer *trainer, const double *squares, const double *losses)
{
    struct err text = {0}, gradient = bad_gradient(trainer, squares);
    int d = 0;
    while (d < trainer->grid.data && isfinite(losses[d]))
        d++;
    if (d < trainer->grid.data)
        err_set(&text, "the loss of data rank %d%s", d, gradient.text[0] ? " and " : "");
    strncat(text.text, gradient.text, sizeof text.text - strlen(text.text) - 1);
    return text;
}

void replay_step(struct trainer *trainer, double *squares, const double *losses, struct err *trouble)
{
    const struct batch *batch = &trainer->batches[trainer->present];
    const struct device *device = trainer->context.device;
    const long long number = (long long)trainer->step + 1;
    struct err before = shown(trainer, squares, losses);
    struct replay replay = {.trainer = trainer,
                            .position = INFINITY,
                            .spoilt = allocate((size_t)trainer->parameters.count, sizeof *replay.spoilt),
                            .squares = host_memory(device, BLOCKS * sizeof *replay.squares, "sums of squares")};
    struct executor_step run = {.number = number,
                                .sequences = batch->sequences,
                                .fields = (const int32_t *const *)batch->fields,
                                .layer_done = layer_done,
                                .progress = progress,
                                .inspect = inspect,
                                .of = &replay};
    struct executor_result ran;
    /* What the failed step has left of gradients must not be taken for the replay's. */
    device->zero(trainer->context.stream, trainer->gradient_arena, trainer->memory.gradients);
    flight_begin(FLIGHT_REPLAY);
    executor_run(trainer->train.executor, &run, &ran);
    gradients_finish(trainer->gradients);
    gradients_squares(trainer->gradients, squares);
    control_sum(trainer->grid.world, squares, (int64_t)trainer->parameters.logical_count * trainer->grid.tensor);
    struct err sum = bad_gradient(trainer, squares);
    bool found = agree_on_first(&replay, trouble);
    flight_end();
    if (!found && sum.text[0])
        err_set(trouble, "step %lld: %.500s is not finite as a sum over ranks, though all that it adds up is", number,
                sum.text);
    else if (!found)
        err_set(trouble,
                "step %lld: %.900s came out not finite, but in a replay of the step every number is finite: this "
                "machine does not compute or transfer the same every time",
                number, before.text);
    device->host_release(replay.squares, BLOCKS * sizeof *replay.squares);
    free(replay.spoilt);
}
