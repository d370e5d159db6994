/* Partitions against known cuts and against trying all of them. */
#include "pipeline/partition.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tap.h"

enum {
    MOST_LAYERS = 32,
    MOST_STAGES = 16,
    LARGE = 1000
};

/* "0 4 7 10 12" */
static const char *cuts_text(const int *first_layer, int stages, char text[256])
{
    size_t used = 0;
    for (int stage = 0; stage <= stages; stage++)
        used += (size_t)snprintf(text + used, 256 - used, "%s%d", stage ? " " : "", first_layer[stage]);
    return text;
}

/* Bytes of layers, and of the stages they must fit in. */
struct memory {
    const double *bytes;
    const double *capacity;
};

enum {
    CAPACITY = 1000 /* of each rank; of it the stage's own capacity is free for layers */
};

static int64_t bytes_of(void *context, const struct partition_slice *slices, int count)
{
    const struct memory *memory = context;
    double bytes = 0;
    for (int i = 0; i < count; i++) {
        bytes += CAPACITY - memory->capacity[slices[i].stage];
        for (int layer = slices[i].first; layer < slices[i].end; layer++)
            bytes += memory->bytes[layer];
    }
    return (int64_t)bytes;
}

static void known(void)
{
    static double cut[MOST_LAYERS];
    static const double bytes[12] = {2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2}, capacity[4] = {4, 4, 4, 5};
    static double ends[12], deep[26], even[8];
    static const double peaks[8] = {3, 1, 1, 1, 1, 1, 1, 5}, mixed[9] = {2, 3, 1, 4, 2, 5, 1, 1, 3};
    for (int layer = 0; layer < 26; layer++)
        deep[layer] = 1;
    for (int layer = 0; layer < 12; layer++)
        ends[layer] = 1;
    for (int layer = 0; layer < 8; layer++)
        even[layer] = 1;
    for (int layer = 0; layer < MOST_LAYERS; layer++)
        cut[layer] = 0.3;
    ends[0] = 0.2, ends[11] = 2.5, deep[0] = 0.5, deep[25] = 4;

    struct memory memory = {bytes, capacity};
    static const char *const texts[] = {"0 2 4 6 8", "0 4 7 10 12", "0 8 15 22 26", "0 4 7 10 13 17 21 25 26",
                                        "0 2 7 8",   "0 3 5 6 9",   "0 4 7 10 12",  "0 3 6 10 12"};
    const struct partition_problem problems[] = {
        {.layers = 8, .stages = 4, .cost = even},
        {.layers = 12, .stages = 4, .cost = ends},
        {.layers = 26, .stages = 4, .cost = deep},
        {.layers = 26, .stages = 8, .cost = deep},
        {.layers = 8, .stages = 3, .cost = peaks},
        {.layers = 9, .stages = 4, .cost = mixed},
        {.layers = 12, .stages = 4, .cost = ends, .cut_cost = cut},
        {.layers = 12, .stages = 4, .cost = ends, .bytes = bytes_of, .capacity = CAPACITY, .context = &memory}};
    for (size_t i = 0; i < sizeof problems / sizeof *problems; i++) {
        int first_layer[MOST_STAGES + 1];
        char text[256];
        struct err err = {""};
        int status = partition_balanced(&problems[i], first_layer, &err);
        is_text(status == 0 ? cuts_text(first_layer, problems[i].stages, text) : err.text, texts[i], "cuts %zu", i);
    }
}

