/* Keeps the host close behind what the device does, so that flight record, messages of errors and trace tell it. On the
 * CPU a computation has ended when it is queued. */
#include "parallel/flight.h"
#include "run/executor_state.h"

/* Waits for the oldest computation of the queue, first for the message that it waits for itself. */
static void finish_oldest(struct executor *executor)
{
    const struct device *device = executor->context.device;
    const int64_t index = executor->queue[0];
    const struct instruction *item = &executor->list->items[index];
    struct local_stage *stage = local(executor, item->stage);
    struct cell *cell = &stage->cells[item->microbatch];
    error_set_activity(executor->activities[index]);
    if (item->op == FORWARD)
        executor_finish_receive(executor, stage, MESSAGE_ACTIVATION, &cell->input_message);
    else
        executor_finish_receive(executor, stage, MESSAGE_GRADIENT, &cell->gradient_message);
    if (!device->event_done(executor->events[2 * index + 1])) {
        flight_begin_at((int)item->op, item->stage, item->microbatch, -1, -1);
        for (int polls = 0; !device->event_done(executor->events[2 * index + 1]); communicator_pause(&polls))
            executor_progress(executor);
        flight_end();
    }
    executor->queued--;
    for (int i = 0; i < executor->queued; i++)
        executor->queue[i] = executor->queue[i + 1];
}

/* The first buffer of the pool, NULL where it has none. */
static char *first(const struct pool *pool)
{
    return pool->count > 0 ? pool->base : NULL;
}

static void warm_up(const struct executor *executor, struct local_stage *stage, bool accumulate)
{
    const struct context *context = &executor->context;
    const bool splits = footprint_splits(executor->schedule, stage->stage);
    const int next = stage->stage + 1, before = stage->stage - 1;
    for (int i = 0; i < stage_field_count(stage->computation); i++)
        stage->fields[i] = executor->fields[stage->field_of[i]];
    const struct stage_run run = {
        .sequences = context->circumstances.sequences,
        .input = first(&stage->inputs),
        .output = first(on_this_rank(executor, next) ? &local(executor, next)->inputs : &stage->outputs),
        .out_gradient = first(&stage->out_gradients),
        .in_gradient =
            first(on_this_rank(executor, before) ? &local(executor, before)->out_gradients : &stage->in_gradients),
        .set = first(&stage->sets),
        .pending = first(&stage->pending),
        .fields = stage->fields,
        .losses = executor->losses,
        .accumulate_input = accumulate,
        .accumulate_weight = accumulate};
    stage_forward(stage->computation, context, &run);
    if (executor->schedule->forward_only)
        return;
    if (!splits) {
        stage_backward(stage->computation, context, &run);
        return;
    }
    stage_backward_input(stage->computation, context, &run);
    stage_backward_weight(stage->computation, context, &run);
}

void executor_warm_up(struct executor *executor)
{
    const struct device *device = executor->context.device;
    struct stream *stream = executor->context.stream;
    device->zero(stream, executor->memory, executor_bytes(executor));
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++)
        for (int accumulate = 0; accumulate < 2; accumulate++)
            warm_up(executor, &executor->stages[chunk], accumulate);
    device->stream_wait(stream);
}

void executor_queue(struct executor *executor, int64_t index)
{
    while (executor->queued == QUEUED_AHEAD)
        finish_oldest(executor);
    executor->queue[executor->queued++] = index;
}

void executor_empty_queue(struct executor *executor)
{
    while (executor->queued > 0)
        finish_oldest(executor);
}
