/* All generators against published numbers: orders, makespans, bubbles, peaks and messages of the schedules of
 *   interleaved   Narayanan et al., arXiv 2104.04473, and Megatron-LM's order
 *   looped-bfs    Lamy-Poirier, arXiv 2211.05953, and PyTorch's order with the backward the other way round
 *   zb-h1, zb-v   Qi et al., arXiv 2401.10241, and PyTorch's orders
 *   v-half, v-min Qi et al., arXiv 2405.15362
 * and their closed forms for every small size. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/buffers.h"
#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "pipeline/simulate.h"
#include "pipeline/validate.h"
#include "tests/tap.h"

enum {
    SEND_SLOTS = 2,
    MOST_STAGES = 32
};

/* A schedule with all that is known of it. */
struct known {
    struct schedule *lowered;
    struct validation *validation;
    struct simulation *simulation;
    struct err err;
};

/* Every stage takes forward, input and weight, every message the same time. */
static struct known know_with(const char *name, int ranks, int chunks, int microbatches, double forward, double input,
                              double weight, double message)
{
    double all[4][MOST_STAGES];
    for (int stage = 0; stage < MOST_STAGES; stage++) {
        all[0][stage] = forward;
        all[1][stage] = input;
        all[2][stage] = weight;
        all[3][stage] = message;
    }
    struct known known = {0};
    struct schedule *schedule = generate_schedule(name, ranks, chunks, microbatches, &known.err);
    known.lowered = schedule ? lower_schedule(schedule, &known.err) : NULL;
    if (known.lowered) {
        known.validation = validate_schedule(known.lowered, SEND_SLOTS, &known.err);
        known.simulation = simulate_schedule(
            known.lowered,
            &(struct simulate_costs){.forward = all[0], .input = all[1], .weight = all[2], .message = all[3]},
            &known.err);
    }
    schedule_destroy(schedule);
    return known;
}

static struct known know(const char *name, int ranks, int chunks, int microbatches)
{
    return know_with(name, ranks, chunks, microbatches, 1, 1, 1, 0);
}

static void forget(struct known *known)
{
    schedule_destroy(known->lowered);
    validate_destroy(known->validation);
    simulate_destroy(known->simulation);
}

static double makespan_with(const char *name, int ranks, int chunks, int microbatches, const double times[4])
{
    struct known known = know_with(name, ranks, chunks, microbatches, times[0], times[1], times[2], times[3]);
    double makespan = known.simulation ? known.simulation->makespan : NAN;
    forget(&known);
    return makespan;
}

static int count_of(const struct schedule *schedule, int rank, enum operation op)
{
    int count = 0;
    for (int64_t i = 0; i < schedule->lists[rank].count; i++)
        count += schedule->lists[rank].items[i].op == op;
    return count;
}

