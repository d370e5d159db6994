/* Schedules from the table through lowering to the validator: published orders and closed forms of the simplest two,
 * hand-made tables with chunks and split backwards, and the bounds of the message buffers. The other generators are
 * generate.c's. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/buffers.h"
#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "pipeline/validate.h"
#include "tests/tap.h"

enum {
    SEND_SLOTS = 2
};

/* The rank's instructions as one line, without the final newline; freed by the caller. */
static char *line_of(const struct schedule *schedule, int rank)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    schedule_print_rank(schedule, rank, out);
    fclose(out);
    text[strlen(text) - 1] = '\0';
    return text;
}

/* Tells all of the ranks' lines; `lines` ends with NULL. */
static void is_schedule(const struct schedule *schedule, const char *const *lines, const char *name)
{
    for (int rank = 0; lines[rank]; rank++) {
        char *line = schedule ? line_of(schedule, rank) : NULL;
        is_text(line ? line : "(no schedule)", lines[rank], "%s, rank %d", name, rank);
        free(line);
    }
}

/* A table of computations from lines like "0F0 2F0 2I0", one per rank; other symbols than F, B, I, W are left out. */
static struct schedule *from_lines(const char *const *lines, int ranks, int chunks, int microbatches,
                                   enum placement placement)
{
    struct schedule *schedule = schedule_create(ranks, chunks, microbatches, placement);
    for (int rank = 0; rank < ranks; rank++) {
        for (const char *text = lines[rank]; text; text = strchr(text + 1, ' ')) {
            char symbol[16];
            int stage, microbatch;
            if (sscanf(text, " %d%15[A-Z_]%d", &stage, symbol, &microbatch) < 3)
                continue;
            for (int op = FORWARD; op <= BACKWARD_WEIGHT; op++)
                if (strcmp(symbol, instruction_symbol((enum operation)op)) == 0)
                    schedule_append(schedule, rank, (struct instruction){(enum operation)op, stage, microbatch, -1});
        }
    }
    return schedule;
}

static void texts(void)
{
    char text[INSTRUCTION_TEXT_SIZE];
    is_text(instruction_text((struct instruction){FORWARD, 2, 0, -1}, text), "2F0", "a forward");
    is_text(instruction_text((struct instruction){RECEIVE_GRADIENT, 3, 17, 4}, text), "3RB17", "a receive");
    is_text(instruction_text((struct instruction){REDUCE_GRADIENTS, 11, -1, -1}, text), "11REDUCE_GRAD", "a reduction");
    is_text(instruction_text((struct instruction){OPTIMIZER_STEP, -1, -1, -1}, text), "STEP", "the step");
    is_text(instruction_text((struct instruction){SEND_ACTIVATION, INT_MAX, INT_MAX, 0}, text),
            "2147483647SF2147483647", "the longest text");
    is_text(instruction_name(BACKWARD_WEIGHT), "BACKWARD_WEIGHT", "a name");
}

static void placements(void)
{
    static const int v[3][4] = {{0, 5, 6, 11}, {1, 4, 7, 10}, {2, 3, 8, 9}};
    struct schedule *in_v = schedule_create(3, 4, 1, PLACEMENT_V), *in_loop = schedule_create(3, 4, 1, PLACEMENT_LOOP);
    bool right = true;
    for (int rank = 0; rank < 3; rank++)
        for (int chunk = 0; chunk < 4; chunk++)
            right &= schedule_stage_of(in_v, rank, chunk) == v[rank][chunk] &&
                     schedule_rank_of(in_v, v[rank][chunk]) == rank &&
                     schedule_stage_of(in_loop, rank, chunk) == 3 * chunk + rank &&
                     schedule_rank_of(in_loop, 3 * chunk + rank) == rank;
    ok(right, "stages are where a loop and a V put them");
    schedule_destroy(in_v);
    schedule_destroy(in_loop);
}

