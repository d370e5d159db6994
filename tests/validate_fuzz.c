/* The validator against tables that were broken at random: it must agree with a small executor that moves real values
 * through the table. */
#include <stdio.h>
#include <stdlib.h>

#include "pipeline/validate.h"
#include "tests/schedule_edit.h"
#include "tests/tap.h"

enum {
    SEND_SLOTS = 2,
    MOST_RANKS = 4,
    MOST_STAGES = 8,
    MOST_MICROBATCHES = 6,
    MOST_MESSAGES = 64
};

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
    switch (any(random, 9)) {
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
    case 8:
        one->op = (enum operation)any(random, OPTIMIZER_STEP + 1);
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
    random_mutations(lowered("gpipe", 3, 4), "gpipe");
    random_mutations(lowered("1f1b", 4, 6), "1f1b");
    random_mutations(lowered("1f1b", 4, 2), "1f1b with M < P");
    random_mutations(lowered("1f1b", 1, 4), "1f1b on one rank");
    random_mutations(lowered("eager-1f1b", 4, 6), "eager-1f1b");
    random_mutations(lowered("zb-h1", 3, 5), "zb-h1");
    random_mutations(lowered("zb-h1", 4, 2), "zb-h1 with M < P");
    random_mutations(chunked("interleaved", 2, 2, 4), "interleaved, 2 chunks");
    random_mutations(chunked("interleaved", 2, 3, 5), "interleaved, 3 chunks");
    random_mutations(chunked("interleaved", 1, 4, 3), "interleaved, 4 chunks on one rank");
    random_mutations(chunked("looped-bfs", 3, 2, 4), "looped-bfs, 2 chunks");
    random_mutations(chunked("looped-bfs", 2, 4, 3), "looped-bfs, 4 chunks");
    random_mutations(chunked("zb-v", 3, 2, 6), "zb-v");
    random_mutations(chunked("v-half", 4, 2, 5), "v-half");
    random_mutations(chunked("v-min", 2, 2, 4), "v-min");
    random_mutations(v_schedule(), "full and split backwards in a V");
    random_mutations(evaluation(2, 3, PLACEMENT_LOOP, 5), "forward only in a loop");
    random_mutations(evaluation(3, 2, PLACEMENT_V, 4), "forward only in a V");
    return tap_done();
}
