/* Lowered schedules, and changing them by hand: what the tests of the validator share. */
#ifndef TESTS_SCHEDULE_EDIT_H
#define TESTS_SCHEDULE_EDIT_H

#include <string.h>

#include "pipeline/generate.h"
#include "pipeline/lower.h"

static inline struct schedule *chunked(const char *name, int ranks, int chunks, int microbatches)
{
    struct err err;
    struct schedule *schedule = generate_schedule(name, ranks, chunks, microbatches, &err);
    struct schedule *result = lower_schedule(schedule, &err);
    schedule_destroy(schedule);
    return result;
}

static inline struct schedule *lowered(const char *name, int ranks, int microbatches)
{
    return chunked(name, ranks, 1, microbatches);
}

static inline struct schedule *copy_of(const struct schedule *schedule)
{
    struct schedule *copy =
        schedule_create(schedule->ranks, schedule->chunks, schedule->microbatches, schedule->placement);
    copy->forward_only = schedule->forward_only;
    for (int rank = 0; rank < schedule->ranks; rank++)
        for (int64_t i = 0; i < schedule->lists[rank].count; i++)
            schedule_append(copy, rank, schedule->lists[rank].items[i]);
    return copy;
}

static inline void drop(struct schedule *schedule, int rank, int64_t index)
{
    struct instruction_list *list = &schedule->lists[rank];
    list->count--;
    memmove(list->items + index, list->items + index + 1, (size_t)(list->count - index) * sizeof *list->items);
}

static inline void insert(struct schedule *schedule, int rank, int64_t index, struct instruction instruction)
{
    schedule_append(schedule, rank, instruction);
    struct instruction_list *list = &schedule->lists[rank];
    memmove(list->items + index + 1, list->items + index, (size_t)(list->count - 1 - index) * sizeof *list->items);
    list->items[index] = instruction;
}

static inline void move(struct schedule *schedule, int rank, int64_t from, int64_t to)
{
    struct instruction instruction = schedule->lists[rank].items[from];
    drop(schedule, rank, from);
    insert(schedule, rank, to, instruction);
}

static inline struct instruction *at(struct schedule *schedule, int rank, int64_t index)
{
    return &schedule->lists[rank].items[index];
}

#endif