/* The orders of the papers for P = 4, M = 8, and the lowered tables of a simulation of PyTorch's lowering. */
static void golden_orders(void)
{
    static const char *const one[] = {"r0: 0F0 0F1 0F2 0F3 0B0 0F4 0B1 0F5 0B2 0F6 0B3 0F7 0B4 0B5 0B6 0B7",
                                      "r1: 1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1F5 1B3 1F6 1B4 1F7 1B5 1B6 1B7",
                                      "r2: 2F0 2F1 2B0 2F2 2B1 2F3 2B2 2F4 2B3 2F5 2B4 2F6 2B5 2F7 2B6 2B7",
                                      "r3: 3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4 3F5 3B5 3F6 3B6 3F7 3B7", NULL};
    static const char *const all[] = {"r0: 0F0 0F1 0F2 0F3 0F4 0F5 0F6 0F7 0B0 0B1 0B2 0B3 0B4 0B5 0B6 0B7",
                                      "r1: 1F0 1F1 1F2 1F3 1F4 1F5 1F6 1F7 1B0 1B1 1B2 1B3 1B4 1B5 1B6 1B7",
                                      "r2: 2F0 2F1 2F2 2F3 2F4 2F5 2F6 2F7 2B0 2B1 2B2 2B3 2B4 2B5 2B6 2B7",
                                      "r3: 3F0 3F1 3F2 3F3 3F4 3F5 3F6 3F7 3B0 3B1 3B2 3B3 3B4 3B5 3B6 3B7", NULL};
    static const char *const two[] = {"r0: 0F0 0SF0 0F1 0SF1 0RB0 0B0 0RB1 0B1 0REDUCE_GRAD STEP",
                                      "r1: 1RF0 1F0 1RF1 1B0 1SB0 1F1 1B1 1SB1 1REDUCE_GRAD STEP", NULL};
    static const char *const three[] = {
        "r0: 0F0 0SF0 0F1 0SF1 0F2 0SF2 0RB0 0B0 0RB1 0B1 0RB2 0B2 0REDUCE_GRAD STEP",
        "r1: 1RF0 1F0 1SF0 1RF1 1F1 1SF1 1RB0 1RF2 1B0 1SB0 1F2 1SF2 1RB1 1B1 1SB1 1RB2 1B2 1SB2 1REDUCE_GRAD STEP",
        "r2: 2RF0 2F0 2RF1 2B0 2SB0 2F1 2RF2 2B1 2SB1 2F2 2B2 2SB2 2REDUCE_GRAD STEP", NULL};
    static const struct {
        const char *name;
        int ranks;
        int microbatches;
        bool lowered;
        const char *const *lines;
    } cases[] = {{"1f1b", 4, 8, false, one},
                 {"gpipe", 4, 8, false, all},
                 {"1f1b", 2, 2, true, two},
                 {"1f1b", 3, 3, true, three}};
    struct err err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct schedule *schedule = generate_schedule(cases[i].name, cases[i].ranks, 1, cases[i].microbatches, &err);
        struct schedule *lowered = lower_schedule(schedule, &err);
        is_schedule(cases[i].lowered ? lowered : schedule, cases[i].lines, cases[i].name);
        schedule_destroy(schedule);
        schedule_destroy(lowered);
    }
}

