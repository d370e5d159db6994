#include "pipeline/partition.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "pipeline/partition_loads.h"

/* The best partitions of the first layers, for one number of stages. */
struct best {
    bool *exists;   /* [layers + 1] by the number of layers */
    int64_t *loads; /* [layers + 1][stages] sorted, largest first */
    int *cuts;      /* [layers + 1][stages] ends of the stages */
};

struct search {
    const struct partition_problem *problem;
    const struct loads *loads;
    int64_t ceiling;  /* no better partition has a stage that bears more */
    struct best done; /* with one stage less */
    struct best now;
};

static size_t row(const struct search *search, int layers)
{
    return (size_t)layers * (size_t)search->problem->stages;
}

static struct best best_create(int layers, int stages)
{
    size_t rows = (size_t)layers + 1;
    return (struct best){.exists = allocate(rows, sizeof(bool)),
                         .loads = allocate(rows * (size_t)stages, sizeof(int64_t)),
                         .cuts = allocate(rows * (size_t)stages, sizeof(int))};
}

static void best_destroy(struct best *best)
{
    free(best->exists);
    free(best->loads);
    free(best->cuts);
}

/* Compares (a partition of the first `from` layers into `stages` - 1 with a stage of this load behind it) with the best
 * one of `end` layers so far: negative when it is better. */
static int compare(const struct search *search, int from, int end, int stages, int64_t load)
{
    const int64_t *old = search->done.loads + row(search, from), *best = search->now.loads + row(search, end);
    bool inserted = false;
    for (int place = 0; place < stages; place++) {
        int64_t next = load;
        if (!inserted && (place == stages - 1 || load >= old[place]))
            inserted = true;
        else
            next = old[inserted ? place - 1 : place];
        if (next != best[place])
            return next < best[place] ? -1 : 1;
    }
    const int *old_cuts = search->done.cuts + row(search, from), *best_cuts = search->now.cuts + row(search, end);
    for (int place = 0; place < stages - 1; place++)
        if (old_cuts[place] != best_cuts[place])
            return old_cuts[place] < best_cuts[place] ? -1 : 1;
    return 0;
}

static void take(struct search *search, int from, int end, int stages, int64_t load)
{
    const int64_t *old = search->done.loads + row(search, from);
    int64_t *best = search->now.loads + row(search, end);
    int place = 0;
    for (; place < stages - 1 && old[place] > load; place++)
        best[place] = old[place];
    best[place] = load;
    for (; place < stages - 1; place++)
        best[place + 1] = old[place];

    int *cuts = search->now.cuts + row(search, end);
    memcpy(cuts, search->done.cuts + row(search, from), (size_t)(stages - 1) * sizeof *cuts);
    cuts[stages - 1] = end;
    search->now.exists[end] = true;
}

/* Finds the best partition of the first `end` layers into `stages`, from all with one stage less. */
static void extend(struct search *search, int end, int stages)
{
    const int64_t *bottleneck = search->now.loads + row(search, end);
    search->now.exists[end] = false;
    for (int from = stages == 1 ? 0 : end - 1; from >= stages - 1; from--) { /* the first stage starts the model */
        struct partition_slice slice = {stages - 1, from, end};
        int64_t load = loads_of_rank(search->loads, &slice, 1), own = loads_own(search->loads, &slice, load);
        if (own > search->ceiling || (search->now.exists[end] && own > *bottleneck))
            break; /* and more so with any more layers */
        if (search->done.exists[from] && (!search->now.exists[end] || compare(search, from, end, stages, load) < 0) &&
            loads_excess(search->loads, &slice, 1) == 0)
            take(search, from, end, stages, load);
    }
}

/* The largest load of a cut into equal numbers of layers, if that fits; no better cut has a larger one. */
static int64_t ceiling_of(const struct loads *loads)
{
    const struct partition_problem *problem = loads->problem;
    int64_t ceiling = 0, excess = 0;
    for (int stage = 0; stage < problem->stages; stage++) {
        struct partition_slice slice = loads_even_slice(problem, stage);
        int64_t load = loads_of_rank(loads, &slice, 1);
        ceiling = load > ceiling ? load : ceiling;
        excess += loads_excess(loads, &slice, 1);
    }
    return excess == 0 ? ceiling : INT64_MAX;
}

