#include <stdlib.h>

#include "base/memory.h"
#include "base/trace.h"
#include "run/executor_state.h"

void executor_begin_trace(struct executor *executor)
{
    int64_t layers = 0; /* that a step goes back through */
    if (executor->marks)
        return;
    for (int64_t i = 0; i < executor->list->count; i++) {
        struct instruction item = executor->list->items[i];
        if (item.op != BACKWARD && item.op != BACKWARD_INPUT)
            continue;
        struct slice slice = stage_slice(local(executor, item.stage)->computation);
        layers += slice.last - slice.first;
    }
    executor->mark_room = 2 * layers;
    executor->marks = allocate((size_t)executor->mark_room, sizeof *executor->marks);
    executor->marked = allocate((size_t)executor->mark_room, sizeof *executor->marked);
    for (int64_t i = 0; i < executor->mark_room; i++)
        executor->marks[i] = executor->context.device->event_open();
}

void executor_end_trace(struct executor *executor)
{
    for (int64_t i = 0; i < executor->mark_room; i++)
        executor->context.device->event_close(executor->marks[i]);
    free(executor->marks);
    free(executor->marked);
}

void executor_mark(void *of)
{
    struct executor *executor = of;
    if (executor->mark_count == executor->mark_room)
        return;
    executor->marked[executor->mark_count] = executor->now;
    executor->context.device->event_record(executor->context.stream, executor->marks[executor->mark_count++]);
}

void executor_trace_marks(const struct executor *executor)
{
    const struct device *device = executor->context.device;
    for (int64_t i = 0; i + 1 < executor->mark_count; i += 2) {
        struct instruction item = executor->list->items[executor->marked[i]];
        trace_record(&(struct trace_span){.name = "RECOMPUTE",
                                          .begin = device->event_seconds(executor->marks[i]),
                                          .end = device->event_seconds(executor->marks[i + 1]),
                                          .bytes = -1,
                                          .step = (int)executor->step->number,
                                          .stage = item.stage,
                                          .microbatch = item.microbatch,
                                          .lane = TRACE_COMPUTE});
    }
}
