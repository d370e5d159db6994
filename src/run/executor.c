#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "run/executor_state.h"

const char *const executor_field_names[EXECUTOR_FIELDS] = {"inputs", "targets"};

static int find_field(const char *name)
{
    for (int i = 0; i < EXECUTOR_FIELDS; i++)
        if (strcmp(executor_field_names[i], name) == 0)
            return i;
    return -1;
}

/* The inlet for messages of this kind from the peer. */
static struct inlet *inlet_from(struct executor *executor, enum message_kind kind, int peer)
{
    for (int i = 0; i < INLETS; i++) {
        struct inlet *inlet = &executor->inlets[kind][i];
        if (inlet->peer < 0) {
            inlet->peer = peer;
            inlet->order = allocate((size_t)executor->list->count, sizeof *inlet->order);
        }
        if (inlet->peer == peer)
            return inlet;
    }
    fatal("messages of one kind come from more than %d ranks: this is a defect of ppmodel", INLETS);
}

static void order_receives(struct executor *executor)
{
    for (int kind = 0; kind < MESSAGE_KINDS; kind++)
        for (int i = 0; i < INLETS; i++)
            executor->inlets[kind][i].peer = -1;
    for (int64_t i = 0; i < executor->list->count; i++) {
        struct instruction item = executor->list->items[i];
        if (item.op != RECEIVE_ACTIVATION && item.op != RECEIVE_GRADIENT)
            continue;
        enum message_kind kind = item.op == RECEIVE_ACTIVATION ? MESSAGE_ACTIVATION : MESSAGE_GRADIENT;
        struct inlet *inlet = inlet_from(executor, kind, item.peer);
        inlet->order[inlet->count++] = i;
    }
}

static int create_stage(struct executor *executor, const struct validation *validation, struct local_stage *stage,
                        struct stage *computation, struct err *err)
{
    const struct schedule *schedule = executor->schedule;
    const struct stage_bytes *bytes = stage_bytes(computation);
    const bool guarded = executor->context.device->host_memory;
    stage->stage = stage_slice(computation).stage;
    stage->computation = computation;
    stage->slots = footprint_slots(schedule, validation, stage->stage);
    pool_create(&stage->sets, stage->slots.sets, bytes->set, guarded);
    pool_create(&stage->pending, stage->slots.pending, bytes->pending, guarded);
    pool_create(&stage->inputs, stage->slots.inputs, bytes->input, guarded);
    pool_create(&stage->outputs, stage->slots.outputs, bytes->output, guarded);
    pool_create(&stage->out_gradients, stage->slots.out_gradients, bytes->output, guarded);
    pool_create(&stage->in_gradients, stage->slots.in_gradients, bytes->input, guarded);
    stage->cells = allocate((size_t)schedule->microbatches, sizeof *stage->cells);
    for (int i = 0; i < stage_field_count(computation); i++) {
        stage->field_of[i] = find_field(stage_field(computation, i));
        if (stage->field_of[i] < 0)
            return err_set(err, "stage %d reads '%s', which no dataset has", stage->stage, stage_field(computation, i));
    }
    return 0;
}

struct executor *executor_create(const struct grid *grid, const struct schedule *schedule,
                                 const struct validation *validation, struct stage *const *stages,
                                 const struct model *model, const struct context *context, struct err *err)
{
    struct executor *executor = allocate(1, sizeof *executor);
    *executor = (struct executor){.grid = grid,
                                  .schedule = schedule,
                                  .list = &schedule->lists[grid->p],
                                  .context = *context,
                                  .sequence = model->sequence,
                                  .rows = context->circumstances.sequences * model->sequence};
    executor->context.training = !schedule->forward_only;
    executor->stages = allocate((size_t)schedule->chunks, sizeof *executor->stages);
    size_t count = (size_t)executor->list->count;
    executor->activities = allocate(count, sizeof *executor->activities);
    executor->events = allocate(2 * count, sizeof(struct event *));
    executor->times = allocate(count, sizeof *executor->times);
    for (size_t i = 0; i < count; i++) {
        struct instruction item = executor->list->items[i];
        char microbatch[32] = "";
        if (item.microbatch >= 0)
            snprintf(microbatch, sizeof microbatch, " microbatch %d", item.microbatch);
        snprintf(executor->activities[i], sizeof *executor->activities, "%s stage %d%s", instruction_name(item.op),
                 item.stage, microbatch);
        for (int end = 0; end < 2 && instruction_computes(item.op); end++)
            executor->events[2 * i + (size_t)end] = context->device->event_open();
    }
    for (int chunk = 0; chunk < schedule->chunks; chunk++)
        if (create_stage(executor, validation, &executor->stages[chunk], stages[chunk], err) < 0) {
            executor_destroy(executor);
            return NULL;
        }
    order_receives(executor);
    return executor;
}