/* A V with two chunks and split backwards: the turn at rank 1 sends nothing, and stages 0 and 3 are both on rank 0. */
static void golden_v(void)
{
    static const char *const lines[] = {
        "r0: 0F0 0SF0 0F1 0SF1 3RF0 0F2 0SF2 3F0 3RF1 3I0 3SB0 3W0 3F1 3I1 3SB1 0RB0 3W1 0I0 3RF2 0W0 3F2 3I2 3SB2 "
        "0RB1 3W2 3REDUCE_GRAD 0I1 0RB2 0W1 0I2 0W2 0REDUCE_GRAD STEP",
        "r1: 1RF0 1F0 1RF1 2F0 2SF0 1RF2 1F1 2F1 2SF1 2RB0 2I0 2W0 1F2 2RB1 1I0 1SB0 1W0 2F2 2SF2 2I1 2W1 2RB2 1I1 "
        "1SB1 2I2 1I2 1SB2 1W1 2W2 2REDUCE_GRAD 1W2 1REDUCE_GRAD STEP",
        NULL};
    struct err err = {""};
    struct schedule *schedule = from_lines(lines, 2, 2, 3, PLACEMENT_V);
    struct schedule *lowered = lower_schedule(schedule, &err);
    is_schedule(lowered, lines, "V with split backwards");
    struct validation *validation = lowered ? validate_schedule(lowered, SEND_SLOTS, &err) : NULL;
    ok(validation, "it is valid%s%s", *err.text ? ": " : "", err.text);
    if (validation)
        ok(validation->rank_peak_sets[0] == 4 && validation->rank_peak_sets[1] == 4 && validation->ascending,
           "its peaks are 2P and it accumulates in order");
    validate_destroy(validation);
    schedule_destroy(lowered);
    schedule_destroy(schedule);
}

/* Published orders with peaks per rank in chunks, P = 4, M = 8 (ZB-H1: arXiv 2401.10241; interleaved: 2104.04473). */
static void golden_peaks(void)
{
    static const char *const interleaved[] = {
        "0F0 0F1 0F2 0F3 4F0 4F1 4F2 4F3 0F4 0F5 0F6 4B0 0F7 4B1 4F4 4B2 4F5 4B3 4F6 0B0 4F7 0B1 0B2 0B3 4B4 4B5 4B6 "
        "4B7 0B4 0B5 0B6 0B7",
        "1F0 1F1 1F2 1F3 5F0 5F1 5F2 5F3 1F4 5B0 1F5 5B1 1F6 5B2 1F7 5B3 5F4 1B0 5F5 1B1 5F6 1B2 5F7 1B3 5B4 5B5 5B6 "
        "5B7 1B4 1B5 1B6 1B7",
        "2F0 2F1 2F2 2F3 6F0 6F1 6F2 6B0 6F3 6B1 2F4 6B2 2F5 6B3 2F6 2B0 2F7 2B1 6F4 2B2 6F5 2B3 6F6 6B4 6F7 6B5 6B6 "
        "6B7 2B4 2B5 2B6 2B7",
        "3F0 3F1 3F2 3F3 7F0 7B0 7F1 7B1 7F2 7B2 7F3 7B3 3F4 3B0 3F5 3B1 3F6 3B2 3F7 3B3 7F4 7B4 7F5 7B5 7F6 7B6 7F7 "
        "7B7 3B4 3B5 3B6 3B7"};
    static const char *const zero_bubble[] = {
        "0F0 0F1 0F2 0F3 0I0 0W0 0F4 0I1 0W1 0F5 0I2 0W2 0F6 0I3 0W3 0F7 0I4 0W4 0I5 0W5 0I6 0W6 0I7 0W7",
        "1F0 1F1 1F2 1I0 1F3 1I1 1W0 1F4 1I2 1W1 1F5 1I3 1W2 1F6 1I4 1W3 1F7 1I5 1W4 1I6 1W5 1I7 1W6 1W7",
        "2F0 2F1 2I0 2F2 2I1 2F3 2I2 2W0 2F4 2I3 2W1 2F5 2I4 2W2 2F6 2I5 2W3 2F7 2I6 2W4 2I7 2W5 2W6 2W7",
        "3F0 3I0 3F1 3I1 3F2 3I2 3F3 3I3 3W0 3F4 3I4 3W1 3F5 3I5 3W2 3F6 3I6 3W3 3F7 3I7 3W4 3W5 3W6 3W7"};
    static const int interleaved_peaks[] = {11, 9, 7, 5}, zero_bubble_peaks[] = {4, 4, 4, 4}, pending[] = {1, 2, 3, 4};
    struct err err = {""};

    struct schedule *schedule = from_lines(interleaved, 4, 2, 8, PLACEMENT_LOOP);
    struct schedule *lowered = lower_schedule(schedule, &err);
    struct validation *validation = lowered ? validate_schedule(lowered, SEND_SLOTS, &err) : NULL;
    ok(validation && !memcmp(validation->rank_peak_sets, interleaved_peaks, sizeof interleaved_peaks),
       "peaks of an interleaved schedule %s", err.text);
    int(*one)[MESSAGE_KINDS] = calloc(4, sizeof *one);
    for (int rank = 0; rank < 4; rank++)
        one[rank][0] = one[rank][1] = 1;
    ok(lowered && buffers_check(lowered, one, 1, &err) == 0, "it runs with one buffer on either side");
    validate_destroy(validation);
    schedule_destroy(lowered);
    schedule_destroy(schedule);

    schedule = from_lines(zero_bubble, 4, 1, 8, PLACEMENT_LOOP);
    lowered = lower_schedule(schedule, &err);
    validation = lowered ? validate_schedule(lowered, SEND_SLOTS, &err) : NULL;
    ok(validation && !memcmp(validation->rank_peak_sets, zero_bubble_peaks, sizeof zero_bubble_peaks) &&
           !memcmp(validation->peak_pending, pending, sizeof pending),
       "peaks and pending sets of a zero-bubble schedule %s", err.text);
    ok(lowered && buffers_check(lowered, one, 1, &err) == 0, "it runs with one buffer on either side");
    validate_destroy(validation);
    schedule_destroy(lowered);
    schedule_destroy(schedule);
    free(one);
}

