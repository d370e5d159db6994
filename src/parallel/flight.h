/* The flight record: what this rank did last and does now, so that when a job hangs or dies the ranks' records tell who
 * waits for whom.
 *
 * The record lies in memory that the ranks of a node share: writing it is a few stores and a look at the clock, no
 * system call and no allocation, and those of the node read it as it is, also when its owner is stopped or dead. For
 * the rest of the job and for those who come later the watchdog writes it into a file once a second
 * (parallel/flight_files.h). That file is not mapped: on a shared file system other nodes would not see what is stored
 * in a mapping, and the trainer would wait whenever the file system writes back a page that it stores to.
 *
 * Instructions nest: a CHECKPOINT_WRITE has AGREEMENTs in it. Only the main thread records. */
#ifndef PARALLEL_FLIGHT_H
#define PARALLEL_FLIGHT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pipeline/instruction.h"

/* What is recorded besides the instructions of a schedule. SUM, MESSAGE and AGREEMENT are waits for other ranks: for
 * a transfer, or in control traffic. */
#define FLIGHT_ACTS(X)  \
    X(OPEN_DATASET)     \
    X(PREPARE)          \
    X(CHECKPOINT_READ)  \
    X(READ_BATCH)       \
    X(TENSOR_SUM)       \
    X(SUM_GRADIENTS)    \
    X(GATHER_WEIGHTS)   \
    X(NORM_AGREEMENT)   \
    X(UPDATE_WEIGHTS)   \
    X(REPLAY)           \
    X(EVALUATE)         \
    X(CHECKPOINT_WRITE) \
    X(DIGEST)           \
    X(WRITE_TRACE)      \
    X(SUMMARIZE)        \
    X(SUM)              \
    X(MESSAGE)          \
    X(AGREEMENT)

/* An instruction of a schedule is enum operation; these go on from there. */
enum flight_act {
    FLIGHT_BEFORE_FIRST = OPTIMIZER_STEP,
#define X(name) FLIGHT_##name,
    FLIGHT_ACTS(X)
#undef X
    FLIGHT_ACT_COUNT
};

/* Transfers of all ranks of a communicator are counted, so that it shows who has not come yet. */
enum flight_count {
    FLIGHT_SUMS,       /* sums, gatherings and scatterings */
    FLIGHT_AGREEMENTS, /* control traffic */
    FLIGHT_COUNTS
};

enum {
    FLIGHT_VERSION = 1,
    FLIGHT_DEPTH = 8,   /* instructions within each other */
    FLIGHT_GROUPS = 24, /* communicators of a rank */
    FLIGHT_RING = 64,   /* instructions that ended, the last ones */
    FLIGHT_HOST = 64
};

/* One instruction, 64 bytes; -1 in step, stage, microbatch, peer, group or bytes: does not apply. */
struct flight_entry {
    double begin, end; /* clock_seconds() of its node; end 0: under way */
    int64_t bytes;     /* of a message */
    uint64_t sequence; /* its number among the group's transfers of its count, from 1; 0: unknown */
    int32_t act, step; /* enum operation or enum flight_act */
    int32_t stage, microbatch;
    int32_t peer, group; /* whom it waits for: a rank of the world, or an index of groups */
    int32_t count;       /* enum flight_count, of the sequence */
    int32_t depth;       /* instructions around it */
};

/* A communicator that this rank belongs to; 32 bytes. */
struct flight_group {
    uint64_t id; /* the same on all its ranks, and of no other communicator; 0: none here */
    uint64_t begun[FLIGHT_COUNTS];
    int32_t size, unused; /* ranks in it */
};

/* The layout of flight-<rank>.record, in the machine's byte order; members lie where C puts them on 64-bit machines,
 * without gaps. Behind the record the file has the names of all acts, by number, each closed by a newline. */
struct flight_record {
    char magic[8];           /* "ppflight" */
    uint32_t version, bytes; /* FLIGHT_VERSION, sizeof(struct flight_record) */
    uint64_t run;            /* of all ranks of one run */
    uint64_t address;        /* of the record in its owner's memory */
    uint64_t beat;           /* +1 each second while the process lives */
    double now, wall;        /* at the last beat: clock_seconds(), seconds since 1970 */
    int32_t rank, size;
    int32_t p, d, t; /* -1 before there is a grid */
    int32_t process;
    char host[FLIGHT_HOST];
    int64_t group_count;

    /* What recording changes. */
    _Atomic uint64_t changes; /* odd: a change is under way */
    uint64_t ended;           /* instructions so far; the last one is ring[(ended - 1) % FLIGHT_RING] */
    double last_end;          /* clock_seconds() */
    int32_t step, depth;      /* of the training; instructions under way, may be more than FLIGHT_DEPTH */
    struct flight_group groups[FLIGHT_GROUPS];
    struct flight_entry open[FLIGHT_DEPTH]; /* under way, the outermost first */
    struct flight_entry ring[FLIGHT_RING];
    uint64_t beat_again; /* differs from beat in a file that was read while it was written */
};

/* "FORWARD", "CHECKPOINT_WRITE"; static. */
const char *flight_name(int act);

/* Whether the entry is a wait for other ranks. */
bool flight_waits(const struct flight_entry *entry);

/* All local, on the main thread. What follows belongs to this step; -1: to none. */
void flight_step(int64_t step);

/* Begins an instruction; stage, microbatch, peer (rank of the world, for messages) and bytes as in the entry. */
void flight_begin(int act);
void flight_begin_at(int act, int stage, int microbatch, int peer, int64_t bytes);

/* Begins a wait for a peer, or for the group's transfer number `sequence` of its count. */
void flight_begin_wait(int act, int peer, int group, enum flight_count count, uint64_t sequence);

/* Ends the innermost instruction. */
void flight_end(void);

/* A place for a communicator of `size` ranks, or -1 when all are taken; and its release, which takes -1 too. */
int flight_group_open(uint64_t id, int size);
void flight_group_close(int group);

/* A transfer of the group begins: its number. */
uint64_t flight_group_begin(int group, enum flight_count count);

/* Who this rank is, for those who read its record. */
void flight_set_place(int p, int d, int t);

/* The record of this process, for the watchdog; and where it lies from now on: memory that starts with a copy of it.
 * NULL: in memory of this process alone again. */
struct flight_record *flight_record(void);
void flight_move(struct flight_record *memory);

/* A copy of a record that its owner may be changing. */
void flight_copy(struct flight_record *copy, const struct flight_record *record);

#endif
