#include "pipeline/validate.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>

#include "base/memory.h"
#include "pipeline/buffers.h"

/* The operations seen of a (stage, microbatch), as bits; all have one but the last two operations. */
#define SEEN(op) (1u << (op))
#define SEEN_GRADIENT (SEEN(BACKWARD) | SEEN(BACKWARD_INPUT))

struct check {
    const struct schedule *schedule;
    bool lowered;
    unsigned char *seen; /* [stages * microbatches] */
    int *left;           /* [stages] backwards to come; -1 once the gradients are reduced */
    struct err *err;
};

static int broken(struct err *err, const struct schedule *schedule, int rank, int64_t index, const char *format, ...)
    PRINTF_LIKE(5, 6);

static int broken(struct err *err, const struct schedule *schedule, int rank, int64_t index, const char *format, ...)
{
    char rule[256], text[INSTRUCTION_TEXT_SIZE];
    va_list list;
    va_start(list, format);
    vsnprintf(rule, sizeof rule, format, list);
    va_end(list);
    return err_set(err, "rank %d instruction %" PRId64 " (%s): %s", rank, index,
                   instruction_text(schedule->lists[rank].items[index], text), rule);
}

/* Of a send or receive: the stage at the other end, -1 where the message cannot exist. */
static int other_stage(const struct schedule *schedule, struct instruction now)
{
    int other = now.op == SEND_ACTIVATION || now.op == RECEIVE_GRADIENT ? now.stage + 1 : now.stage - 1;
    return other < schedule->stages ? other : -1;
}

static int check_range(const struct check *check, int rank, int64_t index)
{
    const struct schedule *schedule = check->schedule;
    struct instruction now = schedule->lists[rank].items[index];
    bool computes = instruction_computes(now.op);
    if (!check->lowered && !computes)
        return broken(check->err, schedule, rank, index, "not a computation");
    if (schedule->forward_only && now.op != FORWARD && now.op != SEND_ACTIVATION && now.op != RECEIVE_ACTIVATION)
        return broken(check->err, schedule, rank, index, "has no place in a forward-only schedule");
    if (now.op == OPTIMIZER_STEP)
        return 0;
    if (now.stage < 0 || now.stage >= schedule->stages)
        return broken(check->err, schedule, rank, index, "there are only stages 0 to %d", schedule->stages - 1);
    if (schedule_rank_of(schedule, now.stage) != rank)
        return broken(check->err, schedule, rank, index, "stage %d is on rank %d", now.stage,
                      schedule_rank_of(schedule, now.stage));
    if (now.op == REDUCE_GRADIENTS)
        return 0;
    if (now.microbatch < 0 || now.microbatch >= schedule->microbatches)
        return broken(check->err, schedule, rank, index, "there are only microbatches 0 to %d",
                      schedule->microbatches - 1);
    if (computes)
        return 0;
    int other = other_stage(schedule, now), peer = other < 0 ? rank : schedule_rank_of(schedule, other);
    if (peer == rank)
        return broken(check->err, schedule, rank, index, "no other rank has a part in it");
    if (now.peer != peer)
        return broken(check->err, schedule, rank, index, "its peer is rank %d, not %d", peer, now.peer);
    return 0;
}

/* Whether the input of a computation is at hand on its rank; where the table has no messages, from elsewhere always. */
static bool has_input(const struct check *check, struct instruction now)
{
    const struct schedule *schedule = check->schedule;
    int producer = schedule_producer(schedule, now);
    if (producer < 0)
        return true;
    if (schedule_source(schedule, now) < 0)
        return check->seen[schedule_cell(schedule, producer, now.microbatch)] &
               (now.op == FORWARD ? SEEN(FORWARD) : SEEN_GRADIENT);
    return !check->lowered || (check->seen[schedule_cell(schedule, now.stage, now.microbatch)] &
                               (now.op == FORWARD ? SEEN(RECEIVE_ACTIVATION) : SEEN(RECEIVE_GRADIENT)));
}

