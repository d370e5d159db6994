/* The validator against tables that somebody broke: it must name what is wrong, and agree with a small executor that
 * moves real values through the table. */
#include "pipeline/validate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/buffers.h"
#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "tests/tap.h"

enum {
    SEND_SLOTS = 2,
    MOST_RANKS = 4,
    MOST_STAGES = 8,
    MOST_MICROBATCHES = 6,
    MOST_MESSAGES = 64
};

static struct schedule *lowered(const char *name, int ranks, int microbatches)
{
    struct err err;
    struct schedule *schedule = generate_schedule(name, ranks, 1, microbatches, &err);
    struct schedule *result = lower_schedule(schedule, &err);
    schedule_destroy(schedule);
    return result;
}

static struct schedule *copy_of(const struct schedule *schedule)
{
    struct schedule *copy =
        schedule_create(schedule->ranks, schedule->chunks, schedule->microbatches, schedule->placement);
    copy->forward_only = schedule->forward_only;
    for (int rank = 0; rank < schedule->ranks; rank++)
        for (int64_t i = 0; i < schedule->lists[rank].count; i++)
            schedule_append(copy, rank, schedule->lists[rank].items[i]);
    return copy;
}

static void drop(struct schedule *schedule, int rank, int64_t index)
{
    struct instruction_list *list = &schedule->lists[rank];
    list->count--;
    memmove(list->items + index, list->items + index + 1, (size_t)(list->count - index) * sizeof *list->items);
}

static void insert(struct schedule *schedule, int rank, int64_t index, struct instruction instruction)
{
    schedule_append(schedule, rank, instruction);
    struct instruction_list *list = &schedule->lists[rank];
    memmove(list->items + index + 1, list->items + index, (size_t)(list->count - 1 - index) * sizeof *list->items);
    list->items[index] = instruction;
}

static void move(struct schedule *schedule, int rank, int64_t from, int64_t to)
{
    struct instruction instruction = schedule->lists[rank].items[from];
    drop(schedule, rank, from);
    insert(schedule, rank, to, instruction);
}

static void is_refused(struct schedule *schedule, const char *expected, const char *name)
{
    struct err err = {"(accepted)"};
    struct validation *validation = validate_schedule(schedule, SEND_SLOTS, &err);
    is_text(err.text, expected, "%s", name);
    validate_destroy(validation);
    schedule_destroy(schedule);
}

/* 1f1b, P = 2, M = 2:
 * r0: 0F0 0SF0 0F1 0SF1 0RB0 0B0 0RB1 0B1 0REDUCE_GRAD STEP
 * r1: 1RF0 1F0 1RF1 1B0 1SB0 1F1 1B1 1SB1 1REDUCE_GRAD STEP */
static struct schedule *small(void)
{
    return lowered("1f1b", 2, 2);
}

static struct instruction *at(struct schedule *schedule, int rank, int64_t index)
{
    return &schedule->lists[rank].items[index];
}

static void order_on_a_rank(void)
{
    struct schedule *s = small();
    move(s, 0, 0, 2);
    is_refused(s, "rank 0 instruction 0 (0SF0): is sent before it is computed", "a send before its forward");
    s = small();
    move(s, 1, 3, 1);
    is_refused(s, "rank 1 instruction 1 (1B0): its forward is not before it", "a backward before its forward");
    s = small();
    move(s, 1, 4, 3);
    is_refused(s, "rank 1 instruction 3 (1SB0): is sent before it is computed", "a send before its backward");
    s = small();
    move(s, 0, 4, 5);
    is_refused(s, "rank 0 instruction 4 (0B0): its gradient is not there before it", "a gradient received too late");
    s = small();
    drop(s, 1, 2);
    is_refused(s, "rank 1 instruction 4 (1F1): its activation is not there before it", "a receive dropped");
    s = small();
    drop(s, 0, 3);
    is_refused(s, "rank 0: 0SF1 is missing", "a send dropped");
    s = small();
    drop(s, 1, 7);
    is_refused(s, "rank 1: 1SB1 is missing", "the send of a gradient dropped");
    s = small();
    insert(s, 1, 2, *at(s, 1, 1));
    is_refused(s, "rank 1 instruction 2 (1F0): appears a second time", "a forward twice");
    s = small();
    insert(s, 1, 9, *at(s, 1, 0));
    is_refused(s, "rank 1 instruction 9 (1RF0): appears a second time", "a receive twice");
    s = lowered("gpipe", 1, 3);
    drop(s, 0, 1);
    is_refused(s, "rank 0 instruction 3 (0B1): its forward is not before it", "a forward dropped");
    s = lowered("gpipe", 1, 3);
    drop(s, 0, 1);
    drop(s, 0, 3);
    is_refused(s, "rank 0 instruction 4 (0REDUCE_GRAD): is before the last backward of its stage",
               "a microbatch dropped");
    s = small();
    at(s, 1, 3)->op = BACKWARD_WEIGHT;
    is_refused(s, "rank 1 instruction 3 (1W0): its input gradient is not before it", "a weight gradient alone");
    s = small();
    insert(s, 1, 4, (struct instruction){BACKWARD_INPUT, 1, 0, -1});
    is_refused(s, "rank 1 instruction 4 (1I0): is both a full and a split backward", "both backwards");
}