/* The computations as published: "F0a", with the chunk as a letter. */
static void orders(void)
{
    static const struct {
        const char *name;
        const char *lines[4];
    } golden[] = {
        {"interleaved",
         {"F0a F1a F2a F3a F0b F1b F2b F3b F4a F5a F6a B0b F7a B1b F4b B2b F5b B3b F6b B0a F7b B1a B2a B3a B4b B5b B6b "
          "B7b B4a B5a B6a B7a",
          "F0a F1a F2a F3a F0b F1b F2b F3b F4a B0b F5a B1b F6a B2b F7a B3b F4b B0a F5b B1a F6b B2a F7b B3a B4b B5b B6b "
          "B7b B4a B5a B6a B7a",
          "F0a F1a F2a F3a F0b F1b F2b B0b F3b B1b F4a B2b F5a B3b F6a B0a F7a B1a F4b B2a F5b B3a F6b B4b F7b B5b B6b "
          "B7b B4a B5a B6a B7a",
          "F0a F1a F2a F3a F0b B0b F1b B1b F2b B2b F3b B3b F4a B0a F5a B1a F6a B2a F7a B3a F4b B4b F5b B5b F6b B6b F7b "
          "B7b B4a B5a B6a B7a"}},
        {"looped-bfs",
         {"F0a F1a F2a F3a F4a F5a F6a F7a F0b F1b F2b F3b F4b F5b F6b F7b B0b B1b B2b B3b B4b B5b B6b B7b B0a B1a B2a "
          "B3a B4a B5a B6a B7a",
          "F0a F1a F2a F3a F4a F5a F6a F7a F0b F1b F2b F3b F4b F5b F6b F7b B0b B1b B2b B3b B4b B5b B6b B7b B0a B1a B2a "
          "B3a B4a B5a B6a B7a",
          "F0a F1a F2a F3a F4a F5a F6a F7a F0b F1b F2b F3b F4b F5b F6b F7b B0b B1b B2b B3b B4b B5b B6b B7b B0a B1a B2a "
          "B3a B4a B5a B6a B7a",
          "F0a F1a F2a F3a F4a F5a F6a F7a F0b F1b F2b F3b F4b F5b F6b F7b B0b B1b B2b B3b B4b B5b B6b B7b B0a B1a B2a "
          "B3a B4a B5a B6a B7a"}},
        {"zb-h1",
         {"F0 F1 F2 F3 I0 W0 F4 I1 W1 F5 I2 W2 F6 I3 W3 F7 I4 W4 I5 W5 I6 W6 I7 W7",
          "F0 F1 F2 I0 F3 I1 W0 F4 I2 W1 F5 I3 W2 F6 I4 W3 F7 I5 W4 I6 W5 I7 W6 W7",
          "F0 F1 I0 F2 I1 F3 I2 W0 F4 I3 W1 F5 I4 W2 F6 I5 W3 F7 I6 W4 I7 W5 W6 W7",
          "F0 I0 F1 I1 F2 I2 F3 I3 W0 F4 I4 W1 F5 I5 W2 F6 I6 W3 F7 I7 W4 W5 W6 W7"}},
        {"zb-v",
         {"F0a F1a F2a F3a F4a F5a F6a F0b I0b W0b F1b I1b W1b F2b I2b W2b F3b I3b W3b F7a I0a W0a F4b I4b W4b I1a W1a "
          "F5b I5b W5b I2a W2a F6b I6b W6b I3a W3a F7b I7b W7b I4a W4a I5a W5a I6a W6a I7a W7a",
          "F0a F1a F2a F3a F4a F0b F5a F1b I0b W0b F2b I1b W1b F3b I2b W2b F6a I0a W0a F4b I3b W3b F7a I1a W1a F5b I4b "
          "W4b I2a W2a F6b I5b W5b I3a W3a F7b I6b W6b I4a I7b I5a W4a I6a W5a I7a W6a W7b W7a",
          "F0a F1a F2a F0b F3a F1b F4a F2b I0b W0b F3b I1b W1b F5a I0a W0a F4b I2b W2b F6a I1a W1a F5b I3b W3b F7a I2a "
          "W2a F6b I4b W4b I3a W3a F7b I5b W5b I4a I6b I5a I7b I6a W4a I7a W5a W6b W7b W6a W7a",
          "F0a F0b F1a F1b F2a F2b F3a F3b I0b W0b F4a I0a W0a F4b I1b W1b F5a I1a W1a F5b I2b W2b F6a I2a W2a F6b I3b "
          "W3b F7a I3a W3a F7b I4b W4b I4a I5b I5a I6b I6a I7b I7a W4a W5b W6b W7b W5a W6a W7a"}},
        {"v-half",
         {"F0a F1a F0b F2a I0b W0b F1b F3a I1b W1b F2b F4a I0a I2b W0a F3b W2b F5a I1a I3b W1a F4b W3b F6a I2a I4b W2a "
          "F5b W4b F7a I3a I5b W3a F6b W5b I4a I6b W4a F7b W6b I5a I7b W5a W7b I6a W6a I7a W7a",
          "F0a F1a F0b F2a F1b I0b W0b F3a F2b I1b W1b I0a W0a F4a F3b I2b W2b I1a W1a F5a F4b I3b W3b I2a W2a F6a F5b "
          "I4b W4b I3a W3a F7a F6b I5b W5b I4a W4a F7b I6b W6b I5a W5a I7b W7b I6a W6a I7a W7a",
          "F0a F0b F1a F1b F2a I0b W0b F2b F3a I0a I1b W0a F3b W1b F4a I1a I2b W1a F4b W2b F5a I2a I3b W2a F5b W3b F6a "
          "I3a I4b W3a F6b W4b F7a I4a I5b W4a F7b W5b I5a I6b W5a W6b I6a I7b W6a W7b I7a W7a",
          "F0a F0b F1a F1b F2a F2b I0b W0b I0a W0a F3a F3b I1b W1b I1a W1a F4a F4b I2b W2b I2a W2a F5a F5b I3b W3b I3a "
          "W3a F6a F6b I4b W4b I4a W4a F7a F7b I5b W5b I5a W5a I6b W6b I6a W6a I7b W7b I7a W7a"}},
        {"v-min",
         {"F0a F1a F0b I0b W0b F2a F1b I1b I0a W1b W0a F3a F2b I2b I1a W2b W1a F4a F3b I3b I2a W3b W2a F5a F4b I4b I3a "
          "W4b W3a F6a F5b I5b I4a W5b W4a F7a F6b I6b I5a W6b W5a F7b I7b I6a W7b W6a I7a W7a",
          "F0a F0b F1a I0b W0b F1b F2a I0a I1b W0a W1b F2b F3a I1a I2b W1a W2b F3b F4a I2a I3b W2a W3b F4b F5a I3a I4b "
          "W3a W4b F5b F6a I4a I5b W4a W5b F6b F7a I5a I6b W5a W6b F7b I6a I7b W6a W7b I7a W7a",
          "F0a F0b F1a I0b F1b W0b I0a F2a W0a I1b F2b W1b I1a F3a W1a I2b F3b W2b I2a F4a W2a I3b F4b W3b I3a F5a W3a "
          "I4b F5b W4b I4a F6a W4a I5b F6b W5b I5a F7a W5a I6b F7b W6b I6a W6a I7b W7b I7a W7a",
          "F0a F0b F1a F1b I0b I0a W0b W0a F2a F2b I1b I1a W1b W1a F3a F3b I2b I2a W2b W2a F4a F4b I3b I3a W3b W3a F5a "
          "F5b I4b I4a W4b W4a F6a F6b I5b I5a W5b W5a F7a F7b I6b I6a W6b W6a I7b I7a W7b W7a"}},
        {"eager-1f1b",
         {"F0 F1 F2 F3 F4 F5 F6 B0 F7 B1 B2 B3 B4 B5 B6 B7", "F0 F1 F2 F3 F4 B0 F5 B1 F6 B2 F7 B3 B4 B5 B6 B7",
          "F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 B5 B6 B7", "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6 F7 B7"}},
    };
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        struct err err = {""};
        int chunks = golden[i].lines[0][2] == ' ' ? 1 : 2;
        struct schedule *schedule = generate_schedule(golden[i].name, 4, chunks, 8, &err);
        for (int rank = 0; rank < 4; rank++) {
            char line[512] = "";
            for (int64_t j = 0; schedule && j < schedule->lists[rank].count; j++) {
                struct instruction now = schedule->lists[rank].items[j];
                char chunk[2] = {chunks == 1 ? '\0' : (char)('a' + now.stage / 4), '\0'};
                size_t used = strlen(line);
                snprintf(line + used, sizeof line - used, "%s%s%d%s", used ? " " : "", instruction_symbol(now.op),
                         now.microbatch, chunk);
            }
            is_text(line, golden[i].lines[rank], "order of %s, rank %d %s", golden[i].name, rank, err.text);
        }
        schedule_destroy(schedule);
    }
}

