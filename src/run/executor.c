#include "run/executor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/trace.h"

const char *const executor_field_names[EXECUTOR_FIELDS] = {"inputs", "targets"};

/* Equal buffers, handed out and taken back. */
struct pool {
    char *base;
    size_t each; /* bytes */
    int count, free_count;
    int *free; /* [count] the first free_count are indices of free buffers */
};

/* A message under way, and for sends the buffer that it occupies. */
struct message {
    struct transfer *transfer; /* NULL: none */
    char *buffer;
    double begin;
    size_t bytes;
    int microbatch;
};

/* Buffers of one microbatch at one stage; NULL while there is none. */
struct cell {
    char *input, *output, *out_gradient, *in_gradient, *set, *pending;
    struct message input_message, gradient_message; /* receives */
};

struct local_stage {
    int stage;
    struct stage *computation;
    struct stage_slots slots;
    struct pool sets, pending, inputs, outputs, out_gradients, in_gradients;
    struct cell *cells;                /* [microbatches] */
    int *receive_order[MESSAGE_KINDS]; /* microbatches as the list receives them */
    int receive_count[MESSAGE_KINDS], received[MESSAGE_KINDS];
    struct message sends[MESSAGE_KINDS][SEND_SLOTS];
    const int32_t *fields[LAYER_MAX_FIELDS];
    int field_of[LAYER_MAX_FIELDS]; /* in executor_field_names */
    bool begun_input, begun_weight; /* a gradient was written in this step: accumulate */
};

struct executor {
    const struct grid *grid;
    const struct schedule *schedule;
    const struct instruction_list *list;
    struct context context;
    struct local_stage *stages; /* [chunks] */
    char (*activities)[64];     /* [list->count] what the rank is doing, for messages */
    struct event **events;      /* [2 * list->count] begin and end of computations, NULL for others */
    float *losses;              /* [microbatches, rows] */
    int64_t rows;               /* tokens of a full microbatch */
    int64_t sequence;
    const struct executor_step *step;
    int sets_in_use, peak_sets;
};

static void pool_create(struct pool *pool, int count, size_t each)
{
    *pool = (struct pool){.each = (each / 64 + 1) * 64, .count = count}; /* never 0: a stage may keep nothing */
    pool->free = allocate((size_t)count, sizeof *pool->free);
}

static size_t pool_bytes(const struct pool *pool)
{
    return (size_t)pool->count * pool->each;
}

static void pool_attach(struct pool *pool, char **memory)
{
    pool->base = *memory;
    *memory += pool_bytes(pool);
    pool->free_count = pool->count;
    for (int i = 0; i < pool->count; i++)
        pool->free[i] = pool->count - 1 - i;
}

static char *pool_take(struct pool *pool, const char *what)
{
    if (pool->free_count == 0)
        fatal("the schedule needs more than the %d buffers counted for %s: this is a defect of ppmodel", pool->count,
              what);
    return pool->base + (size_t)pool->free[--pool->free_count] * pool->each;
}

/* Takes back a buffer; NULL is allowed. */
static void pool_give(struct pool *pool, char **buffer)
{
    if (*buffer)
        pool->free[pool->free_count++] = (int)((size_t)(*buffer - pool->base) / pool->each);
    *buffer = NULL;
}

static struct local_stage *local(const struct executor *executor, int stage)
{
    return &executor->stages[stage / executor->schedule->ranks];
}

static bool on_this_rank(const struct executor *executor, int stage)
{
    return stage >= 0 && stage < executor->schedule->stages &&
           schedule_rank_of(executor->schedule, stage) == executor->grid->p;
}

/* The tag of what a stage sends: messages of different stages never share one, and those of one stage, which are
 * received in the order of sending, only from afar. */
static int message_tag(const struct executor *executor, int stage, int microbatch)
{
    int each = 32768 / executor->schedule->chunks; /* tags of one stage on its rank */
    return stage / executor->schedule->ranks * each + microbatch % each;
}

static int find_field(const char *name)
{
    for (int i = 0; i < EXECUTOR_FIELDS; i++)
        if (strcmp(executor_field_names[i], name) == 0)
            return i;
    return -1;
}

static void order_receives(struct executor *executor)
{
    for (int64_t i = 0; i < executor->list->count; i++) {
        struct instruction item = executor->list->items[i];
        if (item.op != RECEIVE_ACTIVATION && item.op != RECEIVE_GRADIENT)
            continue;
        struct local_stage *stage = local(executor, item.stage);
        enum message_kind kind = item.op == RECEIVE_ACTIVATION ? MESSAGE_ACTIVATION : MESSAGE_GRADIENT;
        stage->receive_order[kind][stage->receive_count[kind]++] = item.microbatch;
    }
}