void executor_destroy(struct executor *executor)
{
    if (!executor)
        return;
    for (int64_t i = 0; i < 2 * executor->list->count; i++)
        if (executor->events[i])
            executor->context.device->event_close(executor->events[i]);
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++) {
        struct local_stage *stage = &executor->stages[chunk];
        each_pool(stage, pool_destroy);
        free(stage->cells);
    }
    for (int kind = 0; kind < MESSAGE_KINDS; kind++)
        for (int i = 0; i < INLETS; i++)
            free(executor->inlets[kind][i].order);
    executor_end_trace(executor);
    free(executor->stages);
    free(executor->activities);
    free(executor->events);
    free(executor->times);
    free(executor);
}

bool executor_reads(const struct executor *executor, int field)
{
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++)
        for (int i = 0; i < stage_field_count(executor->stages[chunk].computation); i++)
            if (executor->stages[chunk].field_of[i] == field)
                return true;
    return false;
}

static bool has_loss(const struct executor *executor)
{
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++)
        if (stage_has_loss(executor->stages[chunk].computation))
            return true;
    return false;
}

static size_t losses_bytes(const struct executor *executor)
{
    size_t bytes = (size_t)executor->schedule->microbatches * (size_t)executor->rows * sizeof(float);
    return has_loss(executor) ? (bytes + 63) / 64 * 64 : 0;
}

/* Of one field in the device's memory. */
static size_t field_bytes(const struct executor *executor, int field)
{
    bool copied = !executor->context.device->host_memory && executor_reads(executor, field);
    return copied ? footprint_field(executor->schedule, executor->rows) : 0;
}

size_t executor_bytes(const struct executor *executor)
{
    struct footprint own = {.buffers = losses_bytes(executor)};
    for (int field = 0; field < EXECUTOR_FIELDS; field++)
        own.buffers += field_bytes(executor, field);
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++)
        footprint_add_stage(&own, &executor->stages[chunk].slots, stage_bytes(executor->stages[chunk].computation));
    return own.activations + own.buffers;
}

void executor_attach(struct executor *executor, char *memory, const struct context *context)
{
    executor->context.workspace = context->workspace;
    executor->context.tensor_scratch = context->tensor_scratch;
    executor->memory = memory;
    executor->losses = has_loss(executor) ? (float *)(void *)memory : NULL;
    memory += losses_bytes(executor);
    for (int field = 0; field < EXECUTOR_FIELDS; field++) {
        size_t bytes = field_bytes(executor, field);
        executor->fields[field] = bytes > 0 ? (int32_t *)(void *)memory : NULL;
        memory += bytes;
    }
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++) {
        struct local_stage *stage = &executor->stages[chunk];
        pool_attach(&stage->sets, &memory);
        pool_attach(&stage->pending, &memory);
        pool_attach(&stage->inputs, &memory);
        pool_attach(&stage->outputs, &memory);
        pool_attach(&stage->out_gradients, &memory);
        pool_attach(&stage->in_gradients, &memory);
    }
}

const float *executor_losses(const struct executor *executor, int microbatch)
{
    return executor->losses ? executor->losses + microbatch * executor->rows : NULL;
}

const double (*executor_times(const struct executor *executor))[2]
{
    return (const double(*)[2])executor->times;
}

int executor_peak_sets(const struct executor *executor)
{
    return executor->peak_sets;
}