/* The rule that an instruction other than the last two breaks by its place on its own rank, or NULL. */
static const char *order_rule(const struct check *check, struct instruction now, unsigned seen)
{
    if (seen & SEEN(now.op))
        return "appears a second time";
    switch (now.op) {
    case FORWARD:
        return has_input(check, now) ? NULL : "its activation is not there before it";
    case BACKWARD:
    case BACKWARD_INPUT:
        if (!(seen & SEEN(FORWARD)))
            return "its forward is not before it";
        if (seen & SEEN_GRADIENT)
            return "is both a full and a split backward";
        return has_input(check, now) ? NULL : "its gradient is not there before it";
    case BACKWARD_WEIGHT:
        return seen & SEEN(BACKWARD_INPUT) ? NULL : "its input gradient is not before it";
    case SEND_ACTIVATION:
        return seen & SEEN(FORWARD) ? NULL : "is sent before it is computed";
    case SEND_GRADIENT:
        return seen & SEEN_GRADIENT ? NULL : "is sent before it is computed";
    case RECEIVE_ACTIVATION: /* one that comes too late is missing at its use */
    case RECEIVE_GRADIENT:
    case REDUCE_GRADIENTS:
    case OPTIMIZER_STEP:
        break;
    }
    return NULL;
}

static int check_instruction(struct check *check, int rank, int64_t index)
{
    const struct instruction_list *list = &check->schedule->lists[rank];
    struct instruction now = list->items[index];
    if (check_range(check, rank, index) < 0)
        return -1;
    if (now.op == OPTIMIZER_STEP)
        return index == list->count - 1 ? 0 : broken(check->err, check->schedule, rank, index, "is not the last");
    if (now.op == REDUCE_GRADIENTS) {
        if (check->left[now.stage] != 0)
            return broken(check->err, check->schedule, rank, index, "%s",
                          check->left[now.stage] < 0 ? "appears a second time"
                                                     : "is before the last backward of its stage");
        check->left[now.stage] = -1;
        return 0;
    }
    unsigned char *seen = &check->seen[schedule_cell(check->schedule, now.stage, now.microbatch)];
    const char *rule = order_rule(check, now, *seen);
    if (rule)
        return broken(check->err, check->schedule, rank, index, "%s", rule);
    *seen |= (unsigned char)SEEN(now.op);
    if (now.op == BACKWARD || now.op == BACKWARD_WEIGHT)
        check->left[now.stage]--;
    return 0;
}

/* Nothing may be missing of a (stage, microbatch). */
static int check_complete(const struct check *check, int rank, int stage, int microbatch)
{
    const struct schedule *schedule = check->schedule;
    unsigned seen = check->seen[schedule_cell(schedule, stage, microbatch)];
    if (!(seen & SEEN(FORWARD)))
        return err_set(check->err, "rank %d: %dF%d is missing", rank, stage, microbatch);
    if (!schedule->forward_only && !(seen & SEEN_GRADIENT))
        return err_set(check->err, "rank %d: %dB%d, or %dI%d and %dW%d, is missing", rank, stage, microbatch, stage,
                       microbatch, stage, microbatch);
    if (seen & SEEN(BACKWARD_INPUT) && !(seen & SEEN(BACKWARD_WEIGHT)))
        return err_set(check->err, "rank %d: %dW%d is missing", rank, stage, microbatch);
    if (!check->lowered)
        return 0;
    /* a receive that is missing was found at its consumer */
    for (int op = SEND_ACTIVATION; op <= SEND_GRADIENT; op += SEND_GRADIENT - SEND_ACTIVATION) {
        int other = other_stage(schedule, (struct instruction){.op = (enum operation)op, .stage = stage});
        bool needed = other >= 0 && schedule_rank_of(schedule, other) != rank &&
                      (op == SEND_ACTIVATION || !schedule->forward_only);
        if (needed && !(seen & SEEN(op)))
            return err_set(check->err, "rank %d: %d%s%d is missing", rank, stage,
                           instruction_symbol((enum operation)op), microbatch);
    }
    return 0;
}

