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
