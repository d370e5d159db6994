/* Who keeps a job that hangs, from records that are made up: chains of messages, groups that some ranks have not come
 * to, deadlocks, ranks without a record, and more ranks than are listed. */
#include "parallel/verdict.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "tap.h"

enum {
    MOST = 40,
    PAIR = 100, /* and those behind it: ids of groups */
    ALL = 9
};

static struct sighting *sightings;
static struct finding_of_rank found[MOST];
static int size;

/* All ranks live and do nothing at all. */
static void begin(int ranks)
{
    size = ranks;
    memset(sightings, 0, MOST * sizeof *sightings);
    for (int rank = 0; rank < ranks; rank++) {
        struct flight_record *record = &sightings[rank].record;
        sightings[rank].is_there = sightings[rank].lives = true;
        *record = (struct flight_record){.rank = rank, .size = ranks, .p = rank, .step = 3, .now = 100, .wall = 1000};
        record->last_end = 90;
        snprintf(record->host, sizeof record->host, "node%d", rank / 2);
        record->process = 500 + rank;
    }
}

static struct flight_entry *add(int rank, int act)
{
    struct flight_record *record = &sightings[rank].record;
    struct flight_entry *entry = &record->open[record->depth];
    *entry = (struct flight_entry){.begin = 90 + record->depth,
                                   .bytes = -1,
                                   .act = act,
                                   .step = 3,
                                   .stage = -1,
                                   .microbatch = -1,
                                   .peer = -1,
                                   .group = -1,
                                   .depth = record->depth};
    record->depth++;
    return entry;
}

static void receives(int rank, int peer, int microbatch)
{
    struct flight_entry *entry = add(rank, RECEIVE_ACTIVATION);
    entry->stage = rank;
    entry->microbatch = microbatch;
    entry->peer = peer;
}

/* The rank has begun so many sums of the group, and waits in the last one. */
static void joins(int rank, uint64_t id, uint64_t begun, bool waits)
{
    struct flight_record *record = &sightings[rank].record;
    int group = (int)record->group_count++;
    record->groups[group] = (struct flight_group){.id = id, .begun = {begun}};
    if (waits) {
        struct flight_entry *entry = add(rank, FLIGHT_SUM);
        entry->group = group;
        entry->sequence = begun;
    }
}

/* The verdict, with so many causes; its text. */
static struct text judge(const char *name, int causes)
{
    struct text out = {0};
    verdict_find(sightings, size, found);
    verdict_print(sightings, size, found, 1000.5, &out);
    int counted = 0;
    for (int rank = 0; rank < size; rank++)
        counted += found[rank].is_cause;
    ok(counted == causes, "%s: %d causes", name, causes);
    return out;
}

static void says(struct text *out, const char *part)
{
    if (!ok(strstr(text_string(out), part), "%s", part))
        tap_note("%s", text_string(out));
}

/* 4 -> 3 -> 2 -> 1, which computes; 0 waits for none and none for it. */
static void chain(bool stopped)
{
    begin(5);
    for (int rank = 2; rank < 5; rank++)
        receives(rank, rank - 1, 7);
    struct flight_entry *entry = add(1, FORWARD);
    entry->stage = 1;
    entry->microbatch = 7;
    sightings[1].lives = !stopped;
    sightings[1].record.wall = stopped ? 990 : 1000;
    sightings[1].record.now = stopped ? 91 : 100;
    struct text out = judge(stopped ? "a chain to a stopped rank" : "a chain to a rank that works", 1);
    ok(found[1].is_cause && found[1].waiters == 3 && found[4].waits_for == 3, "its end is the cause");
    says(&out, stopped ? "  rank 1 (p1 d0 t0) is stopped or dead, without a sign of life for 10.5 s, in step 3 FORWARD "
                         "stage 1 microbatch 7, for 11.5 s; 3 ranks wait for it\n"
                       : "  rank 1 (p1 d0 t0) does not come to an end with step 3 FORWARD stage 1 microbatch 7, for "
                         "10.5 s (if that may take so long, raise &run hang_seconds); 3 ranks wait for it\n");
    says(&out, "    rank 4 (p4 d0 t0), node2 process 504: step 3 RECEIVE_ACTIVATION stage 4 microbatch 7, for 10.5 s; "
               "waits for rank 3\n");
    text_fini(&out);
}

/* Ranks 0 to 3 sum; rank 2 has not come, because it waits for a message of rank 4, which is dead. */
static void missing_member(void)
{
    begin(5);
    for (int rank = 0; rank < 4; rank++)
        joins(rank, ALL, rank == 2 ? 11 : 12, rank != 2);
    receives(2, 4, 1);
    sightings[4].lives = false;
    add(4, FLIGHT_CHECKPOINT_WRITE);
    struct text out = judge("a sum that one has not come to", 1);
    ok(found[0].waits_for == 2 && found[1].waits_for == 2 && found[3].waits_for == 2 && found[2].waits_for == 4,
       "the others wait for that one");
    says(&out, "rank 4 (p4 d0 t0) is stopped or dead");
    says(&out, "CHECKPOINT_WRITE, for 10.5 s; 4 ranks wait for it\n");
    text_fini(&out);
}

