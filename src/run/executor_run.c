#include "base/trace.h"
#include "parallel/flight.h"
#include "run/executor_state.h"

static struct stage_run run_of(struct executor *executor, const struct local_stage *stage, int microbatch)
{
    const struct cell *cell = &stage->cells[microbatch];
    return (struct stage_run){.sequences = executor->step->sequences[microbatch],
                              .input = cell->input,
                              .output = cell->output,
                              .out_gradient = cell->out_gradient,
                              .in_gradient = cell->in_gradient,
                              .set = cell->set,
                              .pending = cell->pending,
                              .fields = stage->fields,
                              .microbatch = microbatch,
                              .inspect = executor->step->inspect,
                              .of = executor->step->of,
                              .losses = executor->losses ? executor->losses + microbatch * executor->rows : NULL};
}

/* The fields of one microbatch. */
static void set_fields(struct executor *executor, struct local_stage *stage, int microbatch)
{
    for (int i = 0; i < stage_field_count(stage->computation); i++) {
        const int field = stage->field_of[i];
        const int32_t *all = executor->fields[field] ? executor->fields[field] : executor->step->fields[field];
        stage->fields[i] = all + microbatch * executor->rows;
    }
}

/* The batch goes to the device. */
static void copy_fields(const struct executor *executor)
{
    const size_t bytes = (size_t)(executor->schedule->microbatches * executor->rows) * sizeof(int32_t);
    for (int field = 0; field < EXECUTOR_FIELDS; field++)
        if (executor->fields[field])
            executor->context.device->copy(executor->context.stream, executor->fields[field],
                                           executor->step->fields[field], bytes);
}

static void release(struct executor *executor, struct local_stage *stage, struct cell *cell)
{
    executor->sets_in_use--;
    pool_give(&stage->sets, &cell->set);
    pool_give(&stage->pending, &cell->pending);
    pool_give(&stage->inputs, &cell->input);
    pool_give(&stage->out_gradients, &cell->out_gradient);
}

static void forward(struct executor *executor, const struct instruction *item)
{
    struct local_stage *stage = local(executor, item->stage);
    struct cell *cell = &stage->cells[item->microbatch];
    executor_expect(executor, stage, MESSAGE_ACTIVATION, &cell->input_message);
    cell->set = pool_take(&stage->sets, "activation sets");
    if (++executor->sets_in_use > executor->peak_sets)
        executor->peak_sets = executor->sets_in_use;
    if (on_this_rank(executor, item->stage + 1)) {
        struct local_stage *next = local(executor, item->stage + 1);
        next->cells[item->microbatch].input = pool_take(&next->inputs, "activations handed over");
        cell->output = next->cells[item->microbatch].input;
    } else if (item->stage + 1 < executor->schedule->stages) {
        cell->output = executor_send_buffer(executor, stage, MESSAGE_ACTIVATION);
    }
}

static void after_forward(struct executor *executor, const struct instruction *item)
{
    struct local_stage *stage = local(executor, item->stage);
    struct cell *cell = &stage->cells[item->microbatch];
    if (on_this_rank(executor, item->stage + 1))
        cell->output = NULL; /* the next stage's input now */
    if (executor->schedule->forward_only)
        release(executor, stage, cell);
}

static void before_backward(struct executor *executor, const struct instruction *item)
{
    struct local_stage *stage = local(executor, item->stage);
    struct cell *cell = &stage->cells[item->microbatch];
    executor_expect(executor, stage, MESSAGE_GRADIENT, &cell->gradient_message);
    cell->pending = pool_take(&stage->pending, "pending sets");
    if (on_this_rank(executor, item->stage - 1)) {
        struct local_stage *next = local(executor, item->stage - 1);
        next->cells[item->microbatch].out_gradient = pool_take(&next->out_gradients, "gradients handed over");
        cell->in_gradient = next->cells[item->microbatch].out_gradient;
    } else if (item->stage > 0) {
        cell->in_gradient = executor_send_buffer(executor, stage, MESSAGE_GRADIENT);
    }
}

static void after_backward(struct executor *executor, const struct instruction *item)
{
    struct local_stage *stage = local(executor, item->stage);
    struct cell *cell = &stage->cells[item->microbatch];
    if (item->op != BACKWARD_WEIGHT && on_this_rank(executor, item->stage - 1))
        cell->in_gradient = NULL;
    if (item->op != BACKWARD_INPUT)
        release(executor, stage, cell);
}

/* Whether this is the stage's last weight gradient of the step. */
static bool is_last_weight(const struct executor *executor, int64_t index)
{
    int stage = executor->list->items[index].stage;
    for (int64_t i = index + 1; i < executor->list->count; i++) {
        struct instruction item = executor->list->items[i];
        if (item.stage == stage && (item.op == BACKWARD || item.op == BACKWARD_WEIGHT))
            return false;
        if (item.stage == stage && item.op == REDUCE_GRADIENTS)
            return true;
    }
    return true;
}