static void ranges(void)
{
    struct schedule *s = small();
    at(s, 0, 2)->stage = 2;
    is_refused(s, "rank 0 instruction 2 (2F1): there are only stages 0 to 1", "a stage there is not");
    s = small();
    at(s, 0, 2)->stage = 1;
    is_refused(s, "rank 0 instruction 2 (1F1): stage 1 is on rank 1", "another rank's stage");
    s = small();
    at(s, 1, 5)->microbatch = 2;
    is_refused(s, "rank 1 instruction 5 (1F2): there are only microbatches 0 to 1", "a microbatch there is not");
    s = small();
    at(s, 1, 5)->microbatch = -1;
    is_refused(s, "rank 1 instruction 5 (1F-1): there are only microbatches 0 to 1", "a negative microbatch");
    s = lowered("1f1b", 3, 3);
    at(s, 1, 2)->peer = 0;
    is_refused(s, "rank 1 instruction 2 (1SF0): its peer is rank 2, not 0", "a wrong peer");
    s = small();
    insert(s, 1, 6, (struct instruction){SEND_ACTIVATION, 1, 1, 0});
    is_refused(s, "rank 1 instruction 6 (1SF1): no other rank has a part in it", "the last stage sends on");
    s = small();
    s->forward_only = true;
    is_refused(s, "rank 0 instruction 4 (0RB0): has no place in a forward-only schedule", "a backward in evaluation");
}

static void end_of_step(void)
{
    struct schedule *s = small();
    drop(s, 1, 9);
    is_refused(s, "rank 1: STEP is missing", "no optimizer step");
    s = small();
    insert(s, 0, 10, *at(s, 0, 9));
    is_refused(s, "rank 0 instruction 9 (STEP): is not the last", "two optimizer steps");
    s = small();
    move(s, 0, 9, 8);
    is_refused(s, "rank 0 instruction 8 (STEP): is not the last", "a reduction after the step");
    s = small();
    move(s, 0, 8, 7);
    is_refused(s, "rank 0 instruction 7 (0REDUCE_GRAD): is before the last backward of its stage",
               "a reduction too early");
    s = small();
    drop(s, 1, 8);
    is_refused(s, "rank 1: 1REDUCE_GRAD is missing", "no reduction");
    s = small();
    insert(s, 1, 8, *at(s, 1, 8));
    is_refused(s, "rank 1 instruction 9 (1REDUCE_GRAD): appears a second time", "two reductions");
}

static void between_ranks(void)
{
    struct schedule *s = small();
    move(s, 0, 1, 3);
    is_refused(s, "rank 0 instruction 2 (0SF1): meets rank 1 instruction 0 (1RF0), the receive of another message",
               "sends in another order than receives");
    s = lowered("gpipe", 2, 2); /* r1: 1RF0 1F0 1RF1 1F1 1B0 ... */
    move(s, 1, 2, 0);
    is_refused(s, "rank 0 instruction 1 (0SF0): meets rank 1 instruction 0 (1RF1), the receive of another message",
               "receives in another order than sends");
    s = lowered("gpipe", 2, 2);
    move(s, 1, 1, 3);
    is_refused(s,
               "rank 1 instruction 2 (1F1): takes its message out of turn: instruction 0 (1RF0) receives another one "
               "first",
               "computed in another order than received");
    s = small(); /* rank 0 wants its first gradient before it sends on; rank 1 wants both forwards before that */
    move(s, 0, 4, 2);
    move(s, 0, 5, 3);
    move(s, 1, 5, 3);
    is_refused(s,
               "rank 0 instruction 3 (0B0): deadlock: it waits for rank 1 instruction 3 (1F1), which waits for rank 0",
               "a circle of waiting ranks");
}