/* All have begun the sum; one stands still in it, another group of the same ranks goes on elsewhere. */
static void all_there(void)
{
    begin(4);
    for (int rank = 0; rank < 4; rank++) {
        joins(rank, PAIR + (uint64_t)rank, 3, false);
        joins(rank, ALL, 5, true);
    }
    sightings[3].lives = false;
    struct text out = judge("a sum that all have begun", 1);
    ok(found[0].waits_for == 3 && found[3].is_cause && found[3].waiters == 3, "they wait for the one that is stopped");
    text_fini(&out);
}

/* 1 -> 2 -> 3 -> 1, and 0 -> 1; rank 3 has sent what rank 1 waits for. */
static void deadlock(void)
{
    begin(4);
    receives(1, 3, 5);
    receives(2, 1, 0);
    receives(3, 2, 0);
    receives(0, 1, 2);
    struct flight_record *sender = &sightings[3].record;
    sender->ring[0] = (struct flight_entry){
        .begin = 88, .end = 89, .act = SEND_ACTIVATION, .step = 3, .stage = 0, .microbatch = 5, .peer = 1, .group = -1};
    sender->ended = 1;
    struct text out = judge("a deadlock", 3);
    says(&out, "  deadlock: rank 1 (p1 d0 t0) waits for rank 3 (p3 d0 t0) waits for rank 2 (p2 d0 t0) waits for rank 1 "
               "(p1 d0 t0)\n");
    says(&out, "  a message is lost: rank 3 did SEND_ACTIVATION stage 0 microbatch 5 to rank 1 12.5 s ago, and rank 1 "
               "still waits for it\n");
    ok(!strstr(text_string(&out), "rank 1 did") && !strstr(text_string(&out), "rank 2 did"), "no other message is");
    text_fini(&out);

    begin(4);
    receives(1, 3, 5);
    receives(3, 1, 0);
    sender->ring[0].step = 2;
    sender->ended = 1;
    out = judge("another message was sent", 2);
    ok(!strstr(text_string(&out), "is lost"), "which is not the one");
    text_fini(&out);
}

static void unknown(void)
{
    begin(3);
    receives(0, 2, 0);
    receives(1, 0, 0);
    sightings[2].is_there = sightings[2].lives = false;
    struct text out = judge("a rank without a record", 1);
    says(&out, "  rank 2 has left no record; 2 ranks wait for it\n");
    text_fini(&out);

    begin(1);
    add(0, FLIGHT_EVALUATE);
    add(0, FORWARD)->stage = 0;
    out = judge("one rank alone", 1);
    says(&out, "rank 0 (p0 d0 t0) does not come to an end with step 3 EVALUATE: FORWARD stage 0, for 9.5 s");
    text_fini(&out);
}

static void many(void)
{
    begin(MOST);
    for (int rank = 0; rank < MOST; rank++)
        if (rank != 31)
            receives(rank, 31, rank);
    struct text out = judge("many ranks", 1);
    says(&out, "    rank 15 (p15 d0 t0)");
    says(&out, "    rank 31 (p31 d0 t0), node15 process 531: step 3 after its start, for 10.5 s; works\n");
    says(&out, "    and 23 more\n");
    ok(!strstr(text_string(&out), "rank 16 (p16"), "16 of those that wait are listed");
    text_fini(&out);
}

/* An instruction within others, deeper than there is room for; the ring turns over. */
static void recording(void)
{
    struct flight_record copy;
    flight_step(9);
    for (int i = 0; i < 100; i++) {
        flight_begin_at(FORWARD, 1, i, -1, 4);
        flight_end();
    }
    for (int i = 0; i < FLIGHT_DEPTH + 3; i++)
        flight_begin(FLIGHT_EVALUATE);
    flight_copy(&copy, flight_record());
    ok(copy.depth == FLIGHT_DEPTH + 3 && copy.open[FLIGHT_DEPTH - 1].act == FLIGHT_EVALUATE && copy.ended == 100 &&
           copy.changes % 2 == 0,
       "instructions within each other");
    for (int i = 0; i < FLIGHT_DEPTH + 3; i++)
        flight_end();
    flight_copy(&copy, flight_record());
    const struct flight_entry *last = &copy.ring[(copy.ended - 1) % FLIGHT_RING];
    ok(copy.depth == 0 && copy.ended == 100 + FLIGHT_DEPTH && last->act == FLIGHT_EVALUATE && last->depth == 0 &&
           last->end >= last->begin && copy.last_end == last->end,
       "each of them that there was room for ends in the ring");
    const struct flight_entry *before = &copy.ring[99 % FLIGHT_RING];
    ok(before->act == FORWARD && before->microbatch == 99 && before->stage == 1 && before->bytes == 4 &&
           before->step == 9,
       "behind those before");
    bool named = true;
    for (int act = 0; act < FLIGHT_ACT_COUNT; act++)
        named = named && strlen(flight_name(act)) > 2;
    ok(named && strcmp(flight_name(FORWARD), "FORWARD") == 0 &&
           strcmp(flight_name(FLIGHT_AGREEMENT), "AGREEMENT") == 0 && FLIGHT_AGREEMENT + 1 == FLIGHT_ACT_COUNT,
       "every act has its name");
}

int main(void)
{
    sightings = allocate(MOST, sizeof *sightings);
    chain(false);
    chain(true);
    missing_member();
    all_there();
    deadlock();
    unknown();
    many();
    recording();
    free(sightings);
    return tap_done();
}