/* Breadth first over two chunks: the first rank is sent to long before it consumes. */
static struct schedule *breadth_first(int ranks, int microbatches, struct err *err)
{
    struct schedule *schedule = schedule_create(ranks, 2, microbatches, PLACEMENT_LOOP);
    for (int rank = 0; rank < ranks; rank++) {
        for (int i = 0; i < 2 * microbatches; i++)
            schedule_append(schedule, rank,
                            (struct instruction){FORWARD, i / microbatches * ranks + rank, i % microbatches, -1});
        for (int i = 2 * microbatches - 1; i >= 0; i--)
            schedule_append(schedule, rank,
                            (struct instruction){BACKWARD, i / microbatches * ranks + rank, i % microbatches, -1});
    }
    struct schedule *lowered = lower_schedule(schedule, err);
    schedule_destroy(schedule);
    return lowered;
}

static void wrap_link(int ranks, int microbatches)
{
    struct err err = {""};
    struct schedule *lowered = breadth_first(ranks, microbatches, &err);
    struct validation *validation = lowered ? validate_schedule(lowered, 1, &err) : NULL;
    ok(validation, "breadth first over %d ranks, %d microbatches is valid %s", ranks, microbatches, err.text);
    bool right = validation && !validation->ascending;
    for (int rank = 0; validation && rank < ranks; rank++) {
        int wrap = microbatches - ranks + 2;
        right &= validation->receive_depth[rank][MESSAGE_ACTIVATION] == (rank == 0 ? wrap : 2);
        right &= validation->receive_depth[rank][MESSAGE_GRADIENT] == (rank == ranks - 1 ? wrap : 2);
        right &= validation->rank_peak_sets[rank] == 2 * microbatches;
    }
    ok(right, "its wrap links need M - P + 2 receives, the others 2; it keeps everything, and counts down");
    validate_destroy(validation);
    schedule_destroy(lowered);
}

/* Rank 0 can finish its first chunk only when all M messages have a place: D receives and K sends on each of the P
 * links, and one more on each of the other ranks that waits to send it. */