static int create_stage(struct executor *executor, const struct validation *validation, struct local_stage *stage,
                        struct stage *computation, struct err *err)
{
    const struct schedule *schedule = executor->schedule;
    const struct stage_bytes *bytes = stage_bytes(computation);
    stage->stage = stage_slice(computation).stage;
    stage->computation = computation;
    stage->slots = footprint_slots(schedule, validation, stage->stage);
    pool_create(&stage->sets, stage->slots.sets, bytes->set);
    pool_create(&stage->pending, stage->slots.pending, bytes->pending);
    pool_create(&stage->inputs, stage->slots.inputs, bytes->input);
    pool_create(&stage->outputs, stage->slots.outputs, bytes->output);
    pool_create(&stage->out_gradients, stage->slots.out_gradients, bytes->output);
    pool_create(&stage->in_gradients, stage->slots.in_gradients, bytes->input);
    stage->cells = allocate((size_t)schedule->microbatches, sizeof *stage->cells);
    for (int kind = 0; kind < MESSAGE_KINDS; kind++)
        stage->receive_order[kind] = allocate((size_t)schedule->microbatches, sizeof(int));
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
        struct pool *pools[] = {&stage->sets,    &stage->pending,       &stage->inputs,
                                &stage->outputs, &stage->out_gradients, &stage->in_gradients};
        for (size_t i = 0; i < sizeof pools / sizeof *pools; i++)
            free(pools[i]->free);
        for (int kind = 0; kind < MESSAGE_KINDS; kind++)
            free(stage->receive_order[kind]);
        free(stage->cells);
    }
    free(executor->stages);
    free(executor->activities);
    free(executor->events);
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

size_t executor_bytes(const struct executor *executor, struct footprint *memory)
{
    size_t activations = 0, buffers = losses_bytes(executor);
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++) {
        const struct local_stage *stage = &executor->stages[chunk];
        activations += pool_bytes(&stage->sets) + pool_bytes(&stage->pending) + pool_bytes(&stage->inputs);
        buffers += pool_bytes(&stage->outputs) + pool_bytes(&stage->out_gradients) + pool_bytes(&stage->in_gradients);
    }
    memory->activations += activations;
    memory->buffers += buffers;
    return activations + buffers;
}

void executor_attach(struct executor *executor, char *memory, const struct context *context)
{
    executor->context.workspace = context->workspace;
    executor->context.tensor_scratch = context->tensor_scratch;
    executor->losses = has_loss(executor) ? (float *)(void *)memory : NULL;
    memory += losses_bytes(executor);
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

static void trace_message(const struct executor *executor, const struct local_stage *stage,
                          const struct message *message, const char *name, enum trace_lane lane)
{
    if (trace_is_open())
        trace_record(&(struct trace_span){.name = name,
                                          .begin = message->begin,
                                          .end = clock_seconds(),
                                          .bytes = (int64_t)message->bytes,
                                          .step = (int)executor->step->number,
                                          .stage = stage->stage,
                                          .microbatch = message->microbatch,
                                          .lane = lane});
}

static struct communicator *channel(const struct executor *executor, enum message_kind kind)
{
    return kind == MESSAGE_ACTIVATION ? executor->grid->activations : executor->grid->gradients;
}

/* Takes back the buffer of a send that has completed. */
static void finish_send(struct executor *executor, struct local_stage *stage, enum message_kind kind,
                        struct message *send)
{
    trace_message(executor, stage, send, kind == MESSAGE_ACTIVATION ? "SEND_ACTIVATION" : "SEND_GRADIENT", TRACE_SEND);
    send->transfer = NULL;
    pool_give(kind == MESSAGE_ACTIVATION ? &stage->outputs : &stage->in_gradients, &send->buffer);
}

/* Called between matmuls: lets messages move and notes which sends are through. */
static void progress(void *of)
{
    struct executor *executor = of;
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++)
        for (int kind = 0; kind < MESSAGE_KINDS; kind++)
            for (int i = 0; i < SEND_SLOTS; i++) {
                struct message *send = &executor->stages[chunk].sends[kind][i];
                if (send->transfer && channel(executor, kind)->ops->test(send->transfer))
                    finish_send(executor, &executor->stages[chunk], kind, send);
            }
    executor->grid->activations->ops->progress(executor->grid->activations);
    executor->grid->gradients->ops->progress(executor->grid->gradients);
    if (executor->step->progress)
        executor->step->progress(executor->step->of);
}

