#include "parallel/flight.h"

#include <string.h>

#include "base/error.h"
#include "base/trace.h"

_Static_assert(sizeof(struct flight_entry) == 64 && sizeof(struct flight_group) == 32, "the layout that is documented");

static struct flight_record own = {.magic = "ppflight", /* closed by no zero */
                                   .version = FLIGHT_VERSION,
                                   .bytes = sizeof(struct flight_record),
                                   .p = -1,
                                   .d = -1,
                                   .t = -1,
                                   .step = -1};
static struct flight_record *record = &own;

static const char *const names[] = {
#define X(name) #name,
    FLIGHT_ACTS(X)
#undef X
};

const char *flight_name(int act)
{
    return act <= FLIGHT_BEFORE_FIRST ? instruction_name((enum operation)act) : names[act - FLIGHT_BEFORE_FIRST - 1];
}

bool flight_waits(const struct flight_entry *entry)
{
    return entry->peer >= 0 || entry->group >= 0 || entry->act >= FLIGHT_SUM;
}

/* Readers who see the same even number before and after have seen no change. There is one writer. */
static void begin_change(void)
{
    uint64_t changes = atomic_load_explicit(&record->changes, memory_order_relaxed);
    atomic_store_explicit(&record->changes, changes + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
}

static void end_change(void)
{
    uint64_t changes = atomic_load_explicit(&record->changes, memory_order_relaxed);
    atomic_store_explicit(&record->changes, changes + 1, memory_order_release);
}

void flight_copy(struct flight_record *copy, const struct flight_record *of)
{
    enum {
        TRIES = 100 /* the owner may have been stopped in the midst of a change: then as it is */
    };
    for (int i = 0; i < TRIES; i++) {
        uint64_t before = atomic_load_explicit(&of->changes, memory_order_acquire);
        memcpy(copy, of, sizeof *copy);
        atomic_thread_fence(memory_order_acquire);
        if (before % 2 == 0 && atomic_load_explicit(&of->changes, memory_order_relaxed) == before)
            return;
    }
}

static void push(const struct flight_entry *entry)
{
    double now = clock_seconds();
    begin_change();
    int depth = record->depth++;
    if (depth < FLIGHT_DEPTH) {
        struct flight_entry *place = &record->open[depth];
        *place = *entry;
        place->begin = now;
        place->step = record->step;
        place->depth = depth;
    }
    end_change();
}

void flight_begin(int act)
{
    push(&(struct flight_entry){.bytes = -1, .act = act, .stage = -1, .microbatch = -1, .peer = -1, .group = -1});
}

void flight_begin_at(int act, int stage, int microbatch, int peer, int64_t bytes)
{
    push(&(struct flight_entry){
        .bytes = bytes, .act = act, .stage = stage, .microbatch = microbatch, .peer = peer, .group = -1});
}

void flight_begin_wait(int act, int peer, int group, enum flight_count count, uint64_t sequence)
{
    push(&(struct flight_entry){.bytes = -1,
                                .sequence = sequence,
                                .act = act,
                                .stage = -1,
                                .microbatch = -1,
                                .peer = peer,
                                .group = group,
                                .count = (int32_t)count});
}

void flight_end(void)
{
    double now = clock_seconds();
    if (record->depth == 0)
        fatal("the flight record ends an instruction that was not begun: this is a defect of ppmodel");
    begin_change();
    int depth = --record->depth;
    if (depth < FLIGHT_DEPTH) {
        struct flight_entry *place = &record->ring[record->ended % FLIGHT_RING];
        *place = record->open[depth];
        place->end = now;
        record->ended++;
    }
    record->last_end = now;
    end_change();
}

void flight_step(int64_t step)
{
    record->step = (int32_t)step;
}

int flight_group_open(uint64_t id, int size)
{
    for (int i = 0; i < FLIGHT_GROUPS; i++) {
        if (record->groups[i].id != 0)
            continue;
        begin_change();
        record->groups[i] = (struct flight_group){.id = id, .size = size};
        if (record->group_count <= i)
            record->group_count = i + 1;
        end_change();
        return i;
    }
    return -1;
}

void flight_group_close(int group)
{
    if (group >= 0)
        record->groups[group].id = 0;
}

uint64_t flight_group_begin(int group, enum flight_count count)
{
    return group < 0 ? 0 : ++record->groups[group].begun[count];
}

void flight_set_place(int p, int d, int t)
{
    record->p = p;
    record->d = d;
    record->t = t;
}

struct flight_record *flight_record(void)
{
    return record;
}

void flight_move(struct flight_record *memory)
{
    struct flight_record *place = memory ? memory : &own;
    memcpy(place, record, sizeof *place);
    place->address = (uint64_t)(uintptr_t)place;
    record = place;
}
