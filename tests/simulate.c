/* The simulator against closed forms and published makespans. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "pipeline/simulate.h"
#include "tests/tap.h"

enum {
    MOST_STAGES = 64
};

/* Costs that are equal on all stages. */
struct even {
    double forward[MOST_STAGES], input[MOST_STAGES], weight[MOST_STAGES], message[MOST_STAGES];
    struct simulate_costs costs;
};

static const struct simulate_costs *even_costs(struct even *even, double forward, double input, double weight,
                                               double message)
{
    for (int stage = 0; stage < MOST_STAGES; stage++) {
        even->forward[stage] = forward;
        even->input[stage] = input;
        even->weight[stage] = weight;
        even->message[stage] = message;
    }
    even->costs = (struct simulate_costs){
        .forward = even->forward, .input = even->input, .weight = even->weight, .message = even->message};
    return &even->costs;
}

static struct simulation *simulate(const char *name, int ranks, int microbatches, const struct simulate_costs *costs)
{
    struct err err;
    struct schedule *schedule = generate_schedule(name, ranks, 1, microbatches, &err);
    struct simulation *simulation = simulate_schedule(schedule, costs, &err);
    schedule_destroy(schedule);
    return simulation;
}

static double makespan(const char *name, int ranks, int microbatches, const struct simulate_costs *costs)
{
    struct simulation *simulation = simulate(name, ranks, microbatches, costs);
    double result = simulation ? simulation->makespan : NAN;
    simulate_destroy(simulation);
    return result;
}

/* T = 3 (M + P - 1), bubble (P - 1) / (M + P - 1), for every small size; the idle time in its three parts. */
static void closed_forms(const char *name)
{
    struct even even;
    const struct simulate_costs *costs = even_costs(&even, 1, 1, 1, 0);
    int cases = 0, times = 0, bubbles = 0, sums = 0;
    for (int ranks = 1; ranks <= 8; ranks++)
        for (int microbatches = 1; microbatches <= 32; microbatches++, cases++) {
            struct simulation *simulation = simulate(name, ranks, microbatches, costs);
            int turns = microbatches + ranks - 1;
            times += simulation->makespan == 3.0 * turns;
            bubbles += fabs(simulation->bubble - (ranks - 1.0) / turns) < 1e-15;
            bool sum = true;
            for (int r = 0; r < ranks; r++) {
                const struct simulate_rank *rank = &simulation->ranks[r];
                sum &= rank->busy == 3.0 * microbatches && rank->start == r && rank->end == 3.0 * turns - 2 * r &&
                       rank->fill + rank->drain == 3.0 * (ranks - 1) && rank->imbalance == 0 &&
                       rank->communication == 0;
                /* the first gradient comes back P forwards and P-1-r backwards after the start */
                int ahead = microbatches < ranks - r || !strcmp(name, "gpipe") ? microbatches : ranks - r;
                if (strcmp(name, "gpipe") && microbatches >= ranks)
                    sum &= rank->fill == ranks + 2 * (ranks - 1 - r) - ahead;
            }
            sums += sum;
            simulate_destroy(simulation);
        }
    ok(times == cases, "%s: makespan 3(M + P - 1) for P <= 8, M <= 32", name);
    ok(bubbles == cases, "%s: bubble (P - 1)/(M + P - 1)", name);
    ok(sums == cases, "%s: every rank's start, end and idle parts", name);
}

static void published(void)
{
    static const struct {
        double forward, input, weight, message, gpipe, one;
    } rows[] = {{1, 1, 1, 0, 33, 33},
                {1, 1, 1, 0.1, 33.6, 34.6},
                {1, 1, 1, 0.5, 36, 41},
                {1, 1.2, 0.8, 0, 33, 33},
                {1, 1.2, 0.8, 0.1, 33.6, 34.6}};
    static const double fewer[] = {12, 15, 18};
    struct even even;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct simulate_costs *costs =
            even_costs(&even, rows[i].forward, rows[i].input, rows[i].weight, rows[i].message);
        is_near(makespan("gpipe", 4, 8, costs), rows[i].gpipe, 1e-12, "gpipe, costs %zu", i);
        is_near(makespan("1f1b", 4, 8, costs), rows[i].one, 1e-12, "1f1b, costs %zu", i);
    }
    const struct simulate_costs *costs = even_costs(&even, 1, 1, 1, 0.5);
    is_near(makespan("1f1b", 8, 32, costs), 151, 1e-12, "1f1b, 8 ranks, slow messages");
    costs = even_costs(&even, 1, 1, 1, 0);
    for (int microbatches = 1; microbatches <= 3; microbatches++) {
        is_near(makespan("gpipe", 4, microbatches, costs), fewer[microbatches - 1], 0, "gpipe, M = %d", microbatches);
        is_near(makespan("1f1b", 4, microbatches, costs), fewer[microbatches - 1], 0, "1f1b, M = %d", microbatches);
    }

    even.forward[3] = even.input[3] = even.weight[3] = 1.5;
    is_near(makespan("gpipe", 4, 8, costs), 45, 1e-12, "gpipe with a slow last stage");
    is_near(makespan("1f1b", 4, 8, costs), 45, 1e-12, "1f1b with a slow last stage");

    /* each boundary has its own cost and is passed once each way by the only microbatch */
    costs = even_costs(&even, 0, 0, 0, 0);
    even.message[0] = 1, even.message[1] = 10, even.message[2] = 100;
    is_near(makespan("1f1b", 4, 1, costs), 222, 0, "messages alone");
    is_near(makespan("1f1b", 1, 5, costs), 0, 0, "nothing at all");
}