static int check_rank(struct check *check, int rank)
{
    const struct schedule *schedule = check->schedule;
    const struct instruction_list *list = &schedule->lists[rank];
    for (int64_t index = 0; index < list->count; index++)
        if (check_instruction(check, rank, index) < 0)
            return -1;
    for (int chunk = 0; chunk < schedule->chunks; chunk++) {
        int stage = schedule_stage_of(schedule, rank, chunk);
        for (int microbatch = 0; microbatch < schedule->microbatches; microbatch++)
            if (check_complete(check, rank, stage, microbatch) < 0)
                return -1;
        if (check->lowered && !schedule->forward_only && check->left[stage] >= 0)
            return err_set(check->err, "rank %d: %d%s is missing", rank, stage, instruction_symbol(REDUCE_GRADIENTS));
    }
    if (check->lowered && !schedule->forward_only &&
        (list->count == 0 || list->items[list->count - 1].op != OPTIMIZER_STEP))
        return err_set(check->err, "rank %d: %s is missing", rank, instruction_symbol(OPTIMIZER_STEP));
    return 0;
}

/* The rules that each rank's list keeps or breaks by itself. */
static int check_ranks(const struct schedule *schedule, bool lowered, struct err *err)
{
    struct check check = {.schedule = schedule,
                          .lowered = lowered,
                          .seen = allocate(schedule_cells(schedule), sizeof *check.seen),
                          .left = allocate((size_t)schedule->stages, sizeof *check.left),
                          .err = err};
    for (int stage = 0; stage < schedule->stages; stage++)
        check.left[stage] = schedule->microbatches;
    int status = 0;
    for (int rank = 0; rank < schedule->ranks && status == 0; rank++)
        status = check_rank(&check, rank);
    free(check.seen);
    free(check.left);
    return status;
}

int validate_computations(const struct schedule *schedule, struct err *err)
{
    return check_ranks(schedule, false, err);
}

/* The next place from `index` on of a send or receive with the peer. */
static int64_t next_message(const struct instruction_list *list, int64_t index, enum operation op, int peer)
{
    while (index < list->count && (list->items[index].op != op || list->items[index].peer != peer))
        index++;
    return index;
}

/* The next place from `index` on of a computation that takes a message of this kind from the source. */
static int64_t next_use(const struct schedule *schedule, int rank, int64_t index, enum message_kind kind, int source)
{
    const struct instruction_list *list = &schedule->lists[rank];
    for (; index < list->count; index++) {
        struct instruction now = list->items[index];
        bool takes = kind == MESSAGE_ACTIVATION ? now.op == FORWARD : now.op == BACKWARD || now.op == BACKWARD_INPUT;
        if (takes && schedule_source(schedule, now) == source)
            break;
    }
    return index;
}

/* Messages of one kind between two ranks: the k-th sent is the k-th received and the k-th consumed. Each has exactly
 * one of the three instructions, so all run out together. */
static int check_channel(const struct schedule *schedule, int source, int rank, enum message_kind kind, struct err *err)
{
    enum operation send = kind == MESSAGE_ACTIVATION ? SEND_ACTIVATION : SEND_GRADIENT;
    enum operation receive = kind == MESSAGE_ACTIVATION ? RECEIVE_ACTIVATION : RECEIVE_GRADIENT;
    int step = kind == MESSAGE_ACTIVATION ? 1 : -1; /* from the sender's stage to the receiver's */
    const struct instruction_list *from = &schedule->lists[source], *list = &schedule->lists[rank];
    int64_t sent = -1, received = -1, used = -1;
    for (;;) {
        sent = next_message(from, sent + 1, send, rank);
        received = next_message(list, received + 1, receive, source);
        used = next_use(schedule, rank, used + 1, kind, source);
        if (sent == from->count || received == list->count || used == list->count)
            return 0;
        struct instruction a = from->items[sent], b = list->items[received], c = list->items[used];
        char text[INSTRUCTION_TEXT_SIZE];
        if (a.stage + step != b.stage || a.microbatch != b.microbatch)
            return broken(err, schedule, source, sent,
                          "meets rank %d instruction %" PRId64 " (%s), the receive of another message", rank, received,
                          instruction_text(b, text));
        if (b.stage != c.stage || b.microbatch != c.microbatch)
            return broken(err, schedule, rank, used,
                          "takes its message out of turn: instruction %" PRId64 " (%s) receives another one first",
                          received, instruction_text(b, text));
    }
}

