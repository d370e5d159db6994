/* The validator against tables that somebody broke, one rule at a time: it must name what is wrong. */
#include <stdio.h>
#include <stdlib.h>

#include "pipeline/validate.h"
#include "tests/schedule_edit.h"
#include "tests/tap.h"

enum {
    SEND_SLOTS = 2
};

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

/* zb-v, P = 2, M = 1:
 * r0: 0F0 0SF0 3RF0 3F0 3I0 3SB0 3W0 3REDUCE_GRAD 0RB0 0I0 0W0 0REDUCE_GRAD STEP
 * r1: 1RF0 1F0 2F0 2SF0 2RB0 2I0 1I0 1SB0 1W0 1REDUCE_GRAD 2W0 2REDUCE_GRAD STEP, or the weights the other way round */
static int64_t find(const struct schedule *schedule, int rank, enum operation op, int stage, int microbatch)
{
    const struct instruction_list *list = &schedule->lists[rank];
    int64_t index = 0;
    while (index < list->count && (list->items[index].op != op || list->items[index].stage != stage ||
                                   list->items[index].microbatch != microbatch))
        index++;
    return index;
}

static void split_and_local(void)
{
    struct schedule *s = chunked("zb-v", 2, 2, 1);
    move(s, 1, find(s, 1, FORWARD, 2, 0), 1);
    is_refused(s, "rank 1 instruction 1 (2F0): its activation is not there before it", "a hand-over before it is made");
    s = chunked("zb-v", 2, 2, 1);
    move(s, 1, find(s, 1, BACKWARD_INPUT, 1, 0), find(s, 1, BACKWARD_INPUT, 2, 0));
    is_refused(s, "rank 1 instruction 5 (1I0): its gradient is not there before it", "a gradient before it is made");
    s = chunked("zb-v", 2, 2, 1);
    move(s, 0, find(s, 0, BACKWARD_WEIGHT, 3, 0), find(s, 0, BACKWARD_INPUT, 3, 0));
    is_refused(s, "rank 0 instruction 4 (3W0): its input gradient is not before it", "weights before inputs");
    s = chunked("zb-v", 2, 2, 1);
    insert(s, 0, 5, *at(s, 0, 4));
    is_refused(s, "rank 0 instruction 5 (3I0): appears a second time", "an input gradient twice");
    s = chunked("zb-v", 2, 2, 1);
    insert(s, 0, 7, *at(s, 0, 6));
    is_refused(s, "rank 0 instruction 7 (3W0): appears a second time", "a weight gradient twice");
    s = chunked("zb-v", 2, 2, 1);
    insert(s, 0, 7, (struct instruction){BACKWARD, 3, 0, -1});
    is_refused(s, "rank 0 instruction 7 (3B0): is both a full and a split backward", "a full backward on top");
    s = chunked("zb-v", 2, 2, 1);
    drop(s, 0, 7);
    drop(s, 0, 6);
    is_refused(s, "rank 0: 3W0 is missing", "a weight gradient and its reduction dropped");
    s = chunked("zb-v", 2, 2, 1);
    insert(s, 0, 2, (struct instruction){SEND_ACTIVATION, 0, 0, 1});
    is_refused(s, "rank 0 instruction 2 (0SF0): appears a second time", "a send twice");
    s = chunked("zb-v", 2, 2, 1);
    insert(s, 1, 3, (struct instruction){SEND_ACTIVATION, 1, 0, 0});
    is_refused(s, "rank 1 instruction 3 (1SF0): no other rank has a part in it", "a message to oneself");
    s = lowered("gpipe", 1, 2); /* 0F0 0F1 0B0 0B1 0REDUCE_GRAD STEP */
    drop(s, 0, 4);
    drop(s, 0, 3);
    is_refused(s, "rank 0: 0B1, or 0I1 and 0W1, is missing", "a backward and the reduction dropped");
    s = lowered("gpipe", 2, 2);
    drop(s, 0, find(s, 0, RECEIVE_GRADIENT, 0, 1));
    is_refused(s, "rank 0 instruction 6 (0B1): its gradient is not there before it",
               "the receive of a gradient dropped");
    s = lowered("gpipe", 2, 2);
    move(s, 1, find(s, 1, SEND_GRADIENT, 1, 0), find(s, 1, SEND_GRADIENT, 1, 1));
    is_refused(s, "rank 1 instruction 6 (1SB1): meets rank 0 instruction 4 (0RB0), the receive of another message",
               "gradients sent in another order than received");
}

static void computations_alone(void)
{
    struct err err = {""};
    struct schedule *s = small();
    ok(validate_computations(s, &err) < 0, "a lowered table is none of computations");
    is_text(err.text, "rank 0 instruction 1 (0SF0): not a computation", "which is told");
    schedule_destroy(s);
    s = generate_forward_only(1, 1, PLACEMENT_LOOP, 3, &err);
    drop(s, 0, 1);
    ok(validate_computations(s, &err) < 0, "a forward is missing");
    is_text(err.text, "rank 0: 0F1 is missing", "which is told");
    schedule_destroy(s);
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

int main(void)
{
    order_on_a_rank();
    split_and_local();
    computations_alone();
    ranges();
    end_of_step();
    between_ranks();
    return tap_done();
}
