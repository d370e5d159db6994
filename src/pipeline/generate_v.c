/* Schedules from a building block (Qi et al., "Pipeline parallelism with controllable memory", arXiv 2405.15362): the
 * computations of one microbatch at fixed times, repeated for every microbatch six units later, which is what one takes
 * on a rank with two chunks. How long a block lasts on a rank decides how many are alive there.
 *
 * The paper then moves computations of the first and last blocks forward into idle times; that is not done here, so
 * that these schedules have the paper's memory and a longer bubble. */
#include "pipeline/generators.h"

enum {
    PERIOD = 6,
    TIMED = 4 /* forward and input gradient of either chunk; weight gradients fill the gaps */
};

/* When a rank runs a computation of microbatch 0, in units of one computation. */
struct timed {
    enum operation op;
    int chunk;
    int64_t time;
};

/* The one of the block's computations that a microbatch has at this time, or NULL. No two ever have the same time:
 * their times differ modulo 6 for every P and rank, which is what the `gap` of the blocks below is for. */
static const struct timed *find(const struct timed block[TIMED], int microbatches, int64_t time, int *microbatch)
{
    for (int i = 0; i < TIMED; i++) {
        int64_t since = time - block[i].time;
        if (since >= 0 && since % PERIOD == 0 && since / PERIOD < microbatches) {
            *microbatch = (int)(since / PERIOD);
            return &block[i];
        }
    }
    return NULL;
}

/* Appends the weight gradient that has waited longest; false when none waits. `next` is the place in the list from
 * which on input gradients have not had theirs. */
static bool append_weight(struct schedule *schedule, int rank, int64_t *next)
{
    const struct instruction_list *list = &schedule->lists[rank];
    while (*next < list->count && list->items[*next].op != BACKWARD_INPUT)
        ++*next;
    if (*next == list->count)
        return false;
    struct instruction input = list->items[(*next)++];
    generate_append(schedule, rank, BACKWARD_WEIGHT, input.stage, input.microbatch);
    return true;
}

/* The blocks of all microbatches, with the weight gradients where nothing else is, without what stays idle. The input
 * gradient of chunk 0 is the last of a block. */
static void repeat(struct schedule *schedule, int rank, const struct timed block[TIMED])
{
    int64_t end = block[TIMED - 1].time + (int64_t)PERIOD * (schedule->microbatches - 1), next = 0;
    for (int64_t time = 0; time <= end; time++) {
        int microbatch;
        const struct timed *now = find(block, schedule->microbatches, time, &microbatch);
        if (now)
            generate_append(schedule, rank, now->op, schedule_stage_of(schedule, rank, now->chunk), microbatch);
        else
            append_weight(schedule, rank, &next);
    }
    while (append_weight(schedule, rank, &next))
        continue;
}

/* V-Half: about half of the memory of 1F1B's first rank, on every rank. */
void generate_v_half(struct schedule *schedule, int rank)
{
    int64_t ranks = schedule->ranks, gap = ranks % 2 == 0 ? 3 : 0;
    const struct timed block[TIMED] = {{FORWARD, 0, 2 * (int64_t)rank},
                                       {FORWARD, 1, 3 * ranks - 2 - rank},
                                       {BACKWARD_INPUT, 1, 3 * ranks + gap + 2 * (int64_t)rank - 1},
                                       {BACKWARD_INPUT, 0, 6 * ranks + gap - 2 - rank}};
    repeat(schedule, rank, block);
}

/* V-Min: about a third of it. */
void generate_v_min(struct schedule *schedule, int rank)
{
    int64_t ranks = schedule->ranks, gap = ranks % 3 == 0 ? 2 : 0;
    const struct timed block[TIMED] = {{FORWARD, 0, rank},
                                       {FORWARD, 1, 2 * ranks - 1 - rank},
                                       {BACKWARD_INPUT, 1, 2 * ranks + gap + rank},
                                       {BACKWARD_INPUT, 0, 4 * ranks + gap - 1 - rank}};
    repeat(schedule, rank, block);
}