static int downwards(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* The loads of a partition, largest first. */
static void loads_of(const struct partition_problem *problem, const int *first_layer, double *loads)
{
    for (int stage = 0; stage < problem->stages; stage++) {
        int first = first_layer[stage], end = first_layer[stage + 1];
        loads[stage] = 0;
        for (int layer = first; layer < end; layer++)
            loads[stage] += problem->cost[layer];
        if (problem->cut_cost)
            loads[stage] +=
                (first > 0 ? problem->cut_cost[first] : 0) + (end < problem->layers ? problem->cut_cost[end] : 0);
    }
    qsort(loads, (size_t)problem->stages, sizeof *loads, downwards);
}

/* Tries all cuts in ascending order, so that the first of equals stays. */
static bool try_all(const struct partition_problem *problem, int *best)
{
    int cuts[MOST_STAGES + 1];
    double least[MOST_STAGES], loads[MOST_STAGES];
    bool found = false;
    for (int stage = 0; stage < problem->stages; stage++)
        cuts[stage] = stage;
    cuts[problem->stages] = problem->layers;
    for (;;) {
        bool fit = true;
        for (int stage = 0; stage < problem->stages && problem->bytes; stage++)
            fit &= problem->bytes(problem->context, &(struct partition_slice){stage, cuts[stage], cuts[stage + 1]},
                                  1) <= problem->capacity;
        loads_of(problem, cuts, loads);
        int better = found ? 0 : 1;
        for (int stage = 0; stage < problem->stages && better == 0; stage++)
            better = loads[stage] < least[stage] ? 1 : loads[stage] > least[stage] ? -1 : 0;
        if (fit && better > 0) {
            memcpy(best, cuts, sizeof cuts);
            memcpy(least, loads, sizeof loads);
            found = true;
        }
        /* the next one: move the last cut that has room, and put those behind it right after */
        int stage = problem->stages - 1;
        while (stage > 0 && cuts[stage] == problem->layers - problem->stages + stage)
            stage--;
        if (stage <= 0)
            return found;
        cuts[stage]++;
        for (int behind = stage + 1; behind < problem->stages; behind++)
            cuts[behind] = cuts[behind - 1] + 1;
    }
}

static unsigned next_random(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

static void random_problems(void)
{
    unsigned random = 7;
    int wrong = 0, infeasible = 0, cases = 4000;
    for (int i = 0; i < cases; i++) {
        double cost[MOST_LAYERS], cut[MOST_LAYERS], bytes[MOST_LAYERS], capacity[MOST_STAGES];
        struct memory memory = {bytes, capacity};
        int layers = 1 + (int)(next_random(&random) % 11);
        int stages = 1 + (int)(next_random(&random) % (unsigned)layers);
        unsigned range = 1 + next_random(&random) % 9; /* small ranges give many ties */
        for (int layer = 0; layer < layers; layer++) {
            cost[layer] = next_random(&random) % range;
            cut[layer] = 0.5 * (next_random(&random) % range);
            bytes[layer] = next_random(&random) % 5;
        }
        for (int stage = 0; stage < stages; stage++)
            capacity[stage] = 2 * layers / stages + next_random(&random) % 4;
        struct partition_problem problem = {.layers = layers,
                                            .stages = stages,
                                            .cost = cost,
                                            .cut_cost = i % 2 ? cut : NULL,
                                            .bytes = i % 4 / 2 ? bytes_of : NULL,
                                            .capacity = CAPACITY,
                                            .context = &memory};
        int expected[MOST_STAGES + 1] = {0}, found[MOST_STAGES + 1] = {0};
        struct err err = {""};
        bool exists = try_all(&problem, expected);
        int status = partition_balanced(&problem, found, &err);
        infeasible += !exists;
        if ((status == 0) != exists || (exists && memcmp(expected, found, (size_t)(stages + 1) * sizeof *found) != 0)) {
            char text[2][256];
            if (wrong++ == 0)
                tap_note("case %d: %s, not %s", i, cuts_text(found, stages, text[0]),
                         cuts_text(expected, stages, text[1]));
        }
    }
    ok(wrong == 0, "%d random problems as by trying all cuts", cases);
    ok(infeasible > 50 && infeasible < cases / 4, "%d of them fit no memory", infeasible);
}

/* Sums of the same costs in another order must tie, or the cut would hang on rounding. */
static void rounding(void)
{
    double cost[9];
    int first_layer[4], early = 0, cases = 200;
    unsigned random = 5;
    struct err err = {""};
    struct partition_problem problem = {.layers = 9, .stages = 2, .cost = cost};
    for (int i = 0; i < cases; i++) {
        for (int layer = 0; layer < 5; layer++)
            cost[layer] = cost[8 - layer] = 0.1 * (1 + next_random(&random) % 50);
        early += partition_balanced(&problem, first_layer, &err) == 0 && first_layer[1] <= 4;
    }
    ok(early == cases, "of a cut and its mirror image the earlier one is taken");

    /* scaling all costs changes nothing, even at the ends of the range of a double */
    double tiny[9], huge[9];
    for (int layer = 0; layer < 9; layer++) {
        tiny[layer] = ldexp(1 + layer % 4, -1070);
        huge[layer] = ldexp(1 + layer % 4, 1015);
        cost[layer] = 1 + layer % 4;
    }
    int small[4], large[4];
    problem.stages = 3;
    partition_balanced(&problem, first_layer, &err);
    problem.cost = tiny;
    bool right = partition_balanced(&problem, small, &err) == 0;
    problem.cost = huge;
    right &= partition_balanced(&problem, large, &err) == 0;
    ok(right && !memcmp(small, first_layer, sizeof small) && !memcmp(large, first_layer, sizeof large),
       "cuts do not depend on the unit");
}

/* 1000 layers on 64 stages, equal ones and random ones: the bottleneck against a greedy probe. */
static void large_problem(void)
{
    static double cost[LARGE];
    static int first_layer[65];
    unsigned random = 3;
    struct err err = {""};
    struct partition_problem problem = {.layers = LARGE, .stages = 64, .cost = cost};
    for (int layer = 0; layer < LARGE; layer++)
        cost[layer] = 1;
    ok(partition_balanced(&problem, first_layer, &err) == 0, "1000 equal layers on 64 stages");
    int sixteen = 0;
    for (int stage = 0; stage < 64; stage++)
        sixteen += first_layer[stage + 1] - first_layer[stage] == 16;
    ok(sixteen == 1000 - 15 * 64 && first_layer[1] == 15, "have 15 or 16 layers each, the smaller ones first");

    double bottleneck = 0;
    for (int layer = 0; layer < LARGE; layer++)
        cost[layer] = 1 + next_random(&random) % 1000;
    ok(partition_balanced(&problem, first_layer, &err) == 0, "1000 random layers on 64 stages");
    for (int stage = 0; stage < 64; stage++) {
        double load = 0;
        for (int layer = first_layer[stage]; layer < first_layer[stage + 1]; layer++)
            load += cost[layer];
        bottleneck = fmax(bottleneck, load);
    }
    int stages[2] = {1, 1}; /* needed when filled greedily up to the bottleneck, and up to a little less */
    for (int less = 0; less < 2; less++) {
        double load = 0;
        for (int layer = 0; layer < LARGE; layer++) {
            if (load + cost[layer] > bottleneck - less) {
                stages[less]++;
                load = 0;
            }
            load += cost[layer];
        }
    }
    ok(stages[0] <= 64 && stages[1] > 64, "have the smallest bottleneck there is");
}

static void balanced_refusals(void)
{
    double cost[3] = {1, 1, 1}, bytes[3] = {1, 1, 1}, capacity[2] = {1, 1};
    struct memory memory = {bytes, capacity};
    int first_layer[5];
    struct err err;
    struct partition_problem problem = {.layers = 3, .stages = 4, .cost = cost};
    ok(partition_balanced(&problem, first_layer, &err) < 0, "more stages than layers");
    is_text(err.text, "3 layers do not make 4 stages: every stage needs at least one", "are refused");
    problem.stages = 2;
    problem.bytes = bytes_of, problem.capacity = CAPACITY, problem.context = &memory;
    ok(partition_balanced(&problem, first_layer, &err) < 0, "too little memory");
    is_text(err.text, "no cut of 3 layers into 2 stages fits into the memory of every rank", "is told");
    problem.bytes = NULL;
    const double wrong[] = {-1, NAN, INFINITY, 1e308};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        cost[1] = cost[2] = wrong[i];
        ok(partition_balanced(&problem, first_layer, &err) < 0, "costs of %g are refused", wrong[i]);
    }
}

static void uniform(void)
{
    static const struct {
        int blocks, stages;
        const char *cuts;
    } cases[] = {{4, 1, "0 6"},           {4, 2, "0 3 6"},     {7, 3, "0 4 6 9"},
                 {10, 4, "0 4 7 9 12"},   {4, 4, "0 2 3 4 6"}, {4, 5, "0 2 3 4 5 6"},
                 {4, 6, "0 1 2 3 4 5 6"}, {1, 2, "0 2 3"},     {1, 3, "0 1 2 3"}};
    int first_layer[MOST_STAGES + 1];
    char text[256];
    struct err err = {""};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int status = partition_uniform(cases[i].blocks, cases[i].stages, first_layer, &err);
        is_text(status == 0 ? cuts_text(first_layer, cases[i].stages, text) : err.text, cases[i].cuts,
                "%d blocks evenly in %d stages", cases[i].blocks, cases[i].stages);
    }
    ok(partition_uniform(4, 7, first_layer, &err) < 0, "more stages than layers: %s", err.text);
    ok(strstr(err.text, "pipeline * chunks = 7 stages") && strstr(err.text, "layers = 4"), "are refused by name");
}

