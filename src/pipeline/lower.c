#include "pipeline/lower.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/memory.h"
#include "pipeline/validate.h"

enum {
    FORWARD_DONE = 1,
    GRADIENT_DONE = 2
};

struct lowering {
    const struct schedule *from;
    struct schedule *to;
    int64_t *next;       /* [ranks] place of the next computation in the rank's list */
    unsigned char *done; /* [stages * microbatches] of FORWARD_DONE, GRADIENT_DONE */
    int *gradients;      /* [stages] BACKWARD and BACKWARD_WEIGHT so far */
};

static void append(struct lowering *lowering, int rank, enum operation op, int stage, int microbatch, int peer)
{
    schedule_append(lowering->to, rank,
                    (struct instruction){.op = op, .stage = stage, .microbatch = microbatch, .peer = peer});
}

/* The send behind a computation and the receive at the other end, where its output goes to another rank. */
static void append_message(struct lowering *lowering, int rank, struct instruction computed)
{
    int consumer = schedule_consumer(lowering->from, computed);
    int peer = consumer < 0 ? rank : schedule_rank_of(lowering->from, consumer);
    if (peer == rank)
        return;
    bool forward = computed.op == FORWARD;
    append(lowering, rank, forward ? SEND_ACTIVATION : SEND_GRADIENT, computed.stage, computed.microbatch, peer);
    append(lowering, peer, forward ? RECEIVE_ACTIVATION : RECEIVE_GRADIENT, consumer, computed.microbatch, rank);
}

/* Runs the rank's next computation; false when it has none or its input does not exist yet. */
static bool run_one(struct lowering *lowering, int rank)
{
    const struct schedule *from = lowering->from;
    const struct instruction_list *list = &from->lists[rank];
    if (lowering->next[rank] == list->count)
        return false;
    struct instruction now = list->items[lowering->next[rank]];
    int producer = schedule_producer(from, now);
    int result = now.op == FORWARD ? FORWARD_DONE : GRADIENT_DONE;
    if (producer >= 0 && !(lowering->done[schedule_cell(from, producer, now.microbatch)] & result))
        return false;

    append(lowering, rank, now.op, now.stage, now.microbatch, -1);
    append_message(lowering, rank, now);
    if (now.op != BACKWARD_WEIGHT)
        lowering->done[schedule_cell(from, now.stage, now.microbatch)] |= (unsigned char)result;
    if ((now.op == BACKWARD || now.op == BACKWARD_WEIGHT) && ++lowering->gradients[now.stage] == from->microbatches)
        append(lowering, rank, REDUCE_GRADIENTS, now.stage, -1, -1);
    lowering->next[rank]++;
    return true;
}

/* Names the first rank that cannot go on; 0 when all have finished. */
static int check_finished(const struct lowering *lowering, struct err *err)
{
    for (int rank = 0; rank < lowering->from->ranks; rank++) {
        const struct instruction_list *list = &lowering->from->lists[rank];
        int64_t index = lowering->next[rank];
        if (index == list->count)
            continue;
        char text[INSTRUCTION_TEXT_SIZE];
        struct instruction now = list->items[index];
        int producer = schedule_producer(lowering->from, now);
        return err_set(err,
                       "rank %d instruction %" PRId64 " (%s): cannot run in this order: it waits for stage %d on rank "
                       "%d, which waits in a circle for what comes later here",
                       rank, index, instruction_text(now, text), producer, schedule_rank_of(lowering->from, producer));
    }
    return 0;
}

struct schedule *lower_schedule(const struct schedule *computations, struct err *err)
{
    if (validate_computations(computations, err) < 0)
        return NULL;

    int ranks = computations->ranks;
    struct lowering lowering = {
        .from = computations,
        .to = schedule_create(ranks, computations->chunks, computations->microbatches, computations->placement),
        .next = allocate((size_t)ranks, sizeof *lowering.next),
        .done = allocate(schedule_cells(computations), sizeof *lowering.done),
        .gradients = allocate((size_t)computations->stages, sizeof *lowering.gradients)};
    lowering.to->forward_only = computations->forward_only;

    for (bool progress = true; progress;) {
        progress = false;
        for (int rank = 0; rank < ranks; rank++)
            progress |= run_one(&lowering, rank);
    }
    for (int rank = 0; rank < ranks && !computations->forward_only; rank++)
        append(&lowering, rank, OPTIMIZER_STEP, -1, -1, -1);

    int status = check_finished(&lowering, err);
    if (status < 0)
        schedule_destroy(lowering.to);
    free(lowering.next);
    free(lowering.done);
    free(lowering.gradients);
    return status < 0 ? NULL : lowering.to;
}