/* Stages that differ, without messages: the sum of all stages once and the slowest for every further microbatch. */
static void uneven(void)
{
    struct even even;
    const struct simulate_costs *costs = even_costs(&even, 0, 0, 0, 0);
    unsigned random = 1;
    int cases = 0, right = 0;
    for (int ranks = 1; ranks <= 6; ranks++)
        for (int microbatches = 1; microbatches <= 12; microbatches++, cases++) {
            double sum = 0, most = 0;
            for (int stage = 0; stage < ranks; stage++) {
                random = random * 1103515245u + 12345u;
                double scale = 1 + (random >> 16) % 7;
                even.forward[stage] = scale;
                even.input[stage] = scale;
                even.weight[stage] = scale;
                sum += 3 * scale;
                most = fmax(most, 3 * scale);
            }
            right += makespan("gpipe", ranks, microbatches, costs) == sum + (microbatches - 1) * most;
        }
    ok(right == cases, "gpipe with uneven stages: sum + (M - 1) * slowest");
}

static void append(struct schedule *schedule, int rank, enum operation op, int stage, int microbatch)
{
    schedule_append(schedule, rank, (struct instruction){op, stage, microbatch, -1});
}

/* ZB-H1 (arXiv 2401.10241): T = 3M + P - 1 for M >= P, and per rank at most P microbatches wait for their W. */
static void zero_bubble(void)
{
    struct even even;
    const struct simulate_costs *costs = even_costs(&even, 1, 1, 1, 0);
    struct err err = {""};
    int cases = 0, right = 0;
    for (int ranks = 1; ranks <= 6; ranks++)
        for (int microbatches = ranks; microbatches <= 20; microbatches++, cases++) {
            struct schedule *schedule = schedule_create(ranks, 1, microbatches, PLACEMENT_LOOP);
            for (int r = 0; r < ranks; r++) {
                int f = 0, w = 0;
                while (f < ranks - r)
                    append(schedule, r, FORWARD, r, f++);
                for (int i = 0; i < microbatches;) {
                    append(schedule, r, BACKWARD_INPUT, r, i++);
                    if (f < microbatches) {
                        if (f - w >= ranks)
                            append(schedule, r, BACKWARD_WEIGHT, r, w++);
                        append(schedule, r, FORWARD, r, f++);
                    } else if (i - w > r)
                        append(schedule, r, BACKWARD_WEIGHT, r, w++);
                }
                while (w < microbatches)
                    append(schedule, r, BACKWARD_WEIGHT, r, w++);
            }
            struct schedule *lowered = lower_schedule(schedule, &err);
            struct simulation *simulation = lowered ? simulate_schedule(lowered, costs, &err) : NULL;
            right += simulation && simulation->makespan == 3 * microbatches + ranks - 1;
            simulate_destroy(simulation);
            schedule_destroy(lowered);
            schedule_destroy(schedule);
        }
    ok(right == cases, "split backwards: makespan 3M + P - 1 %s", err.text);
}

/* In a loop without messages' cost the ranks never wait; lowering changes nothing in time. */
static void forward_only(void)
{
    struct even even;
    const struct simulate_costs *costs = even_costs(&even, 1, 5, 7, 0);
    struct err err;
    int cases = 0, loops = 0, turns = 0, same = 0;
    for (int chunks = 1; chunks <= 3; chunks++)
        for (int ranks = 1; ranks <= 8; ranks++)
            for (int groups = 1; groups <= 4; groups++, cases++) {
                int microbatches = ranks * groups;
                struct schedule *loop = generate_forward_only(ranks, chunks, PLACEMENT_LOOP, microbatches, &err);
                struct simulation *simulation = simulate_schedule(loop, costs, &err);
                bool right = simulation->makespan == chunks * microbatches + ranks - 1;
                for (int r = 0; r < ranks; r++) {
                    const struct simulate_rank *rank = &simulation->ranks[r];
                    right &= rank->fill == r && rank->drain == ranks - 1 - r && rank->imbalance == 0 &&
                             rank->communication == 0;
                }
                loops += right;
                struct schedule *lowered = lower_schedule(loop, &err);
                struct simulation *again = simulate_schedule(lowered, costs, &err);
                same += again->makespan == simulation->makespan && again->bubble == simulation->bubble;
                simulate_destroy(simulation);
                simulate_destroy(again);
                schedule_destroy(loop);
                schedule_destroy(lowered);

                struct schedule *v = generate_forward_only(ranks, 2, PLACEMENT_V, microbatches, &err);
                simulation = simulate_schedule(v, costs, &err);
                turns += simulation->makespan == 2 * (microbatches - 1 + ranks);
                simulate_destroy(simulation);
                schedule_destroy(v);
            }
    ok(loops == cases, "forward only in a loop: makespan MV + P - 1, and no rank waits in between");
    ok(same == cases, "a lowered table takes the same time");
    ok(turns == cases, "forward only in a V: makespan 2(M + P - 1)");
}

/* A table whose ranks do not fit together. */
static void refusal(void)
{
    struct err err = {""};
    struct even even;
    struct schedule *schedule = generate_schedule("1f1b", 2, 1, 2, &err);
    schedule->lists[1].count = 0;
    ok(!simulate_schedule(schedule, even_costs(&even, 1, 1, 1, 0), &err), "a table that cannot finish is refused");
    is_text(err.text, "rank 0 instruction 2 (0B0): its input is never computed", "and told where");
    schedule_destroy(schedule);
}

int main(void)
{
    closed_forms("gpipe");
    closed_forms("1f1b");
    published();
    uneven();
    zero_bubble();
    forward_only();
    refusal();
    return tap_done();
}
