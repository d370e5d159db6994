/* Partitions by loads that do not add up, and with several stages on each rank, against trying all cuts. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/instruction.h"
#include "pipeline/partition.h"
#include "tests/tap.h"

enum {
    MOST_LAYERS = 24,
    MOST_STAGES = 8
};

struct input {
    int64_t weight[MOST_LAYERS];  /* counts for every stage */
    int64_t set[MOST_LAYERS];     /* counts as often as the stage holds sets */
    int64_t scratch[MOST_LAYERS]; /* the largest counts, once on a rank */
    int64_t live[MOST_STAGES];
};

/* As memory does: sums, multiples and maxima. */
static int64_t load_of(void *context, const struct partition_slice *slices, int count)
{
    const struct input *input = context;
    int64_t load = 0, scratch = 0;
    for (int i = 0; i < count; i++)
        for (int layer = slices[i].first; layer < slices[i].end; layer++) {
            load += input->weight[layer] + input->live[slices[i].stage] * input->set[layer];
            scratch = input->scratch[layer] > scratch ? input->scratch[layer] : scratch;
        }
    return load + scratch;
}

static int downwards(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* Loads of the ranks, largest first; false where one does not fit. */
static bool loads_of(const struct partition_problem *problem, const int *cuts, int ranks, int64_t *loads)
{
    bool fits = true;
    for (int rank = 0; rank < ranks; rank++) {
        struct partition_slice slices[MOST_STAGES];
        int count = 0;
        double cost = 0;
        for (int stage = 0; stage < problem->stages; stage++) {
            if ((problem->rank_of ? problem->rank_of[stage] : stage) != rank)
                continue;
            slices[count++] = (struct partition_slice){stage, cuts[stage], cuts[stage + 1]};
            for (int layer = cuts[stage]; layer < cuts[stage + 1] && problem->cost; layer++)
                cost += problem->cost[layer];
            for (int end = 0; end < 2 && problem->cut_cost; end++) {
                int other = end ? stage + 1 : stage - 1;
                if (other >= 0 && other < problem->stages && problem->rank_of[other] != rank)
                    cost += problem->cut_cost[cuts[stage + end]];
            }
        }
        loads[rank] = problem->load ? problem->load(problem->context, slices, count) : (int64_t)cost;
        fits &= !problem->bytes || problem->bytes(problem->context, slices, count) <= problem->capacity;
    }
    qsort(loads, (size_t)ranks, sizeof *loads, downwards);
    return fits;
}

/* Tries all cuts; the sorted loads of the best that fits into `best`. */
static bool try_all(const struct partition_problem *problem, int ranks, int64_t *best)
{
    int cuts[MOST_STAGES + 1], stages = problem->stages;
    bool found = false;
    for (int stage = 0; stage < stages; stage++)
        cuts[stage] = stage;
    cuts[stages] = problem->layers;
    for (;;) {
        int64_t loads[MOST_STAGES];
        bool fits = loads_of(problem, cuts, ranks, loads);
        int better = found ? 0 : 1;
        for (int rank = 0; rank < ranks && better == 0; rank++)
            better = loads[rank] < best[rank] ? 1 : loads[rank] > best[rank] ? -1 : 0;
        if (fits && better > 0) {
            memcpy(best, loads, sizeof loads);
            found = true;
        }
        int stage = stages - 1;
        while (stage > 0 && cuts[stage] == problem->layers - stages + stage)
            stage--;
        if (stage <= 0)
            return found;
        cuts[stage]++;
        for (int behind = stage + 1; behind < stages; behind++)
            cuts[behind] = cuts[behind - 1] + 1;
    }
}

static unsigned next_random(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

static void fill(struct input *input, unsigned *random)
{
    unsigned range = 1 + next_random(random) % 9;
    for (int layer = 0; layer < MOST_LAYERS; layer++) {
        input->weight[layer] = next_random(random) % (10 * range);
        input->set[layer] = next_random(random) % range;
        input->scratch[layer] = next_random(random) % 20;
        if (next_random(random) % 8 == 0)
            input->weight[layer] *= 100;
    }
    for (int stage = 0; stage < MOST_STAGES; stage++)
        input->live[stage] = 1 + next_random(random) % 8;
}

/* One stage on each rank: the sorted loads must be the best. */
static void stages_alone(void)
{
    unsigned random = 23;
    int cases = 2000, right = 0;
    for (int i = 0; i < cases; i++) {
        struct input input;
        int64_t best[MOST_STAGES], loads[MOST_STAGES];
        int first_layer[MOST_STAGES + 1], layers = 2 + (int)(next_random(&random) % 10);
        struct partition_problem problem = {.layers = layers, .load = load_of, .context = &input};
        struct err err = {""};
        problem.stages = 1 + (int)(next_random(&random) % (unsigned)(layers < MOST_STAGES ? layers : MOST_STAGES));
        fill(&input, &random);
        try_all(&problem, problem.stages, best);
        right += partition_balanced(&problem, first_layer, &err) == 0 &&
                 loads_of(&problem, first_layer, problem.stages, loads) &&
                 memcmp(loads, best, (size_t)problem.stages * sizeof *loads) == 0;
    }
    ok(right == cases, "%d of %d problems with loads that depend on the stage as by trying all cuts", right, cases);
}

/* Several stages on each rank: never better than all cuts can be, seldom much worse. */
static void stages_together(enum placement placement, int ranks, int chunks, bool memory, const char *name)
{
    unsigned random = 29;
    struct schedule *schedule = schedule_create(ranks, chunks, 1, placement);
    int cases = 300, exact = 0, close = 0, impossible = 0, rank_of[MOST_STAGES];
    double worst = 1;
    for (int stage = 0; stage < schedule->stages; stage++)
        rank_of[stage] = schedule_rank_of(schedule, stage);
    for (int i = 0; i < cases; i++) {
        struct input input;
        double cost[MOST_LAYERS], cut[MOST_LAYERS];
        int64_t best[MOST_STAGES], loads[MOST_STAGES];
        int first_layer[MOST_STAGES + 1];
        struct err err = {""};
        fill(&input, &random);
        for (int layer = 0; layer < MOST_LAYERS; layer++) {
            cost[layer] = (double)input.weight[layer];
            cut[layer] = (double)(next_random(&random) % 4);
        }
        struct partition_problem problem = {.layers = schedule->stages + (int)(next_random(&random) % 7),
                                            .stages = schedule->stages,
                                            .cost = cost,
                                            .cut_cost = cut,
                                            .load = memory ? load_of : NULL,
                                            .rank_of = rank_of,
                                            .context = &input};
        try_all(&problem, ranks, best);
        bool made = partition_balanced(&problem, first_layer, &err) == 0;
        made &= loads_of(&problem, first_layer, ranks, loads);
        exact += made && loads[0] == best[0];
        close += made && (double)loads[0] <= 1.05 * (double)best[0];
        impossible += !made || loads[0] < best[0];
        worst = made && (double)loads[0] > worst * (double)best[0] ? (double)loads[0] / (double)best[0] : worst;
    }
    ok(impossible == 0, "%s: no partition is better than the best", name);
    ok(exact > cases * 8 / 10, "%s: %d of %d have the smallest bottleneck there is", name, exact, cases);
    ok(close > cases * 9 / 10, "%s: %d are within 5%% of it", name, close);
    ok(worst < 2, "%s: the worst has %.2f of it", name, worst);
    schedule_destroy(schedule);
}

/* By cost within a limit on memory that leaves a twentieth above the least. */
static void limited(enum placement placement, int ranks, int chunks, const char *name)
{
    unsigned random = 31;
    struct schedule *schedule = schedule_create(ranks, chunks, 1, placement);
    int cases = 300, made = 0, kept = 0, exact = 0, free_of = 0, rank_of[MOST_STAGES];
    for (int stage = 0; stage < schedule->stages; stage++)
        rank_of[stage] = schedule_rank_of(schedule, stage);
    for (int i = 0; i < cases; i++) {
        struct input input;
        double cost[MOST_LAYERS];
        int64_t best[MOST_STAGES], loads[MOST_STAGES];
        int first_layer[MOST_STAGES + 1];
        struct err err = {""};
        fill(&input, &random);
        for (int layer = 0; layer < MOST_LAYERS; layer++)
            cost[layer] = 1 + next_random(&random) % 9;
        struct partition_problem problem = {.layers = schedule->stages + (int)(next_random(&random) % 7),
                                            .stages = schedule->stages,
                                            .load = load_of,
                                            .rank_of = rank_of,
                                            .context = &input};
        try_all(&problem, ranks, best);
        problem.load = NULL;
        problem.cost = cost;
        free_of += partition_balanced(&problem, first_layer, &err) == 0; /* and might not fit */
        problem.bytes = load_of;
        problem.capacity = best[0] + best[0] / 20;
        free_of -= loads_of(&problem, first_layer, ranks, loads);
        try_all(&problem, ranks, best);
        if (partition_balanced(&problem, first_layer, &err) < 0)
            continue;
        made++;
        kept += loads_of(&problem, first_layer, ranks, loads);
        exact += loads[0] == best[0];
    }
    ok(free_of > cases / 3, "%s: %d of %d cuts need more memory than there is", name, free_of, cases);
    ok(made > cases * 9 / 10 && kept == made, "%s: %d of %d are found within it", name, made, cases);
    ok(exact > cases * 7 / 10, "%s: %d have the smallest bottleneck there is", name, exact);
    schedule_destroy(schedule);
}

/* Between stages on one rank nothing is sent: there the cut may be dear. */
static void turn(void)
{
    static const double cost[] = {1, 2, 2, 1, 2}, cut[] = {0, 0, 50, 0, 0};
    static const int rank_of[] = {0, 1, 1, 0}, expected[] = {0, 1, 2, 3, 5};
    struct partition_problem problem = {.layers = 5, .stages = 4, .cost = cost, .cut_cost = cut, .rank_of = rank_of};
    int first_layer[5];
    struct err err = {""};
    ok(partition_balanced(&problem, first_layer, &err) == 0 && memcmp(first_layer, expected, sizeof expected) == 0,
       "the turn of a V is where a message would be long");
}

int main(void)
{
    stages_alone();
    stages_together(PLACEMENT_LOOP, 2, 2, false, "2 chunks in a loop, 2 ranks");
    stages_together(PLACEMENT_LOOP, 3, 2, false, "2 chunks in a loop, 3 ranks");
    stages_together(PLACEMENT_LOOP, 2, 4, false, "4 chunks in a loop, 2 ranks");
    stages_together(PLACEMENT_LOOP, 4, 2, true, "memory of 2 chunks in a loop, 4 ranks");
    stages_together(PLACEMENT_V, 2, 2, false, "a V on 2 ranks");
    stages_together(PLACEMENT_V, 4, 2, false, "a V on 4 ranks");
    stages_together(PLACEMENT_V, 3, 2, true, "memory of a V on 3 ranks");
    limited(PLACEMENT_LOOP, 3, 2, "a limit for 2 chunks in a loop");
    limited(PLACEMENT_V, 3, 2, "a limit for a V");
    turn();
    return tap_done();
}
