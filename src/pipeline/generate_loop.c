#include "pipeline/generators.h"

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* GPipe (Huang et al., arXiv 1811.06965, section 2.3) for one chunk, breadth first (Lamy-Poirier, arXiv 2211.05953) for
 * several: all forwards chunk by chunk, then all backwards from the last chunk to the first. The order of the
 * microbatches in the backward makes no difference to the time. */
void generate_breadth_first(struct schedule *schedule, int rank)
{
    for (int chunk = 0; chunk < schedule->chunks; chunk++)
        for (int microbatch = 0; microbatch < schedule->microbatches; microbatch++)
            generate_append(schedule, rank, FORWARD, schedule_stage_of(schedule, rank, chunk), microbatch);
    for (int chunk = schedule->chunks - 1; chunk >= 0; chunk--)
        for (int microbatch = 0; microbatch < schedule->microbatches; microbatch++)
            generate_append(schedule, rank, BACKWARD, schedule_stage_of(schedule, rank, chunk), microbatch);
}

/* Appends a rank's k-th forward or backward: groups of `group` microbatches, the last one smaller, pass through the
 * rank's chunks in turn, and back through them in reverse. */
static void append_turn(struct schedule *schedule, int rank, enum operation op, int group, int64_t k)
{
    int64_t whole = (int64_t)group * schedule->chunks; /* turns of a full group */
    int first = (int)(k / whole) * group;
    int count = (int)smaller(group, schedule->microbatches - first);
    int chunk = (int)(k % whole) / count, microbatch = first + (int)(k % whole) % count;
    if (op == BACKWARD)
        chunk = schedule->chunks - 1 - chunk;
    generate_append(schedule, rank, op, schedule_stage_of(schedule, rank, chunk), microbatch);
}

/* Runs `ahead` forwards, then one forward and one backward in turn, then the backwards that are left. */
static void alternate(struct schedule *schedule, int rank, int group, int64_t ahead)
{
    int64_t all = (int64_t)schedule->chunks * schedule->microbatches;
    ahead = smaller(all, ahead);
    for (int64_t k = 0; k < ahead; k++)
        append_turn(schedule, rank, FORWARD, group, k);
    for (int64_t k = ahead; k < all; k++) {
        append_turn(schedule, rank, FORWARD, group, k);
        append_turn(schedule, rank, BACKWARD, group, k - ahead);
    }
    for (int64_t k = all - ahead; k < all; k++)
        append_turn(schedule, rank, BACKWARD, group, k);
}

/* One forward, one backward (Narayanan et al., arXiv 2104.04473, section 2.2.1): a rank runs ahead by the forwards that
 * it takes the pipeline behind it to return the first gradient, so that min(M, P - rank) microbatches are alive. */
void generate_1f1b(struct schedule *schedule, int rank)
{
    alternate(schedule, rank, schedule->microbatches, schedule->ranks - 1 - rank);
}

/* 1F1B that runs ahead twice as far: each message has a whole computation to hide behind, for up to
 * 2 (P - 1 - rank) + 1 microbatches alive. It is the interleaved schedule below with one chunk. */
void generate_eager_1f1b(struct schedule *schedule, int rank)
{
    alternate(schedule, rank, schedule->microbatches, 2 * ((int64_t)schedule->ranks - 1 - rank));
}

/* How many microbatches go round the loop together. With P of them a rank waits for none; a last group of fewer than P
 * would make the ranks wait, for each other even, so that where M leaves a remainder larger groups are taken: even ones
 * as PyTorch's Interleaved1F1B does, or else the smallest that leave a last group of at least P. Fewer than P
 * microbatches all go together. */
static int group_size(int ranks, int microbatches)
{
    int rounds = microbatches / ranks;
    if (rounds <= 1)
        return microbatches;
    if (microbatches % rounds == 0)
        return microbatches / rounds;
    int group = ranks;
    while (microbatches % group != 0 && microbatches % group < ranks)
        group++;
    return group;
}

/* Interleaved 1F1B (Narayanan et al., arXiv 2104.04473, section 2.2.2), with the number of forwards ahead that
 * Megatron-LM takes: the bubble of 1F1B divided by the chunks. */
void generate_interleaved(struct schedule *schedule, int rank)
{
    int group = group_size(schedule->ranks, schedule->microbatches);
    alternate(schedule, rank, group,
              2 * ((int64_t)schedule->ranks - 1 - rank) + (int64_t)(schedule->chunks - 1) * group);
}