/* The order of ZB-V with its messages, for fewer microbatches than it is made for. */
static void lowered_order(void)
{
    static const char *const lines[] = {
        "r0: 0F0 0SF0 0F1 0SF1 3RF0 0F2 0SF2 3F0 3RF1 3I0 3SB0 3W0 3F1 3I1 3SB1 0RB0 3W1 0I0 3RF2 0W0 3F2 3I2 3SB2 "
        "0RB1 3W2 3REDUCE_GRAD 0I1 0RB2 0W1 0I2 0W2 0REDUCE_GRAD STEP\n",
        "r1: 1RF0 1F0 1RF1 2F0 2SF0 1RF2 1F1 2F1 2SF1 2RB0 2I0 2W0 1F2 2RB1 1I0 1SB0 1W0 2F2 2SF2 2I1 2W1 2RB2 1I1 "
        "1SB1 2I2 1I2 1SB2 1W1 2W2 2REDUCE_GRAD 1W2 1REDUCE_GRAD STEP\n"};
    struct known known = know("zb-v", 2, 2, 3);
    for (int rank = 0; rank < 2; rank++) {
        char *text = NULL;
        size_t size = 0;
        FILE *out = open_memstream(&text, &size);
        schedule_print_rank(known.lowered, rank, out);
        fclose(out);
        is_text(text, lines[rank], "zb-v with messages, rank %d", rank);
        free(text);
    }
    forget(&known);
}