static void exact_bounds(void)
{
    int cases = 0, right = 0;
    struct err err = {""};
    for (int ranks = 2; ranks <= 4; ranks++)
        for (int microbatches = 1; microbatches <= 30; microbatches++) {
            struct schedule *lowered = breadth_first(ranks, microbatches, &err);
            for (int depth = 1; depth <= 3; depth++)
                for (int slots = 0; slots <= 3; slots++, cases++) {
                    int depths[4][MESSAGE_KINDS];
                    for (int rank = 0; rank < ranks; rank++)
                        depths[rank][MESSAGE_ACTIVATION] = depths[rank][MESSAGE_GRADIENT] = depth;
                    bool runs = buffers_check(lowered, depths, slots, &err) == 0;
                    right += runs == (microbatches <= ranks * (depth + slots) + ranks - 1);
                }
            schedule_destroy(lowered);
        }
    ok(right == cases, "breadth first deadlocks exactly where its messages find no place");
    is_text(err.text,
            "rank 0 instruction 82 (0SF27): deadlock: it waits for rank 1 instruction 62 (1SF20), which waits for rank "
            "2 instruction 41 (2SF13), which waits for rank 3 instruction 20 (3SF6), which waits for rank 0",
            "and tells the circle");
}

static int count_of(const struct schedule *schedule, int rank, enum operation op)
{
    int count = 0;
    for (int64_t i = 0; i < schedule->lists[rank].count; i++)
        count += schedule->lists[rank].items[i].op == op;
    return count;
}

static int at_most(int value, int bound)
{
    return value < bound ? value : bound;
}

/* Closed forms for every size up to 8 ranks and 32 microbatches. */
static void sizes(const char *name)
{
    int valid = 0, peaks = 0, sends = 0, depths = 0, rendezvous = 0, cases = 0;
    struct err err = {""};
    for (int ranks = 1; ranks <= 8; ranks++) {
        int(*one)[MESSAGE_KINDS] = calloc((size_t)ranks, sizeof *one);
        for (int rank = 0; rank < ranks; rank++)
            one[rank][0] = one[rank][1] = 1;
        for (int microbatches = 1; microbatches <= 32; microbatches++, cases++) {
            struct schedule *schedule = generate_schedule(name, ranks, 1, microbatches, &err);
            struct schedule *lowered = lower_schedule(schedule, &err);
            struct validation *validation = lowered ? validate_schedule(lowered, SEND_SLOTS, &err) : NULL;
            bool peak = validation, send = validation, depth = validation;
            for (int rank = 0; validation && rank < ranks; rank++) {
                int expected = strcmp(name, "gpipe") ? at_most(microbatches, ranks - rank) : microbatches;
                peak &= validation->peak_sets[rank] == expected && validation->rank_peak_sets[rank] == expected &&
                        validation->peak_pending[rank] == 1 && validation->ascending;
                send &= count_of(lowered, rank, SEND_ACTIVATION) == (rank < ranks - 1 ? microbatches : 0) &&
                        count_of(lowered, rank, SEND_GRADIENT) == (rank > 0 ? microbatches : 0);
                depth &= validation->receive_depth[rank][MESSAGE_ACTIVATION] == (rank > 0 ? 2 : 0) &&
                         validation->receive_depth[rank][MESSAGE_GRADIENT] == (rank < ranks - 1 ? 2 : 0);
            }
            valid += validation != NULL;
            peaks += peak;
            sends += send;
            depths += depth;
            rendezvous += lowered && buffers_check(lowered, one, 1, &err) == 0;
            validate_destroy(validation);
            schedule_destroy(lowered);
            schedule_destroy(schedule);
        }
        free(one);
    }
    ok(valid == cases, "%s: valid for P <= 8, M <= 32 %s", name, err.text);
    ok(peaks == cases, "%s: peaks as published", name);
    ok(sends == cases, "%s: M messages of each kind over each link", name);
    ok(depths == cases, "%s: two receives of each kind that there is", name);
    ok(rendezvous == cases, "%s: runs with one buffer on either side", name);
}