/* Posts as many receives as there are buffers, in the order of the list. */
static void post_receives(struct executor *executor, struct local_stage *stage, enum message_kind kind)
{
    struct pool *pool = kind == MESSAGE_ACTIVATION ? &stage->inputs : &stage->out_gradients;
    int producer = kind == MESSAGE_ACTIVATION ? stage->stage - 1 : stage->stage + 1;
    while (stage->received[kind] < stage->receive_count[kind] && pool->free_count > 0) {
        int microbatch = stage->receive_order[kind][stage->received[kind]++];
        struct cell *cell = &stage->cells[microbatch];
        int64_t sequences = executor->step->sequences[microbatch];
        if (sequences == 0)
            continue;
        char **buffer = kind == MESSAGE_ACTIVATION ? &cell->input : &cell->out_gradient;
        struct message *message = kind == MESSAGE_ACTIVATION ? &cell->input_message : &cell->gradient_message;
        size_t bytes = kind == MESSAGE_ACTIVATION ? stage_input_bytes(stage->computation, sequences)
                                                  : stage_output_bytes(stage->computation, sequences);
        *buffer = pool_take(pool, "received messages");
        *message = (struct message){.begin = clock_seconds(), .bytes = bytes, .microbatch = microbatch};
        struct communicator *comm = channel(executor, kind);
        message->transfer = comm->ops->receive(comm, *buffer, bytes, schedule_rank_of(executor->schedule, producer),
                                               message_tag(executor, producer, microbatch));
    }
}

static void finish_receive(struct executor *executor, struct local_stage *stage, enum message_kind kind,
                           struct message *message)
{
    if (!message->transfer)
        return;
    channel(executor, kind)->ops->wait(message->transfer);
    message->transfer = NULL;
    trace_message(executor, stage, message, kind == MESSAGE_ACTIVATION ? "RECEIVE_ACTIVATION" : "RECEIVE_GRADIENT",
                  TRACE_RECEIVE);
}

/* A free buffer for a message; waits for the oldest send of that kind when all are under way. */
static char *send_buffer(struct executor *executor, struct local_stage *stage, enum message_kind kind)
{
    struct pool *pool = kind == MESSAGE_ACTIVATION ? &stage->outputs : &stage->in_gradients;
    while (pool->free_count == 0) {
        struct message *oldest = NULL;
        for (int i = 0; i < SEND_SLOTS; i++) {
            struct message *send = &stage->sends[kind][i];
            if (send->transfer && (!oldest || send->begin < oldest->begin))
                oldest = send;
        }
        if (!oldest)
            break; /* pool_take says what is wrong */
        channel(executor, kind)->ops->wait(oldest->transfer);
        finish_send(executor, stage, kind, oldest);
    }
    return pool_take(pool, "messages to be sent");
}

static void start_send(struct executor *executor, const struct instruction *item, enum message_kind kind)
{
    struct local_stage *stage = local(executor, item->stage);
    int64_t sequences = executor->step->sequences[item->microbatch];
    if (sequences == 0)
        return;
    struct message *send = stage->sends[kind];
    while (send->transfer)
        send++;
    struct cell *cell = &stage->cells[item->microbatch];
    char **buffer = kind == MESSAGE_ACTIVATION ? &cell->output : &cell->in_gradient;
    *send = (struct message){.buffer = *buffer,
                             .begin = clock_seconds(),
                             .bytes = kind == MESSAGE_ACTIVATION ? stage_output_bytes(stage->computation, sequences)
                                                                 : stage_input_bytes(stage->computation, sequences),
                             .microbatch = item->microbatch};
    *buffer = NULL;
    struct communicator *comm = channel(executor, kind);
    send->transfer = comm->ops->send(comm, send->buffer, send->bytes, item->peer,
                                     message_tag(executor, item->stage, item->microbatch));
}

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
                              .losses = executor->losses ? executor->losses + microbatch * executor->rows : NULL};
}