/* A message on its way. */
struct message {
    int stage; /* that consumes it */
    int microbatch;
    unsigned value;
};

/* Everything that the executor knows of a rank pair and kind. */
struct link {
    struct message messages[MOST_MESSAGES];
    struct message receives[MOST_MESSAGES]; /* without values */
    int sent, posted, consumed;
};

struct executor {
    const struct schedule *schedule;
    struct link links[MOST_RANKS][MOST_RANKS][MESSAGE_KINDS];
    unsigned forward[MOST_STAGES][MOST_MICROBATCHES];  /* 0: not computed */
    unsigned gradient[MOST_STAGES][MOST_MICROBATCHES]; /* 0: not computed */
    bool accumulated[MOST_STAGES][MOST_MICROBATCHES];
    bool reduced[MOST_STAGES], stepped[MOST_RANKS];
    int64_t next[MOST_RANKS];
    bool wrong;
};

static unsigned mix(unsigned value, int stage, int microbatch)
{
    value = (value ^ (unsigned)(stage * 64 + microbatch)) * 2654435761u;
    return (value ^ value >> 15) | 1;
}

/* The input of a computation: 0 when it is not there yet. A message in the way of its own is wrong. */
static unsigned fetch(struct executor *x, int rank, struct instruction now, bool forward)
{
    int from = forward ? now.stage - 1 : now.stage + 1;
    if (from < 0 || from == x->schedule->stages)
        return mix(7, now.stage, now.microbatch);
    int source = schedule_rank_of(x->schedule, from);
    if (source == rank)
        return forward ? x->forward[from][now.microbatch] : x->gradient[from][now.microbatch];
    struct link *link = &x->links[source][rank][forward ? MESSAGE_ACTIVATION : MESSAGE_GRADIENT];
    if (link->posted == link->consumed) {
        x->wrong = true; /* nothing was posted for it */
        return 0;
    }
    if (link->sent == link->consumed)
        return 0;
    struct message *message = &link->messages[link->consumed];
    if (message->stage != now.stage || message->microbatch != now.microbatch)
        x->wrong = true;
    link->consumed++;
    return message->value;
}

static bool compute(struct executor *x, int rank, struct instruction now)
{
    unsigned *forward = &x->forward[now.stage][now.microbatch], *gradient = &x->gradient[now.stage][now.microbatch];
    bool *accumulated = &x->accumulated[now.stage][now.microbatch];
    if (now.op == FORWARD || now.op == BACKWARD || now.op == BACKWARD_INPUT) {
        unsigned *result = now.op == FORWARD ? forward : gradient;
        x->wrong |= *result != 0 || (now.op != FORWARD && *forward == 0);
        unsigned input = x->wrong ? 0 : fetch(x, rank, now, now.op == FORWARD);
        if (input == 0)
            return false;
        *result = mix(now.op == FORWARD ? input : input ^ *forward, now.stage, now.microbatch);
    }
    if (now.op == BACKWARD || now.op == BACKWARD_WEIGHT) {
        x->wrong |= *gradient == 0 || *accumulated || x->reduced[now.stage];
        *accumulated = true;
    }
    return true;
}