static void forward_only(void)
{
    int cases = 0, valid = 0, needs = 0;
    struct err err = {""};
    for (int placement = 0; placement < 2; placement++)
        for (int chunks = 1; chunks <= 3; chunks++)
            for (int ranks = 1; ranks <= 8; ranks++)
                for (int microbatches = 1; microbatches <= 32; microbatches++, cases++) {
                    struct schedule *schedule =
                        generate_forward_only(ranks, chunks, (enum placement)placement, microbatches, &err);
                    struct schedule *lowered = lower_schedule(schedule, &err);
                    struct validation *validation = lowered ? validate_schedule(lowered, SEND_SLOTS, &err) : NULL;
                    bool right = validation;
                    for (int stage = 0; validation && stage < schedule->stages; stage++)
                        right &= validation->peak_sets[stage] == 1 && validation->peak_pending[stage] == 0;
                    for (int rank = 0; validation && rank < ranks; rank++)
                        right &= validation->receive_depth[rank][MESSAGE_GRADIENT] == 0 &&
                                 validation->receive_depth[rank][MESSAGE_ACTIVATION] <= 3 &&
                                 count_of(lowered, rank, FORWARD) == chunks * microbatches &&
                                 count_of(lowered, rank, OPTIMIZER_STEP) == 0 &&
                                 count_of(lowered, rank, REDUCE_GRADIENTS) == 0;
                    valid += validation != NULL;
                    needs += right;
                    validate_destroy(validation);
                    schedule_destroy(lowered);
                    schedule_destroy(schedule);
                }
    ok(valid == cases, "forward only: valid for P <= 8, M <= 32, V <= 3 and both placements %s", err.text);
    ok(needs == cases, "forward only: one set per stage, nothing pending, few receives, no step");
}

static void refusals(void)
{
    struct err err = {""};
    ok(!generate_schedule("1f2b", 2, 1, 2, &err), "an unknown schedule is refused");
    is_text(err.text,
            "&pipeline schedule = '1f2b' is not one of 'gpipe', '1f1b', 'eager-1f1b', 'interleaved', 'looped-bfs', "
            "'zb-h1', 'zb-v', 'v-half', 'v-min'",
            "and named");
    ok(!generate_schedule("gpipe", 2, 2, 2, &err), "chunks are refused where there are none");
    is_text(err.text,
            "&pipeline schedule = 'gpipe' needs chunks = 1, not 2 (schedules with chunks = 2: 'interleaved', "
            "'looped-bfs', 'zb-v', 'v-half', 'v-min')",
            "and named");
    ok(!generate_schedule("gpipe", 2, 1, 0, &err), "no microbatch is refused");
    ok(!generate_schedule("gpipe", 1 << 16, 1, 1 << 16, &err), "a table beyond memory is refused: %s", err.text);
    ok(!generate_forward_only(INT_MAX, INT_MAX, PLACEMENT_V, INT_MAX, &err), "and so for evaluation");

    /* each rank waits for what comes later on the other */
    static const char *const circle[] = {"0F0 0B0 0F1 0B1", "1F1 1B1 1F0 1B0"};
    struct schedule *schedule = from_lines(circle, 2, 1, 2, PLACEMENT_LOOP);
    ok(validate_computations(schedule, &err) == 0, "orders that do not fit together are right on each rank");
    ok(!lower_schedule(schedule, &err), "but lowering refuses them");
    is_text(err.text,
            "rank 0 instruction 1 (0B0): cannot run in this order: it waits for stage 1 on rank 1, which waits in a "
            "circle for what comes later here",
            "and says where");
    schedule_destroy(schedule);
}

static void large(void)
{
    struct err err = {""};
    struct schedule *schedule = generate_schedule("1f1b", 256, 1, 1024, &err);
    struct schedule *lowered = lower_schedule(schedule, &err);
    struct validation *validation = lowered ? validate_schedule(lowered, SEND_SLOTS, &err) : NULL;
    ok(validation && validation->peak_sets[0] == 256, "256 ranks and 1024 microbatches %s", err.text);
    validate_destroy(validation);
    schedule_destroy(lowered);
    schedule_destroy(schedule);
}

int main(void)
{
    texts();
    placements();
    golden_orders();
    golden_v();
    golden_peaks();
    wrap_link(4, 16);
    wrap_link(4, 32);
    wrap_link(8, 32);
    exact_bounds();
    sizes("gpipe");
    sizes("1f1b");
    forward_only();
    refusals();
    large();
    return tap_done();
}