/* The fields of one microbatch. */
static void set_fields(struct executor *executor, struct local_stage *stage, int microbatch)
{
    for (int i = 0; i < stage_field_count(stage->computation); i++)
        stage->fields[i] = executor->step->fields[stage->field_of[i]] + microbatch * executor->rows;
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
    finish_receive(executor, stage, MESSAGE_ACTIVATION, &cell->input_message);
    cell->set = pool_take(&stage->sets, "activation sets");
    if (++executor->sets_in_use > executor->peak_sets)
        executor->peak_sets = executor->sets_in_use;
    if (on_this_rank(executor, item->stage + 1)) {
        struct local_stage *next = local(executor, item->stage + 1);
        next->cells[item->microbatch].input = pool_take(&next->inputs, "activations handed over");
        cell->output = next->cells[item->microbatch].input;
    } else if (item->stage + 1 < executor->schedule->stages) {
        cell->output = send_buffer(executor, stage, MESSAGE_ACTIVATION);
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
    finish_receive(executor, stage, MESSAGE_GRADIENT, &cell->gradient_message);
    cell->pending = pool_take(&stage->pending, "pending sets");
    if (on_this_rank(executor, item->stage - 1)) {
        struct local_stage *next = local(executor, item->stage - 1);
        next->cells[item->microbatch].out_gradient = pool_take(&next->out_gradients, "gradients handed over");
        cell->in_gradient = next->cells[item->microbatch].out_gradient;
    } else if (item->stage > 0) {
        cell->in_gradient = send_buffer(executor, stage, MESSAGE_GRADIENT);
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
    if (item->op == FORWARD)
        forward(executor, item);
    else if (item->op != BACKWARD_WEIGHT)
        before_backward(executor, item);
    set_fields(executor, stage, item->microbatch);
    struct stage_run run = run_of(executor, stage, item->microbatch);
    device->event_record(stream, executor->events[2 * index]);
    switch (item->op) {
    case FORWARD:
        stage_forward(stage->computation, &executor->context, &run);
        break;
    case BACKWARD:
    case BACKWARD_WEIGHT:
        if (is_last_weight(executor, index)) {
            run.layer_done = executor->step->layer_done;
            run.of = executor->step->of;
        }
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
}

static void finish_sends(struct executor *executor)
{
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++)
        for (int kind = 0; kind < MESSAGE_KINDS; kind++)
            for (int i = 0; i < SEND_SLOTS; i++) {
                struct message *send = &executor->stages[chunk].sends[kind][i];
                if (!send->transfer)
                    continue;
                channel(executor, kind)->ops->wait(send->transfer);
                finish_send(executor, &executor->stages[chunk], kind, send);
            }
}

void executor_run(struct executor *executor, const struct executor_step *step, struct executor_result *result)
{
    executor->step = step;
    executor->context.progress = progress;
    executor->context.progress_of = executor;
    executor->sets_in_use = executor->peak_sets = 0;
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++) {
        struct local_stage *stage = &executor->stages[chunk];
        stage->received[MESSAGE_ACTIVATION] = stage->received[MESSAGE_GRADIENT] = 0;
        stage->begun_input = stage->begun_weight = false;
    }
    bool begun = false;
    for (int64_t i = 0; i < executor->list->count; i++) {
        const struct instruction *item = &executor->list->items[i];
        error_set_activity(executor->activities[i]);
        for (int chunk = 0; chunk < executor->schedule->chunks; chunk++)
            for (int kind = 0; kind < MESSAGE_KINDS; kind++)
                post_receives(executor, &executor->stages[chunk], kind);
        switch (item->op) {
        case FORWARD:
        case BACKWARD:
        case BACKWARD_INPUT:
        case BACKWARD_WEIGHT:
            compute(executor, i);
            break;
        case SEND_ACTIVATION:
            start_send(executor, item, MESSAGE_ACTIVATION);
            if (!begun && step->between)
                step->between(step->of);
            begun = true;
            break;
        case SEND_GRADIENT:
            start_send(executor, item, MESSAGE_GRADIENT);
            break;
        case REDUCE_GRADIENTS:
            if (step->stage_done)
                step->stage_done(step->of, item->stage);
            break;
        case RECEIVE_ACTIVATION: /* posted ahead */
        case RECEIVE_GRADIENT:
        case OPTIMIZER_STEP: /* the caller's */
            break;
        }
    }
    error_set_activity(NULL);
    if (!begun && step->between)
        step->between(step->of);
    finish_sends(executor);
    account(executor, result);
}

const float *executor_losses(const struct executor *executor, int microbatch)
{
    return executor->losses ? executor->losses + microbatch * executor->rows : NULL;
}

int executor_peak_sets(const struct executor *executor)
{
    return executor->peak_sets;
}