/* The most sets alive when they are given back after the input gradient. */
static int peak_to_input(const struct schedule *schedule, int rank)
{
    int alive = 0, peak = 0;
    for (int64_t i = 0; i < schedule->lists[rank].count; i++) {
        enum operation op = schedule->lists[rank].items[i].op;
        alive += (op == FORWARD) - (op == BACKWARD || op == BACKWARD_INPUT);
        peak = alive > peak ? alive : peak;
    }
    return peak;
}

/* 1 - busy / the longest time from a rank's first to its last computation. */
static double span_bubble(const struct known *known)
{
    double longest = 0;
    for (int rank = 0; rank < known->lowered->ranks; rank++)
        longest = fmax(longest, known->simulation->ranks[rank].end - known->simulation->ranks[rank].start);
    return 1 - known->simulation->ranks[0].busy / longest;
}

static void tables(void)
{
    static const struct {
        const char *name;
        int chunks, ranks, microbatches;
        double makespan, bubble, span;
        int peaks[8], input_peaks[8]; /* 0: as the one before */
        int sends[3];                 /* of the first, a middle and the last rank */
    } rows[] = {
        {"interleaved", 2, 4, 8, 57, 0.1579, 0.1579, {11, 9, 7, 5}, {11, 9, 7, 5}, {24, 32, 24}},
        {"looped-bfs", 2, 4, 8, 57, 0.1579, 0.1579, {16}, {16}, {24, 32, 24}},
        {"zb-h1", 1, 4, 8, 27, 0.1111, 0.1111, {4}, {4, 3, 2, 1}, {8, 16, 8}},
        {"zb-v", 2, 4, 8, 51, 0.0588, 0, {8}, {8}, {16, 32, 16}},
        {"v-half", 2, 4, 8, 60, 0.2, 0.2, {6}, {6}, {16, 32, 16}},
        {"v-min", 2, 4, 8, 59, 0.1864, 0.1864, {4}, {4, 4, 3, 4}, {16, 32, 16}},
        {"interleaved",
         2,
         8,
         16,
         117,
         0.1795,
         0.1795,
         {23, 21, 19, 17, 15, 13, 11, 9},
         {23, 21, 19, 17, 15, 13, 11, 9},
         {48, 64, 48}},
        {"looped-bfs", 2, 8, 16, 117, 0.1795, 0.1795, {32}, {32}, {48, 64, 48}},
        {"zb-h1", 1, 8, 16, 55, 0.1273, 0.1273, {8}, {8, 7, 6, 5, 4, 3, 2, 1}, {16, 32, 16}},
        {"zb-v", 2, 8, 16, 103, 0.0680, 0, {16}, {16}, {32, 64, 32}},
        {"v-half", 2, 8, 16, 122, 0.2131, 0.2131, {10}, {10}, {32, 64, 32}},
        {"v-min", 2, 8, 16, 123, 0.2195, 0.2195, {6, 8, 8, 6, 8, 8, 6, 8}, {6}, {32, 64, 32}},
        {"interleaved",
         2,
         8,
         32,
         213,
         0.0986,
         0.0986,
         {23, 21, 19, 17, 15, 13, 11, 9},
         {23, 21, 19, 17, 15, 13, 11, 9},
         {96, 128, 96}},
        {"looped-bfs", 2, 8, 32, 213, 0.0986, 0.0986, {64}, {64}, {96, 128, 96}},
        {"zb-h1", 1, 8, 32, 103, 0.0680, 0.0680, {8}, {8, 7, 6, 5, 4, 3, 2, 1}, {32, 64, 32}},
        {"zb-v", 2, 8, 32, 199, 0.0352, 0, {16}, {16}, {64, 128, 64}},
        {"v-half", 2, 8, 32, 218, 0.1193, 0.1193, {10}, {10}, {64, 128, 64}},
        {"v-min", 2, 8, 32, 219, 0.1233, 0.1233, {6, 8, 8, 6, 8, 8, 6, 8}, {6}, {64, 128, 64}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char title[64];
        int ranks = rows[i].ranks, peak = 0, input_peak = 0, one[8][MESSAGE_KINDS];
        snprintf(title, sizeof title, "%s, P = %d, M = %d", rows[i].name, ranks, rows[i].microbatches);
        struct known known = know(rows[i].name, ranks, rows[i].chunks, rows[i].microbatches);
        if (!ok(known.simulation && known.validation, "%s is valid %s", title, known.err.text))
            continue;
        is_near(known.simulation->makespan, rows[i].makespan, 0, "%s: makespan", title);
        is_near(known.simulation->bubble, rows[i].bubble, 5.1e-5, "%s: bubble", title);
        is_near(span_bubble(&known), rows[i].span, 5.1e-5, "%s: bubble in a rank's span", title);
        bool peaks = true, sends = true;
        for (int rank = 0; rank < ranks; rank++) {
            peak = rows[i].peaks[rank] ? rows[i].peaks[rank] : peak;
            input_peak = rows[i].input_peaks[rank] ? rows[i].input_peaks[rank] : input_peak;
            peaks &= known.validation->rank_peak_sets[rank] == peak;
            peaks &= peak_to_input(known.lowered, rank) == input_peak;
            sends &= count_of(known.lowered, rank, SEND_ACTIVATION) + count_of(known.lowered, rank, SEND_GRADIENT) ==
                     rows[i].sends[rank == 0          ? 0
                                   : rank < ranks - 1 ? 1
                                                      : 2];
            one[rank][0] = one[rank][1] = 1;
        }
        ok(peaks, "%s: peaks on every rank, up to the weight and to the input gradient", title);
        ok(sends, "%s: messages of every rank", title);
        if (strcmp(rows[i].name, "looped-bfs"))
            ok(buffers_check(known.lowered, one, 1, &known.err) == 0, "%s: runs with one buffer on either side", title);
        forget(&known);
    }
}

/* How the schedules stand up to uneven times and slow messages: P = 4, M = 8. */
static void sensitivity(void)
{
    static const char *const names[] = {"gpipe", "1f1b", "interleaved", "looped-bfs",
                                        "zb-h1", "zb-v", "v-half",      "v-min"};
    static const struct {
        double times[4]; /* forward, input, weight, message */
        double spans[8]; /* makespan / chunks */
    } rows[] = {{{1, 1, 1, 0}, {33, 33, 28.5, 28.5, 27, 25.5, 30, 29.5}},
                {{1, 1, 1, 0.1}, {33.6, 34.6, 29.2, 28.8, 28.2, 26.15, 30.8, 31.5}},
                {{1, 1, 1, 0.5}, {36, 41, 32, 30, 33, 28.75, 34, 39.5}},
                {{1, 1.2, 0.8, 0}, {33, 33, 28.5, 28.5, 28.2, 25.8, 31.1, 34.4}},
                {{1, 1.2, 0.8, 0.1}, {33.6, 34.6, 29.2, 28.8, 29.4, 26.45, 31.9, 36.4}}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t j = 0; j < sizeof names / sizeof *names; j++) {
            int chunks = rows[0].spans[j] < 31 && strcmp(names[j], "zb-h1") ? 2 : 1;
            is_near(makespan_with(names[j], 4, chunks, 8, rows[i].times) / chunks, rows[i].spans[j], 1e-9,
                    "%s with times %zu", names[j], i);
        }
    is_near(makespan_with("eager-1f1b", 4, 1, 8, rows[1].times), 33.6, 1e-9, "eager-1f1b hides messages");
    is_near(makespan_with("eager-1f1b", 4, 1, 8, rows[2].times), 36, 1e-9, "eager-1f1b hides slow messages");
    is_near(makespan_with("eager-1f1b", 8, 1, 32, rows[1].times), 118.4, 1e-9, "on 8 ranks");
    is_near(makespan_with("eager-1f1b", 8, 1, 32, rows[2].times), 124, 1e-9, "and slow ones");
}

/* Interleaved with P = 4, V = 2 and any number of microbatches, and few microbatches for the others. */
static void few_and_odd(void)
{
    static const struct {
        const char *name;
        int chunks, microbatches, makespan, peaks[4];
    } rows[] = {{"interleaved", 2, 1, 24, {2}},
                {"interleaved", 2, 2, 27, {4, 4, 4, 3}},
                {"interleaved", 2, 3, 30, {6, 6, 6, 4}},
                {"interleaved", 2, 4, 33, {8, 8, 7, 5}},
                {"interleaved", 2, 5, 39, {10, 10, 8, 6}},
                {"interleaved", 2, 6, 45, {12, 11, 9, 7}},
                {"interleaved", 2, 7, 51, {14, 12, 10, 8}},
                {"interleaved", 2, 8, 57, {11, 9, 7, 5}},
                {"interleaved", 2, 9, 63, {12, 10, 8, 6}},
                {"interleaved", 2, 10, 69, {12, 10, 8, 6}},
                {"interleaved", 2, 11, 75, {13, 11, 9, 7}},
                {"interleaved", 2, 13, 87, {14, 12, 10, 8}},
                {"zb-h1", 1, 1, 9, {1}},
                {"zb-h1", 1, 2, 11, {2}},
                {"zb-h1", 1, 3, 13, {3}},
                {"zb-v", 2, 1, 18, {2}},
                {"zb-v", 2, 2, 22, {3, 4, 4, 4}},
                {"zb-v", 2, 3, 26, {4, 5, 6, 6}},
                {"v-half", 2, 1, 18, {2}},
                {"v-half", 2, 2, 25, {3, 4, 4, 4}},
                {"v-half", 2, 3, 30, {4, 5, 5, 6}},
                {"v-min", 2, 1, 17, {2}},
                {"v-min", 2, 2, 23, {3, 3, 4, 4}},
                {"v-min", 2, 3, 29, {4}}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct known known = know(rows[i].name, 4, rows[i].chunks, rows[i].microbatches);
        bool right = known.validation && known.simulation && known.simulation->makespan == rows[i].makespan;
        for (int rank = 0, peak = 0; right && rank < 4; rank++) {
            peak = rows[i].peaks[rank] ? rows[i].peaks[rank] : peak;
            right &= known.validation->rank_peak_sets[rank] == peak;
        }
        ok(right, "%s over 4 ranks, %d microbatches: %d and peaks %s", rows[i].name, rows[i].microbatches,
           rows[i].makespan, known.err.text);
        forget(&known);
    }
}

static int at_most(int value, int bound)
{
    return value < bound ? value : bound;
}

/* The published makespan for this size, -1 where there is none. */
static int closed_makespan(const char *name, int ranks, int chunks, int microbatches)
{
    bool enough = microbatches >= ranks;
    if (!strcmp(name, "zb-h1"))
        return enough ? 3 * microbatches + ranks - 1 : -1;
    if (!strcmp(name, "zb-v"))
        return microbatches >= 2 * ranks - 1 ? 6 * microbatches + ranks - 1 : -1;
    if (name[0] == 'v')
        return -1;
    return enough || chunks == 1 ? 3 * microbatches * chunks + 3 * (ranks - 1) : -1;
}

/* Whether a rank's peak is as published: an exact number where there is one, else a bound. */
static bool closed_peak(const char *name, int ranks, int chunks, int microbatches, int rank, int peak)
{
    int all = microbatches * chunks;
    if (!strcmp(name, "interleaved"))
        return microbatches % ranks ? peak <= all
                                    : peak == at_most(all, 2 * (ranks - 1 - rank) + (chunks - 1) * ranks + 1);
    if (!strcmp(name, "looped-bfs"))
        return peak == all;
    if (!strcmp(name, "eager-1f1b"))
        return peak == at_most(all, 2 * (ranks - 1 - rank) + 1);
    if (!strcmp(name, "zb-h1"))
        return peak == at_most(microbatches, ranks);
    return peak <= at_most(all, !strcmp(name, "zb-v")     ? 2 * ranks
                                : !strcmp(name, "v-half") ? ranks + 3
                                                          : 2 * ranks / 3 + 4);
}

/* Every size up to 8 ranks and 32 microbatches. */
static void sizes(const char *name, int chunks, bool in_v)
{
    int cases = 0, valid = 0, times = 0, spans = 0, peaks = 0, sends = 0;
    struct err err = {""};
    for (int ranks = 1; ranks <= 8; ranks++)
        for (int microbatches = 1; microbatches <= 32; microbatches++, cases++) {
            struct known known = know(name, ranks, chunks, microbatches);
            if (!known.validation || !known.simulation) {
                err = known.err;
                forget(&known);
                continue;
            }
            int makespan = closed_makespan(name, ranks, chunks, microbatches);
            bool peak = known.validation->ascending, send = true;
            valid++;
            times += makespan < 0 || known.simulation->makespan == makespan;
            spans += strcmp(name, "zb-v") || microbatches < 2 * ranks - 1 || span_bubble(&known) == 0;
            for (int rank = 0; rank < ranks; rank++) {
                int forward = chunks, backward = chunks; /* chunks whose output goes to another rank */
                if (in_v || ranks == 1) {
                    forward = backward = ranks == 1 ? 0 : chunks - (rank == 0 || rank == ranks - 1);
                } else {
                    forward -= rank == ranks - 1;
                    backward -= rank == 0;
                }
                send &= count_of(known.lowered, rank, SEND_ACTIVATION) == forward * microbatches &&
                        count_of(known.lowered, rank, SEND_GRADIENT) == backward * microbatches;
                peak &= closed_peak(name, ranks, chunks, microbatches, rank, known.validation->rank_peak_sets[rank]);
            }
            peaks += peak;
            sends += send;
            forget(&known);
        }
    ok(valid == cases, "%s, %d chunks: valid for P <= 8, M <= 32 %s", name, chunks, err.text);
    ok(times == cases && spans == cases, "%s, %d chunks: makespans as published", name, chunks);
    ok(peaks == cases, "%s, %d chunks: peaks as published, gradients in ascending order", name, chunks);
    ok(sends == cases, "%s, %d chunks: messages between ranks, none at the turns", name, chunks);
}

static void large(void)
{
    static const struct {
        const char *name;
        int chunks;
    } cases[] = {{"interleaved", 5}, {"zb-h1", 1}, {"zb-v", 2}, {"v-half", 2}, {"v-min", 2}, {"looped-bfs", 3}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {""};
        struct schedule *schedule = generate_schedule(cases[i].name, 61, cases[i].chunks, 1001, &err);
        struct schedule *lowered = schedule ? lower_schedule(schedule, &err) : NULL;
        struct validation *validation = lowered ? validate_schedule(lowered, SEND_SLOTS, &err) : NULL;
        ok(validation, "%s over 61 ranks with 1001 microbatches is valid %s", cases[i].name, err.text);
        validate_destroy(validation);
        schedule_destroy(lowered);
        schedule_destroy(schedule);
    }
}

static void refusals(void)
{
    struct err err = {""};
    ok(generate_check("zb-v", 1, &err) < 0, "zb-v with one chunk is refused");
    is_text(err.text,
            "&pipeline schedule = 'zb-v' needs chunks = 2, not 1 (schedules with chunks = 1: 'gpipe', '1f1b', "
            "'eager-1f1b', 'zb-h1')",
            "with the remedy");
    ok(!generate_schedule("interleaved", 4, 1, 8, &err), "interleaved with one chunk is refused");
    is_text(err.text,
            "&pipeline schedule = 'interleaved' needs chunks = 2 or more, not 1 (schedules with chunks = 1: 'gpipe', "
            "'1f1b', 'eager-1f1b', 'zb-h1')",
            "with the remedy");
    ok(generate_check("v-min", 3, &err) < 0 && generate_check("zb-h1", 3, &err) < 0, "others with three chunks too");
    is_text(err.text,
            "&pipeline schedule = 'zb-h1' needs chunks = 1, not 3 (schedules with chunks = 3: 'interleaved', "
            "'looped-bfs')",
            "with the remedy");
    ok(generate_check("interleaved", 7, &err) == 0, "interleaved takes any number of chunks from two on");
}

int main(void)
{
    orders();
    lowered_order();
    tables();
    sensitivity();
    few_and_odd();
    sizes("eager-1f1b", 1, false);
    sizes("interleaved", 2, false);
    sizes("interleaved", 3, false);
    sizes("interleaved", 4, false);
    sizes("looped-bfs", 2, false);
    sizes("looped-bfs", 3, false);
    sizes("zb-h1", 1, false);
    sizes("zb-v", 2, true);
    sizes("v-half", 2, true);
    sizes("v-min", 2, true);
    large();
    refusals();
    return tap_done();
}