static void explicit_cuts(void)
{
    static const int three[] = {3, 1, 2}, ends[] = {0, 4, 2, 0}, hollow[] = {3, 0, 3}, negative[] = {-1, 5, 2},
                     one[] = {6};
    int first_layer[MOST_STAGES + 1];
    char text[256];
    struct err err = {""};
    ok(partition_explicit(6, 3, three, 3, first_layer, &err) == 0, "blocks as told");
    is_text(cuts_text(first_layer, 3, text), "0 4 5 8", "give these cuts");
    ok(partition_explicit(6, 4, ends, 4, first_layer, &err) == 0, "embedding and head alone");
    is_text(cuts_text(first_layer, 4, text), "0 1 5 7 8", "give these cuts");
    ok(partition_explicit(6, 1, one, 1, first_layer, &err) == 0, "everything in one stage");
    is_text(cuts_text(first_layer, 1, text), "0 8", "gives this cut");
    ok(partition_explicit(6, 4, three, 3, first_layer, &err) < 0, "too few values");
    is_text(err.text, "stage_layers has 3 values, but pipeline * chunks = 4 stages need one each", "are refused");
    ok(partition_explicit(7, 3, three, 3, first_layer, &err) < 0, "a wrong sum");
    is_text(err.text, "stage_layers adds up to 6 blocks, but layers = 7", "is refused");
    ok(partition_explicit(6, 3, hollow, 3, first_layer, &err) < 0, "an empty stage in the middle");
    ok(strstr(err.text, "stage_layers(2) = 0: "), "is refused: %s", err.text);
    ok(partition_explicit(6, 3, negative, 3, first_layer, &err) < 0, "a negative number");
    ok(strstr(err.text, "stage_layers(1) = -1: "), "is refused: %s", err.text);
}

int main(void)
{
    known();
    random_problems();
    rounding();
    large_problem();
    balanced_refusals();
    uniform();
    explicit_cuts();
    return tap_done();
}
