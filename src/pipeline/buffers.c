#include "pipeline/buffers.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Messages of one kind from one rank to another. */
struct channel {
    int64_t sent;
    int64_t consumed;
};

struct run {
    const struct schedule *schedule;
    struct channel (*channels)[2][MESSAGE_KINDS]; /* [ranks] by receiver; from the rank above or the other one */
    int64_t *next;                                /* [ranks] place in the rank's list */
};

static struct run run_create(const struct schedule *schedule)
{
    struct run run = {.schedule = schedule,
                      .channels = allocate((size_t)schedule->ranks, sizeof *run.channels),
                      .next = allocate((size_t)schedule->ranks, sizeof *run.next)};
    return run;
}

static void run_destroy(struct run *run)
{
    free(run->channels);
    free(run->next);
}

static bool finished(const struct run *run, int rank)
{
    return run->next[rank] == run->schedule->lists[rank].count;
}

static struct instruction next_of(const struct run *run, int rank)
{
    return run->schedule->lists[rank].items[run->next[rank]];
}

static bool is_send(enum operation op)
{
    return op == SEND_ACTIVATION || op == SEND_GRADIENT;
}

/* The kind of message that an instruction sends or consumes. */
static enum message_kind kind_of(enum operation op)
{
    return op == SEND_ACTIVATION || op == FORWARD ? MESSAGE_ACTIVATION : MESSAGE_GRADIENT;
}

/* Stages that exchange messages are on neighbouring ranks in every placement. */
static struct channel *channel_of(const struct run *run, int source, int rank, enum message_kind kind)
{
    return &run->channels[rank][source == (rank + 1) % run->schedule->ranks][kind];
}

/* Marks the ranks that can run their next computation; false when there is none. */
static bool find_ready(const struct run *run, bool *ready)
{
    bool any = false;
    for (int rank = 0; rank < run->schedule->ranks; rank++) {
        ready[rank] = false;
        if (finished(run, rank))
            continue;
        struct instruction now = next_of(run, rank);
        int source = schedule_source(run->schedule, now);
        const struct channel *channel = source < 0 ? NULL : channel_of(run, source, rank, kind_of(now.op));
        ready[rank] = !channel || channel->sent > channel->consumed;
        any |= ready[rank];
    }
    return any;
}

/* Runs the rank's next computation, but not what follows. */
static void compute(struct run *run, int rank)
{
    struct instruction now = next_of(run, rank);
    int source = schedule_source(run->schedule, now);
    if (source >= 0)
        channel_of(run, source, rank, kind_of(now.op))->consumed++;
    run->next[rank]++;
}

/* Runs all up to the rank's next computation. */
static void communicate(struct run *run, int rank, int (*receive_depth)[MESSAGE_KINDS])
{
    for (; !finished(run, rank) && !instruction_computes(next_of(run, rank).op); run->next[rank]++) {
        struct instruction now = next_of(run, rank);
        if (!is_send(now.op))
            continue;
        enum message_kind kind = kind_of(now.op);
        struct channel *channel = channel_of(run, rank, now.peer, kind);
        int64_t depth = ++channel->sent - channel->consumed + 1;
        if (receive_depth[now.peer][kind] < depth)
            receive_depth[now.peer][kind] = (int)depth;
    }
}

void buffers_depth(const struct schedule *schedule, int (*receive_depth)[MESSAGE_KINDS])
{
    struct run run = run_create(schedule);
    int ranks = schedule->ranks;
    bool *ready = allocate((size_t)ranks, sizeof *ready);
    memset(receive_depth, 0, (size_t)ranks * sizeof *receive_depth);
    for (int rank = 0; rank < ranks; rank++)
        communicate(&run, rank, receive_depth);
    while (find_ready(&run, ready)) {
        for (int rank = 0; rank < ranks; rank++)
            if (ready[rank])
                compute(&run, rank);
        for (int rank = 0; rank < ranks; rank++)
            if (ready[rank])
                communicate(&run, rank, receive_depth);
    }
    free(ready);
    run_destroy(&run);
}

/* Runs the rank's next instruction with bounded buffers. Returns -1, or the rank that it has to wait for; `reached` is
 * the rank that may go on thereby, or -1. */
static int run_one(struct run *run, int rank, int (*receive_depth)[MESSAGE_KINDS], int send_slots, int *reached)
{
    struct instruction now = next_of(run, rank);
    int source = schedule_source(run->schedule, now);
    *reached = -1;
    if (is_send(now.op)) {
        enum message_kind kind = kind_of(now.op);
        struct channel *channel = channel_of(run, rank, now.peer, kind);
        if (channel->sent >= channel->consumed + receive_depth[now.peer][kind] + send_slots)
            return now.peer;
        channel->sent++;
        *reached = now.peer;
    } else if (source >= 0) {
        struct channel *channel = channel_of(run, source, rank, kind_of(now.op));
        if (channel->consumed == channel->sent)
            return source;
        channel->consumed++;
        *reached = source;
    }
    run->next[rank]++;
    return -1;
}

/* Describes the circle of waiting ranks that `stuck` leads into; waits_for[rank] is set for each rank that waits. */
static int report(const struct run *run, int stuck, const int *waits_for, struct err *err)
{
    int start = stuck; /* after as many hops as there are ranks we are in the circle */
    for (int hop = 0; hop < run->schedule->ranks; hop++)
        start = waits_for[start];

    const int most_shown = 8;
    char circle[1024] = "", text[INSTRUCTION_TEXT_SIZE];
    int rank = start, shown = 0;
    do {
        size_t used = strlen(circle);
        const char *before = shown == 0 ? "" : shown == 1 ? ": deadlock: it waits for " : ", which waits for ";
        if (shown++ < most_shown)
            snprintf(circle + used, sizeof circle - used, "%srank %d instruction %" PRId64 " (%s)", before, rank,
                     run->next[rank], instruction_text(next_of(run, rank), text));
        rank = waits_for[rank];
    } while (rank != start);
    return err_set(err, "%s%s, which waits for rank %d", circle, shown > most_shown ? ", which waits for ..." : "",
                   start);
}

int buffers_check(const struct schedule *schedule, int (*receive_depth)[MESSAGE_KINDS], int send_slots, struct err *err)
{
    struct run run = run_create(schedule);
    size_t ranks = (size_t)schedule->ranks;
    int *awake = allocate(ranks, sizeof *awake); /* stack of the ranks that may be able to go on */
    bool *is_awake = allocate(ranks, sizeof *is_awake);
    int *waits_for = allocate(ranks, sizeof *waits_for); /* rank, or -1 */
    int awake_count = 0;
    for (int rank = schedule->ranks - 1; rank >= 0; rank--) {
        awake[awake_count++] = rank;
        is_awake[rank] = true;
    }
    while (awake_count > 0) {
        int rank = awake[--awake_count];
        is_awake[rank] = false;
        waits_for[rank] = -1;
        while (!finished(&run, rank) && waits_for[rank] < 0) {
            int reached;
            waits_for[rank] = run_one(&run, rank, receive_depth, send_slots, &reached);
            if (reached >= 0 && !is_awake[reached]) {
                awake[awake_count++] = reached;
                is_awake[reached] = true;
            }
        }
    }
    int status = 0;
    for (int rank = 0; rank < schedule->ranks && status == 0; rank++)
        if (!finished(&run, rank))
            status = report(&run, rank, waits_for, err);
    free(awake);
    free(is_awake);
    free(waits_for);
    run_destroy(&run);
    return status;
}