/* Runs one instruction; false when it has to wait. */
static bool execute_one(struct executor *x, int rank, int (*depth)[MESSAGE_KINDS])
{
    const struct schedule *s = x->schedule;
    struct instruction now = s->lists[rank].items[x->next[rank]];
    bool forward = now.op == SEND_ACTIVATION || now.op == RECEIVE_ACTIVATION;
    int kind = forward ? MESSAGE_ACTIVATION : MESSAGE_GRADIENT;
    struct link *link;
    if (now.op != OPTIMIZER_STEP)
        x->wrong |= now.stage < 0 || now.stage >= s->stages || schedule_rank_of(s, now.stage) != rank;
    if (now.op != OPTIMIZER_STEP && now.op != REDUCE_GRADIENTS)
        x->wrong |= now.microbatch < 0 || now.microbatch >= s->microbatches;
    if (now.op >= SEND_ACTIVATION && now.op <= RECEIVE_GRADIENT)
        x->wrong |= now.peer < 0 || now.peer >= s->ranks || now.peer == rank;
    x->wrong |= x->stepped[rank] || (s->forward_only && now.op != FORWARD && !forward);
    if (x->wrong)
        return false;
    switch (now.op) {
    case FORWARD:
    case BACKWARD:
    case BACKWARD_INPUT:
    case BACKWARD_WEIGHT:
        if (!compute(x, rank, now))
            return false;
        break;
    case SEND_ACTIVATION:
    case SEND_GRADIENT:
        link = &x->links[rank][now.peer][kind];
        unsigned value = (forward ? x->forward : x->gradient)[now.stage][now.microbatch];
        x->wrong |= value == 0 || link->sent == MOST_MESSAGES;
        if (x->wrong || link->sent - link->consumed >= depth[now.peer][kind] + SEND_SLOTS)
            return false;
        link->messages[link->sent++] = (struct message){forward ? now.stage + 1 : now.stage - 1, now.microbatch, value};
        break;
    case RECEIVE_ACTIVATION:
    case RECEIVE_GRADIENT:
        link = &x->links[now.peer][rank][kind];
        link->receives[link->posted++] = (struct message){now.stage, now.microbatch, 0};
        break;
    case REDUCE_GRADIENTS:
        x->wrong |= x->reduced[now.stage];
        for (int m = 0; m < s->microbatches; m++)
            x->wrong |= !x->accumulated[now.stage][m];
        x->reduced[now.stage] = true;
        break;
    case OPTIMIZER_STEP:
        x->stepped[rank] = true;
        break;
    }
    x->next[rank]++;
    return true;
}

/* Whether what was computed, sent and received is all that there should be. */
static bool is_complete(const struct executor *x)
{
    const struct schedule *s = x->schedule;
    bool right = !x->wrong;
    for (int rank = 0; rank < s->ranks; rank++) {
        right &= x->next[rank] == s->lists[rank].count && x->stepped[rank] == !s->forward_only;
        for (int peer = 0; peer < s->ranks; peer++)
            for (int kind = 0; kind < MESSAGE_KINDS; kind++) {
                const struct link *link = &x->links[rank][peer][kind];
                right &= link->sent == link->posted && link->sent == link->consumed;
                for (int i = 0; i < link->sent; i++)
                    right &= link->messages[i].stage == link->receives[i].stage &&
                             link->messages[i].microbatch == link->receives[i].microbatch;
            }
    }
    for (int m = 0; m < s->microbatches; m++) {
        unsigned value = mix(7, 0, m), forward[MOST_STAGES];
        for (int stage = 0; stage < s->stages; stage++) {
            forward[stage] = value = mix(value, stage, m);
            right &= x->forward[stage][m] == value;
        }
        value = mix(7, s->stages - 1, m);
        for (int stage = s->stages - 1; stage >= 0 && !s->forward_only; stage--) {
            value = mix(value ^ forward[stage], stage, m);
            right &= x->gradient[stage][m] == value && x->reduced[stage];
        }
    }
    return right;
}

