#include "base/trace.h"
#include "parallel/flight.h"
#include "run/executor_state.h"

/* The tag of what a stage sends: messages of different stages never share one, and those of one stage, which are
 * received in the order of sending, only from afar. */
static int message_tag(const struct executor *executor, int stage, int microbatch)
{
    int each = 32768 / executor->schedule->chunks; /* tags of one stage on its rank */
    return stage / executor->schedule->ranks * each + microbatch % each;
}

/* A message, or the wait for it, from `begin` until now. */
static void trace_message(const struct executor *executor, const struct local_stage *stage,
                          const struct message *message, double begin, const char *name, enum trace_lane lane)
{
    if (trace_is_open())
        trace_record(&(struct trace_span){.name = name,
                                          .begin = begin,
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
    trace_message(executor, stage, send, send->begin, kind == MESSAGE_ACTIVATION ? "SEND_ACTIVATION" : "SEND_GRADIENT",
                  TRACE_SEND);
    send->transfer = NULL;
    pool_give(kind == MESSAGE_ACTIVATION ? &stage->outputs : &stage->in_gradients, &send->buffer);
}

/* The rank of the world that has the stage's neighbour. */
static int rank_with(const struct executor *executor, int stage)
{
    const struct grid *grid = executor->grid;
    return grid_rank(grid, schedule_rank_of(executor->schedule, stage), grid->d, grid->t);
}

void executor_progress(void *of)
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

void executor_progress_between(void *of)
{
    struct executor *executor = of;
    double now = clock_seconds();
    if (now - executor->last_progress < PROGRESS_SECONDS)
        return;
    executor_progress(executor);
    executor->last_progress = clock_seconds();
}

/* Posts the receive; false: there is no buffer for it. */
static bool post_receive(struct executor *executor, const struct instruction *item, enum message_kind kind)
{
    const bool activation = kind == MESSAGE_ACTIVATION;
    struct local_stage *stage = local(executor, item->stage);
    struct pool *pool = activation ? &stage->inputs : &stage->out_gradients;
    struct cell *cell = &stage->cells[item->microbatch];
    const int64_t sequences = executor->step->sequences[item->microbatch];
    if (sequences == 0)
        return true;
    if (pool->free_count == 0)
        return false;
    char **buffer = activation ? &cell->input : &cell->out_gradient;
    struct message *message = activation ? &cell->input_message : &cell->gradient_message;
    size_t bytes = activation ? stage_input_bytes(stage->computation, sequences)
                              : stage_output_bytes(stage->computation, sequences);
    int producer = activation ? stage->stage - 1 : stage->stage + 1;
    *buffer = pool_take(pool, "received messages");
    *message = (struct message){.begin = clock_seconds(), .bytes = bytes, .microbatch = item->microbatch};
    struct communicator *comm = channel(executor, kind);
    message->transfer =
        comm->ops->receive(comm, *buffer, bytes, item->peer, message_tag(executor, producer, item->microbatch));
    return true;
}

void executor_post_receives(struct executor *executor)
{
    for (int kind = 0; kind < MESSAGE_KINDS; kind++)
        for (int i = 0; i < INLETS; i++) {
            struct inlet *inlet = &executor->inlets[kind][i];
            while (inlet->received < inlet->count &&
                   post_receive(executor, &executor->list->items[inlet->order[inlet->received]], kind))
                inlet->received++;
        }
}

void executor_finish_receive(struct executor *executor, struct local_stage *stage, enum message_kind kind,
                             struct message *message)
{
    if (!message->transfer)
        return;
    const struct communicator_ops *ops = channel(executor, kind)->ops;
    const bool activation = kind == MESSAGE_ACTIVATION;
    double begin = clock_seconds();
    bool waited = !ops->test(message->transfer);
    if (waited) {
        flight_begin_at(activation ? RECEIVE_ACTIVATION : RECEIVE_GRADIENT, stage->stage, message->microbatch,
                        rank_with(executor, activation ? stage->stage - 1 : stage->stage + 1), (int64_t)message->bytes);
        /* Sends that complete meanwhile give their buffers back. */
        for (int polls = 0; !ops->test(message->transfer); communicator_pause(&polls))
            executor_progress(executor);
        flight_end();
    }
    message->transfer = NULL;
    trace_message(executor, stage, message, message->begin, activation ? "RECEIVE_ACTIVATION" : "RECEIVE_GRADIENT",
                  TRACE_RECEIVE);
    if (waited)
        trace_message(executor, stage, message, begin, activation ? "WAIT_ACTIVATION" : "WAIT_GRADIENT", TRACE_COMPUTE);
}

void executor_expect(struct executor *executor, struct local_stage *stage, enum message_kind kind,
                     struct message *message)
{
    const struct communicator_ops *ops = channel(executor, kind)->ops;
    if (message->transfer && ops->join)
        ops->join(message->transfer);
    else
        executor_finish_receive(executor, stage, kind, message);
}

/* Waits for a send, which is told apart from others that the rank waits for. */
static void wait_for_send(struct executor *executor, struct local_stage *stage, enum message_kind kind,
                          struct message *send)
{
    bool activation = kind == MESSAGE_ACTIVATION;
    double begin = clock_seconds();
    flight_begin_at(activation ? SEND_ACTIVATION : SEND_GRADIENT, stage->stage, send->microbatch,
                    rank_with(executor, activation ? stage->stage + 1 : stage->stage - 1), (int64_t)send->bytes);
    channel(executor, kind)->ops->wait(send->transfer);
    flight_end();
    trace_message(executor, stage, send, begin, "WAIT_SEND", TRACE_COMPUTE);
    finish_send(executor, stage, kind, send);
}

char *executor_send_buffer(struct executor *executor, struct local_stage *stage, enum message_kind kind)
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
        wait_for_send(executor, stage, kind, oldest);
    }
    return pool_take(pool, "messages to be sent");
}

void executor_start_send(struct executor *executor, const struct instruction *item, enum message_kind kind)
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

void executor_finish_sends(struct executor *executor)
{
    for (int chunk = 0; chunk < executor->schedule->chunks; chunk++)
        for (int kind = 0; kind < MESSAGE_KINDS; kind++)
            for (int i = 0; i < SEND_SLOTS; i++) {
                struct message *send = &executor->stages[chunk].sends[kind][i];
                if (send->transfer)
                    wait_for_send(executor, &executor->stages[chunk], kind, send);
            }
}
