/* The interpreter's own state, shared by its files: executor.c makes it, executor_messages.c sends and receives,
 * executor_run.c runs the list, executor_queue.c keeps up with a device that works behind the host, executor_trace.c
 * marks recomputation. */
#ifndef RUN_EXECUTOR_STATE_H
#define RUN_EXECUTOR_STATE_H

#include "run/executor.h"
#include "run/pool.h"

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

/* The receives of one kind from one rank, in the order of the list, which is the order of sending. */
struct inlet {
    int peer;       /* pipeline rank */
    int64_t *order; /* places in the list */
    int count, received;
};

/* Neighbours that a rank receives messages of one kind from. */
#define INLETS 2

/* Computations that a device may have before it, so that it need not wait for the host: with more, the host would know
 * no better what the device is at. */
#define QUEUED_AHEAD 4

struct local_stage {
    int stage;
    struct stage *computation;
    struct stage_slots slots;
    struct pool sets, pending, inputs, outputs, out_gradients, in_gradients;
    struct cell *cells; /* [microbatches] */
    struct message sends[MESSAGE_KINDS][SEND_SLOTS];
    const int32_t *fields[LAYER_MAX_FIELDS];
    int field_of[LAYER_MAX_FIELDS]; /* in executor_field_names */
    bool begun_forward;             /* in this step */
    bool begun_input, begun_weight; /* a gradient was written in this step: accumulate */
};

struct executor {
    const struct grid *grid;
    const struct schedule *schedule;
    const struct instruction_list *list;
    struct context context;
    struct local_stage *stages;                 /* [chunks] */
    char *memory;                               /* executor_bytes() */
    struct inlet inlets[MESSAGE_KINDS][INLETS]; /* peer -1: none */
    int32_t
        *fields[EXECUTOR_FIELDS]; /* [microbatches, rows] the batch in the device's memory, where the host's is not */
    int64_t queue[QUEUED_AHEAD];  /* places of computations that the device may still be at, oldest first */
    int queued;
    char (*activities)[64]; /* [list->count] what the rank is doing, for messages */
    struct event **events;  /* [2 * list->count] begin and end of computations, NULL for others */
    double (*times)[2];     /* [list->count] begin and end of computations of the last run */
    float *losses;          /* [microbatches, rows] */
    int64_t rows;           /* tokens of a full microbatch */
    int64_t sequence;
    const struct executor_step *step;
    int sets_in_use, peak_sets;
    double last_progress; /* between matmuls, clock_seconds() */

    /* For a trace: where recomputation begins and ends, by turns. */
    int64_t now;          /* place in the list of the computation under way */
    struct event **marks; /* [mark_room] */
    int64_t *marked;      /* [mark_room] `now` of each mark */
    int64_t mark_room, mark_count;
};

static inline struct local_stage *local(const struct executor *executor, int stage)
{
    return &executor->stages[stage / executor->schedule->ranks];
}

static inline bool on_this_rank(const struct executor *executor, int stage)
{
    return stage >= 0 && stage < executor->schedule->stages &&
           schedule_rank_of(executor->schedule, stage) == executor->grid->p;
}

/* Each pool of buffers of the stage. */
static inline void each_pool(struct local_stage *stage, void (*apply)(struct pool *pool))
{
    struct pool *pools[] = {&stage->sets,    &stage->pending,       &stage->inputs,
                            &stage->outputs, &stage->out_gradients, &stage->in_gradients};
    for (size_t i = 0; i < sizeof pools / sizeof *pools; i++)
        apply(pools[i]);
}

/* Posts as many receives as there are buffers, in the order of the list. */
void executor_post_receives(struct executor *executor);

/* What is computed from here on comes behind a message that was posted, if any: waits for it where the host moves it.
 */
void executor_expect(struct executor *executor, struct local_stage *stage, enum message_kind kind,
                     struct message *message);

/* Waits for it, if it is still under way. */
void executor_finish_receive(struct executor *executor, struct local_stage *stage, enum message_kind kind,
                             struct message *message);

/* The computation at this place of the list is queued. Waits for the oldest ones where there are more than
 * QUEUED_AHEAD. */
void executor_queue(struct executor *executor, int64_t index);

/* Waits until the device has done all computations. */
void executor_empty_queue(struct executor *executor);

/* A free buffer for a message to be sent; waits for the oldest send of that kind when all are under way. */
char *executor_send_buffer(struct executor *executor, struct local_stage *stage, enum message_kind kind);

/* Starts the send that the instruction asks for, from the buffer that the computation before has filled. */
void executor_start_send(struct executor *executor, const struct instruction *item, enum message_kind kind);

/* Waits for all sends. */
void executor_finish_sends(struct executor *executor);

/* Frees what executor_begin_trace has made. */
void executor_end_trace(struct executor *executor);

/* Puts what recomputed in the last run into the trace. */
void executor_trace_marks(const struct executor *executor);

/* Called where a recomputation begins or ends, `of` is the executor. */
void executor_mark(void *of);

/* Lets messages move and notes which sends are through; `of` is the executor. */
void executor_progress(void *of);

/* The same, to be called between matmuls: not again within a time in which no message gets far, since a look at all
 * that is under way takes as long as a small matmul. */
#define PROGRESS_SECONDS 1e-4
void executor_progress_between(void *of);

#endif