static void compute(struct executor *executor, int64_t index)
{
    const struct instruction *item = &executor->list->items[index];
    const struct device *device = executor->context.device;
    struct stream *stream = executor->context.stream;
    struct local_stage *stage = local(executor, item->stage);
    if (executor->step->sequences[item->microbatch] == 0)
        return;
    executor_queue(executor, index);
    error_set_activity(executor->activities[index]);
    executor->now = index;
    if (item->op == FORWARD)
        forward(executor, item);
    else if (item->op != BACKWARD_WEIGHT)
        before_backward(executor, item);
    set_fields(executor, stage, item->microbatch);
    struct stage_run run = run_of(executor, stage, item->microbatch);
    device->event_record(stream, executor->events[2 * index]);
    switch (item->op) {
    case FORWARD:
        if (!stage->begun_forward)
            run.layer_begin = executor->step->layer_begin;
        stage->begun_forward = true;
        stage_forward(stage->computation, &executor->context, &run);
        break;
    case BACKWARD:
    case BACKWARD_WEIGHT:
        if (is_last_weight(executor, index))
            run.layer_done = executor->step->layer_done;
        run.accumulate_weight = stage->begun_weight;
        stage->begun_weight = true;
        if (item->op == BACKWARD) {
            run.accumulate_input = stage->begun_input;
            stage->begun_input = true;
            stage_backward(stage->computation, &executor->context, &run);
        } else {
            stage_backward_weight(stage->computation, &executor->context, &run);
        }
        break;
    case BACKWARD_INPUT:
        run.accumulate_input = stage->begun_input;
        stage->begun_input = true;
        stage_backward_input(stage->computation, &executor->context, &run);
        break;
    case SEND_ACTIVATION:
    case RECEIVE_ACTIVATION:
    case SEND_GRADIENT:
    case RECEIVE_GRADIENT:
    case REDUCE_GRADIENTS:
    case OPTIMIZER_STEP:
        break;
    }
    device->event_record(stream, executor->events[2 * index + 1]);
    if (item->op == FORWARD)
        after_forward(executor, item);
    else
        after_backward(executor, item);
}

/* Adds up the computations and puts them into the trace. */
static void account(struct executor *executor, struct executor_result *result)
{
    const struct device *device = executor->context.device;
    *result = (struct executor_result){0};
    for (int64_t i = 0; i < executor->list->count; i++) {
        struct instruction item = executor->list->items[i];
        if (!executor->events[2 * i] || executor->step->sequences[item.microbatch] == 0)
            continue;
        double begin = device->event_seconds(executor->events[2 * i]);
        double end = device->event_seconds(executor->events[2 * i + 1]);
        executor->times[i][0] = begin;
        executor->times[i][1] = end;
        result->busy += end - begin;
        if (end > result->last_backward)
            result->last_backward = end;
        if (trace_is_open())
            trace_record(&(struct trace_span){.name = instruction_name(item.op),
                                              .begin = begin,
                                              .end = end,
                                              .bytes = -1,
                                              .step = (int)executor->step->number,
                                              .stage = item.stage,
                                              .microbatch = item.microbatch,
                                              .lane = TRACE_COMPUTE});
    }
    if (trace_is_open())
        executor_trace_marks(executor);
}

/* Buffers may be touched, or none but those that are in use. */
static void open_pools(const struct executor *executor, bool open)
{
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++)
        each_pool(&executor->stages[chunk], open ? pool_end : pool_begin);
}

/* Receives were posted ahead, and the optimizer step is the caller's. */
static bool is_worked_on(const struct instruction *item)
{
    return item->op != RECEIVE_ACTIVATION && item->op != RECEIVE_GRADIENT && item->op != OPTIMIZER_STEP;
}

/* The rank of the world at the other end of a message that the instruction starts, or -1. */
static int peer_of(const struct executor *executor, const struct instruction *item)
{
    const struct grid *grid = executor->grid;
    bool sends = item->op == SEND_ACTIVATION || item->op == SEND_GRADIENT;
    return sends ? grid_rank(grid, item->peer, grid->d, grid->t) : -1;
}

void executor_run(struct executor *executor, const struct executor_step *step, struct executor_result *result)
{
    executor->step = step;
    executor->context.progress = executor_progress_between;
    executor->context.progress_of = executor;
    executor->context.recomputing = trace_is_open() && executor->marks ? executor_mark : NULL;
    executor->mark_count = 0;
    executor->sets_in_use = executor->peak_sets = 0;
    executor->queued = 0;
    for (int kind = 0; kind < MESSAGE_KINDS; kind++)
        for (int i = 0; i < INLETS; i++)
            executor->inlets[kind][i].received = 0;
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++) {
        struct local_stage *stage = &executor->stages[chunk];
        stage->begun_forward = stage->begun_input = stage->begun_weight = false;
    }
    open_pools(executor, false);
    copy_fields(executor);
    bool begun = false;
    for (int64_t i = 0; i < executor->list->count; i++) {
        const struct instruction *item = &executor->list->items[i];
        error_set_activity(executor->activities[i]);
        executor_post_receives(executor);
        if (!is_worked_on(item))
            continue;
        flight_begin_at((int)item->op, item->stage, item->microbatch, peer_of(executor, item), -1);
        switch (item->op) {
        case FORWARD:
        case BACKWARD:
        case BACKWARD_INPUT:
        case BACKWARD_WEIGHT:
            compute(executor, i);
            break;
        case SEND_ACTIVATION:
            executor_start_send(executor, item, MESSAGE_ACTIVATION);
            if (!begun && step->between)
                step->between(step->of);
            begun = true;
            break;
        case SEND_GRADIENT:
            executor_start_send(executor, item, MESSAGE_GRADIENT);
            break;
        case REDUCE_GRADIENTS:
            if (step->stage_done)
                step->stage_done(step->of, item->stage);
            break;
        case RECEIVE_ACTIVATION:
        case RECEIVE_GRADIENT:
        case OPTIMIZER_STEP:
            break;
        }
        flight_end();
    }
    if (!begun && step->between)
        step->between(step->of);
    executor_empty_queue(executor);
    executor_finish_sends(executor);
    error_set_activity(NULL);
    open_pools(executor, true);
    account(executor, result);
}