static int check_channels(const struct schedule *schedule, struct err *err)
{
    int ranks = schedule->ranks;
    for (int rank = 0; rank < ranks; rank++) {
        int below = (rank + ranks - 1) % ranks, above = (rank + 1) % ranks;
        for (int kind = 0; kind < MESSAGE_KINDS; kind++) {
            if (below != rank && check_channel(schedule, below, rank, (enum message_kind)kind, err) < 0)
                return -1;
            if (above != below && check_channel(schedule, above, rank, (enum message_kind)kind, err) < 0)
                return -1;
        }
    }
    return 0;
}

static void raise_to(int *peak, int value)
{
    if (*peak < value)
        *peak = value;
}

/* What is alive of each stage, and its last microbatch in either half of the backward. */
struct alive {
    int *sets, *pending, *last_input, *last_weight; /* [stages] */
};

/* Follows one rank's list. */
static void measure_rank(const struct schedule *schedule, int rank, const struct alive *stages,
                         struct validation *validation)
{
    int alive = 0;
    const struct instruction_list *list = &schedule->lists[rank];
    for (int64_t index = 0; index < list->count; index++) {
        struct instruction now = list->items[index];
        if (now.op == FORWARD) {
            raise_to(&validation->peak_sets[now.stage], ++stages->sets[now.stage]);
            raise_to(&validation->rank_peak_sets[rank], ++alive);
        }
        if (now.op == BACKWARD || now.op == BACKWARD_INPUT) {
            raise_to(&validation->peak_pending[now.stage], ++stages->pending[now.stage]);
            validation->ascending &= now.microbatch > stages->last_input[now.stage];
            stages->last_input[now.stage] = now.microbatch;
        }
        if (now.op == BACKWARD || now.op == BACKWARD_WEIGHT) {
            validation->ascending &= now.microbatch > stages->last_weight[now.stage];
            stages->last_weight[now.stage] = now.microbatch;
            stages->pending[now.stage]--;
        }
        if (now.op == BACKWARD || now.op == BACKWARD_WEIGHT || (now.op == FORWARD && schedule->forward_only)) {
            stages->sets[now.stage]--;
            alive--;
        }
    }
}

static struct validation *measure(const struct schedule *schedule)
{
    size_t stages = (size_t)schedule->stages, ranks = (size_t)schedule->ranks;
    struct validation *validation = allocate(1, sizeof *validation);
    *validation = (struct validation){
        .peak_sets = allocate(stages, sizeof *validation->peak_sets),
        .peak_pending = allocate(stages, sizeof *validation->peak_pending),
        .rank_peak_sets = allocate(ranks, sizeof *validation->rank_peak_sets),
        .receive_depth = allocate(ranks, sizeof *validation->receive_depth),
        .ascending = true,
    };
    struct alive alive = {.sets = allocate(stages, sizeof(int)),
                          .pending = allocate(stages, sizeof(int)),
                          .last_input = allocate(stages, sizeof(int)),
                          .last_weight = allocate(stages, sizeof(int))};
    for (int stage = 0; stage < schedule->stages; stage++)
        alive.last_input[stage] = alive.last_weight[stage] = -1;
    for (int rank = 0; rank < schedule->ranks; rank++)
        measure_rank(schedule, rank, &alive, validation);
    buffers_depth(schedule, validation->receive_depth);
    free(alive.sets);
    free(alive.pending);
    free(alive.last_input);
    free(alive.last_weight);
    return validation;
}

struct validation *validate_schedule(const struct schedule *schedule, int send_slots, struct err *err)
{
    if (check_ranks(schedule, true, err) < 0 || check_channels(schedule, err) < 0)
        return NULL;
    struct validation *validation = measure(schedule);
    if (buffers_check(schedule, validation->receive_depth, send_slots, err) < 0) {
        validate_destroy(validation);
        return NULL;
    }
    return validation;
}

void validate_destroy(struct validation *validation)
{
    if (!validation)
        return;
    free(validation->peak_sets);
    free(validation->peak_pending);
    free(validation->rank_peak_sets);
    free(validation->receive_depth);
    free(validation);
}