/* The exact best partition by the loads of stages. */
static int balance_stages(const struct loads *loads, int *first_layer, struct err *err)
{
    const struct partition_problem *problem = loads->problem;
    int layers = problem->layers, stages = problem->stages;
    struct search search = {.problem = problem,
                            .loads = loads,
                            .ceiling = ceiling_of(loads),
                            .done = best_create(layers, stages),
                            .now = best_create(layers, stages)};
    search.now.exists[0] = true;
    for (int stage = 1; stage <= stages; stage++) {
        struct best swap = search.done;
        search.done = search.now;
        search.now = swap;
        for (int end = stage; end <= layers - (stages - stage); end++)
            extend(&search, end, stage);
    }
    int status = 0;
    if (!search.now.exists[layers]) {
        status = err_set(err, "no cut of %d layers into %d stages fits into the memory of every rank", layers, stages);
    } else {
        first_layer[0] = 0;
        memcpy(first_layer + 1, search.now.cuts + row(&search, layers), (size_t)stages * sizeof *first_layer);
    }
    best_destroy(&search.done);
    best_destroy(&search.now);
    return status;
}

int partition_balanced(const struct partition_problem *problem, int *first_layer, struct err *err)
{
    if (problem->stages < 1 || problem->layers < problem->stages)
        return err_set(err, "%d layers do not make %d stages: every stage needs at least one", problem->layers,
                       problem->stages);
    struct loads loads;
    int status = loads_create(&loads, problem, err);
    if (status == 0)
        status = balance_stages(&loads, first_layer, err);
    if (status == 0 && problem->rank_of)
        status = partition_descend(&loads, first_layer, err);
    loads_destroy(&loads);
    return status;
}

static int check_stages(int blocks, int stages, struct err *err)
{
    if (blocks < 0 || stages < 1 || stages - 2 > blocks)
        return err_set(
            err,
            "pipeline * chunks = %d stages are too many for layers = %d: with the embedding and the head alone "
            "there are at most layers + 2",
            stages, blocks);
    return 0;
}

int partition_uniform(int blocks, int stages, int *first_layer, struct err *err)
{
    if (check_stages(blocks, stages, err) < 0)
        return -1;
    /* with layers + 2 stages the remainder has to pass over the first one, which has the embedding */
    int skipped = stages == blocks + 2 ? 1 : 0;
    int each = blocks / (stages - skipped), remainder = blocks % (stages - skipped);
    first_layer[0] = 0;
    for (int stage = 0; stage < stages; stage++) {
        int turn = stage - skipped;
        int own = turn < 0 ? 0 : each + (turn < remainder ? 1 : 0);
        first_layer[stage + 1] = first_layer[stage] + own + (stage == 0) + (stage == stages - 1);
    }
    return 0;
}

int partition_explicit(int blocks, int stages, const int *stage_layers, int count, int *first_layer, struct err *err)
{
    if (count != stages)
        return err_set(err, "stage_layers has %d values, but pipeline * chunks = %d stages need one each", count,
                       stages);
    if (check_stages(blocks, stages, err) < 0)
        return -1;
    int64_t sum = 0;
    for (int stage = 0; stage < stages; stage++) {
        bool at_end = stage == 0 || stage == stages - 1;
        if (stage_layers[stage] < 0 || (stage_layers[stage] == 0 && !at_end))
            return err_set(
                err,
                "stage_layers(%d) = %d: a stage needs at least one block; only the first and the last, which "
                "have the embedding and the head, can do without",
                stage + 1, stage_layers[stage]);
        sum += stage_layers[stage];
    }
    if (sum != blocks)
        return err_set(err, "stage_layers adds up to %lld blocks, but layers = %d", (long long)sum, blocks);
    first_layer[0] = 0;
    for (int stage = 0; stage < stages; stage++)
        first_layer[stage + 1] = first_layer[stage] + stage_layers[stage] + (stage == 0) + (stage == stages - 1);
    return 0;
}