static unsigned next_random(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

static int any(unsigned *random, int64_t below)
{
    return (int)(next_random(random) % (unsigned)below);
}

/* Runs the table, the ranks in any order; true when it comes to the right end. */
static bool execute(const struct schedule *schedule, int (*depth)[MESSAGE_KINDS], unsigned *random)
{
    struct executor *x = calloc(1, sizeof *x);
    x->schedule = schedule;
    for (bool progress = true; progress && !x->wrong;) {
        progress = false;
        int first = any(random, schedule->ranks), burst = 1 + any(random, 4);
        for (int i = 0; i < schedule->ranks; i++) {
            int rank = (first + i) % schedule->ranks;
            for (int n = 0; n < burst && x->next[rank] < schedule->lists[rank].count; n++)
                progress |= execute_one(x, rank, depth);
        }
    }
    bool right = is_complete(x);
    free(x);
    return right;
}

/* Breaks the table in one random way. */
static void mutate(struct schedule *schedule, unsigned *random)
{
    int rank = any(random, schedule->ranks);
    int64_t count = schedule->lists[rank].count;
    if (count < 2)
        return;
    int64_t a = any(random, count), b = any(random, count);
    struct instruction *one = at(schedule, rank, a);
    switch (any(random, 8)) {
    case 0: /* neighbours change places */
    case 1:
        move(schedule, rank, a < count - 1 ? a : a - 1, a < count - 1 ? a + 1 : a);
        break;
    case 2:
        move(schedule, rank, a, b);
        break;
    case 3:
        drop(schedule, rank, a);
        break;
    case 4:
        insert(schedule, rank, b, *one);
        break;
    case 5:
        one->microbatch = any(random, schedule->microbatches + 2) - 1;
        break;
    case 6:
        one->stage = any(random, schedule->stages + 2) - 1;
        break;
    case 7:
        one->peer = any(random, schedule->ranks + 2) - 1;
        break;
    }
}

/* The validator must accept what the executor brings to the right end, and nothing else. */
static void random_mutations(struct schedule *base, const char *name)
{
    unsigned random = 11;
    int accepted = 0, cases = 6000, unsound = 0, strict = 0;
    int ample[MOST_RANKS][MESSAGE_KINDS];
    for (int rank = 0; rank < MOST_RANKS; rank++)
        ample[rank][0] = ample[rank][1] = MOST_MESSAGES;
    struct err err = {""}, first = {""};
    for (int i = 0; i < cases; i++) {
        struct schedule *schedule = copy_of(base);
        for (int mutations = i % 3; mutations >= 0; mutations--)
            mutate(schedule, &random);
        struct validation *validation = validate_schedule(schedule, SEND_SLOTS, &err);
        bool completes = execute(schedule, validation ? validation->receive_depth : ample, &random);
        accepted += validation != NULL;
        unsound += validation && !completes;
        strict += !validation && completes;
        if (!validation && completes)
            first = err;
        validate_destroy(validation);
        schedule_destroy(schedule);
    }
    ok(unsound == 0, "%s: all %d of %d broken tables that are accepted run to the right end", name, accepted, cases);
    ok(strict == 0, "%s: all that are refused do not %s", name, first.text);
    ok(accepted > cases / 100 && accepted < cases / 2, "%s: some are still right", name);
    schedule_destroy(base);
}

/* Two chunks in a V, P = 2, M = 4; full and split backwards in turn. */
static struct schedule *v_schedule(void)
{
    struct schedule *schedule = schedule_create(2, 2, 4, PLACEMENT_V);
    struct err err;
    for (int rank = 0; rank < 2; rank++)
        for (int i = 0; i < 4 * 6; i++) {
            int m = i / 2 % 4, pass = i / 8; /* forwards, backwards, weights */
            int stage = schedule_stage_of(schedule, rank, pass == 0 ? i % 2 : 1 - i % 2);
            enum operation op = pass == 0 ? FORWARD : m % 2 == 0 ? BACKWARD : BACKWARD_INPUT;
            if (pass == 2)
                op = BACKWARD_WEIGHT;
            if (pass < 2 || m % 2 == 1)
                schedule_append(schedule, rank, (struct instruction){op, stage, m, -1});
        }
    struct schedule *result = lower_schedule(schedule, &err);
    schedule_destroy(schedule);
    return result;
}

static struct schedule *evaluation(int ranks, int chunks, enum placement placement, int microbatches)
{
    struct err err;
    struct schedule *schedule = generate_forward_only(ranks, chunks, placement, microbatches, &err);
    struct schedule *result = lower_schedule(schedule, &err);
    schedule_destroy(schedule);
    return result;
}

int main(void)
{
    order_on_a_rank();
    ranges();
    end_of_step();
    between_ranks();
    random_mutations(lowered("gpipe", 3, 4), "gpipe");
    random_mutations(lowered("1f1b", 4, 6), "1f1b");
    random_mutations(lowered("1f1b", 4, 2), "1f1b with M < P");
    random_mutations(lowered("1f1b", 1, 4), "1f1b on one rank");
    random_mutations(v_schedule(), "full and split backwards in a V");
    random_mutations(evaluation(2, 3, PLACEMENT_LOOP, 5), "forward only in a loop");
    random_mutations(evaluation(3, 2, PLACEMENT_V, 4), "forward only in a V");
    return tap_done();
}
