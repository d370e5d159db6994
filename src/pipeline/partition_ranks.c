#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "pipeline/partition_loads.h"

/* Costs as integers, so that sums do not depend on their order: a tick is a power of two, at most 2^-52 of the total.
 * Returns -1 for a cost that is negative or not finite. */
static int set_ticks(struct loads *loads)
{
    const struct partition_problem *problem = loads->problem;
    double total = 0;
    for (int layer = 0; layer < problem->layers; layer++) {
        double cut = problem->cut_cost && layer > 0 ? problem->cut_cost[layer] : 0;
        if (!(problem->cost[layer] >= 0) || !(cut >= 0))
            return -1;
        total += problem->cost[layer] + 2 * cut;
    }
    if (!isfinite(total))
        return -1;
    int exponent;
    frexp(total, &exponent);
    for (int layer = 0; layer < problem->layers; layer++) {
        loads->sum[layer + 1] = loads->sum[layer] + llround(ldexp(problem->cost[layer], 52 - exponent));
        if (problem->cut_cost && layer > 0)
            loads->cut[layer] = llround(ldexp(problem->cut_cost[layer], 52 - exponent));
    }
    return 0;
}

int loads_create(struct loads *loads, const struct partition_problem *problem, struct err *err)
{
    size_t count = (size_t)problem->layers + 1;
    *loads = (struct loads){problem, allocate(count, sizeof *loads->sum), allocate(count, sizeof *loads->cut)};
    if (!problem->load && set_ticks(loads) < 0)
        return err_set(err, "the costs of the layers must be finite and not negative");
    return 0;
}

void loads_destroy(struct loads *loads)
{
    free(loads->sum);
    free(loads->cut);
}

/* Whether the stage and the one before it are on one rank. */
static bool joined(const struct partition_problem *problem, int stage)
{
    return problem->rank_of && stage > 0 && stage < problem->stages &&
           problem->rank_of[stage - 1] == problem->rank_of[stage];
}

int64_t loads_of_rank(const struct loads *loads, const struct partition_slice *slices, int count)
{
    const struct partition_problem *problem = loads->problem;
    if (problem->load)
        return problem->load(problem->context, slices, count);
    int64_t load = 0;
    for (int i = 0; i < count; i++) {
        struct partition_slice slice = slices[i];
        load += loads->sum[slice.end] - loads->sum[slice.first];
        load += joined(problem, slice.stage) ? 0 : loads->cut[slice.first];
        load += joined(problem, slice.stage + 1) ? 0 : loads->cut[slice.end];
    }
    return load;
}

int64_t loads_own(const struct loads *loads, const struct partition_slice *slice, int64_t load)
{
    return loads->problem->load ? load : loads->sum[slice->end] - loads->sum[slice->first];
}

int64_t loads_excess(const struct loads *loads, const struct partition_slice *slices, int count)
{
    const struct partition_problem *problem = loads->problem;
    int64_t bytes = problem->bytes ? problem->bytes(problem->context, slices, count) : 0;
    return problem->bytes && bytes > problem->capacity ? bytes - problem->capacity : 0;
}

struct partition_slice loads_even_slice(const struct partition_problem *problem, int stage)
{
    int each = problem->layers / problem->stages, more = problem->layers % problem->stages;
    int first = stage * each + (stage < more ? stage : more);
    return (struct partition_slice){stage, first, first + each + (stage < more ? 1 : 0)};
}

/* What each rank bears under a cut, and what it lacks. */
struct state {
    int *cuts;       /* [stages + 1] first_layer */
    int64_t *load;   /* [ranks] */
    int64_t *excess; /* [ranks] */
    int64_t *sorted; /* [ranks] loads, largest first */
    int64_t lacking; /* sum of excess */
};

struct descent {
    const struct loads *loads;
    int ranks;
    int *stages;                    /* [stages] those of rank 0, of rank 1 ... */
    int *first_of;                  /* [ranks + 1] where each rank's begin in `stages` */
    struct partition_slice *slices; /* [stages] room for those of one rank */
    bool *changed;                  /* [ranks] */
    struct state now, trial;
};

static struct state state_create(int stages, int ranks)
{
    size_t count = (size_t)ranks;
    return (struct state){.cuts = allocate((size_t)stages + 1, sizeof(int)),
                          .load = allocate(count, sizeof(int64_t)),
                          .excess = allocate(count, sizeof(int64_t)),
                          .sorted = allocate(count, sizeof(int64_t))};
}

static void state_destroy(struct state *state)
{
    free(state->cuts);
    free(state->load);
    free(state->excess);
    free(state->sorted);
}

static void descent_create(struct descent *descent, const struct loads *loads)
{
    const struct partition_problem *problem = loads->problem;
    int stages = problem->stages, ranks = 0, placed = 0;
    for (int stage = 0; stage < stages; stage++)
        ranks = problem->rank_of[stage] >= ranks ? problem->rank_of[stage] + 1 : ranks;
    *descent = (struct descent){.loads = loads,
                                .ranks = ranks,
                                .stages = allocate((size_t)stages, sizeof(int)),
                                .first_of = allocate((size_t)ranks + 1, sizeof(int)),
                                .slices = allocate((size_t)stages, sizeof *descent->slices),
                                .changed = allocate((size_t)ranks, sizeof(bool)),
                                .now = state_create(stages, ranks),
                                .trial = state_create(stages, ranks)};
    for (int rank = 0; rank < ranks; rank++) {
        for (int stage = 0; stage < stages; stage++)
            if (problem->rank_of[stage] == rank)
                descent->stages[placed++] = stage;
        descent->first_of[rank + 1] = placed;
    }
}

static void descent_destroy(struct descent *descent)
{
    free(descent->stages);
    free(descent->first_of);
    free(descent->slices);
    free(descent->changed);
    state_destroy(&descent->now);
    state_destroy(&descent->trial);
}

static int downwards(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

static void weigh_rank(struct descent *descent, struct state *state, int rank)
{
    int count = 0;
    for (int i = descent->first_of[rank]; i < descent->first_of[rank + 1]; i++) {
        int stage = descent->stages[i];
        descent->slices[count++] = (struct partition_slice){stage, state->cuts[stage], state->cuts[stage + 1]};
    }
    state->load[rank] = loads_of_rank(descent->loads, descent->slices, count);
    state->excess[rank] = loads_excess(descent->loads, descent->slices, count);
}

static void sort_loads(struct descent *descent, struct state *state)
{
    size_t ranks = (size_t)descent->ranks;
    memcpy(state->sorted, state->load, ranks * sizeof *state->load);
    qsort(state->sorted, ranks, sizeof *state->sorted, downwards);
    state->lacking = 0;
    for (int rank = 0; rank < descent->ranks; rank++)
        state->lacking += state->excess[rank];
}

/* Whether the first lacks less memory, or as much and its loads are smaller in order. */
static bool is_better(const struct state *first, const struct state *second, int ranks)
{
    if (first->lacking != second->lacking)
        return first->lacking < second->lacking;
    for (int rank = 0; rank < ranks; rank++)
        if (first->sorted[rank] != second->sorted[rank])
            return first->sorted[rank] < second->sorted[rank];
    return false;
}

/* Takes the cuts of the trial if they are better. */
static bool try_cuts(struct descent *descent)
{
    const struct partition_problem *problem = descent->loads->problem;
    struct state *trial = &descent->trial, *now = &descent->now;
    size_t ranks = (size_t)descent->ranks;
    memset(descent->changed, 0, ranks * sizeof *descent->changed);
    for (int stage = 0; stage < problem->stages; stage++) {
        if (trial->cuts[stage] >= trial->cuts[stage + 1])
            return false;
        if (trial->cuts[stage] != now->cuts[stage] || trial->cuts[stage + 1] != now->cuts[stage + 1])
            descent->changed[problem->rank_of[stage]] = true;
    }
    memcpy(trial->load, now->load, ranks * sizeof *trial->load);
    memcpy(trial->excess, now->excess, ranks * sizeof *trial->excess);
    for (int rank = 0; rank < descent->ranks; rank++)
        if (descent->changed[rank])
            weigh_rank(descent, trial, rank);
    sort_loads(descent, trial);
    if (!is_better(trial, now, descent->ranks))
        return false;
    struct state swap = *now;
    *now = *trial;
    *trial = swap;
    return true;
}

/* Moves cuts first .. last by some layers, and the cut `other` too. */
static bool try_move(struct descent *descent, int first, int last, int by, int other, int other_by)
{
    memcpy(descent->trial.cuts, descent->now.cuts,
           ((size_t)descent->loads->problem->stages + 1) * sizeof *descent->trial.cuts);
    for (int cut = first; cut <= last; cut++)
        descent->trial.cuts[cut] += by;
    descent->trial.cuts[other] += other_by;
    return try_cuts(descent);
}

/* All moves that have this cut in them: alone, to anywhere between its neighbours; by some layers with the whole row of
 * cuts up to another one, or with another one alone. */
static bool try_cut(struct descent *descent, int cut)
{
    enum {
        FARTHEST = 3
    };
    int stages = descent->loads->problem->stages;
    const int *cuts = descent->now.cuts;
    for (int to = cuts[cut - 1] + 1; to < cuts[cut + 1]; to++)
        if (try_move(descent, cut, cut, to - cuts[cut], cut, 0))
            return true;
    for (int other = 1; other < stages; other++)
        for (int by = -FARTHEST; by <= FARTHEST; by++) {
            int first = cut < other ? cut : other, last = cut < other ? other : cut;
            if (by != 0 && try_move(descent, first, last, by, other, 0))
                return true;
            for (int other_by = -FARTHEST; other_by <= FARTHEST && other != cut; other_by++)
                if (by != 0 && other_by != 0 && try_move(descent, cut, cut, by, other, other_by))
                    return true;
        }
    return false;
}

/* One improvement, by a cut beside a stage of a rank that matters most: one that lacks memory, else one that bears the
 * largest load. */
static bool improve(struct descent *descent)
{
    int stages = descent->loads->problem->stages;
    for (int stage = 0; stage < stages; stage++) {
        int rank = descent->loads->problem->rank_of[stage];
        if (descent->now.lacking > 0 ? descent->now.excess[rank] == 0
                                     : descent->now.load[rank] < descent->now.sorted[0])
            continue;
        if ((stage > 0 && try_cut(descent, stage)) || (stage + 1 < stages && try_cut(descent, stage + 1)))
            return true;
    }
    return false;
}

/* Moves the cuts until nothing improves. */
static void descend(struct descent *descent)
{
    for (int rank = 0; rank < descent->ranks; rank++)
        weigh_rank(descent, &descent->now, rank);
    sort_loads(descent, &descent->now);
    while (improve(descent))
        continue;
}

int partition_descend(const struct loads *loads, int *first_layer, struct err *err)
{
    const struct partition_problem *problem = loads->problem;
    size_t bytes = ((size_t)problem->stages + 1) * sizeof *first_layer;
    struct descent descents[2]; /* from two starts, of which now this, now that one leads further */
    for (int i = 0; i < 2; i++) {
        descent_create(&descents[i], loads);
        memcpy(descents[i].now.cuts, first_layer, bytes);
        for (int stage = 0; stage < problem->stages && i == 1; stage++)
            descents[i].now.cuts[stage + 1] = loads_even_slice(problem, stage).end;
        descend(&descents[i]);
    }
    const struct state *best = &descents[0].now;
    if (is_better(&descents[1].now, best, descents[0].ranks))
        best = &descents[1].now;
    memcpy(first_layer, best->cuts, bytes);
    int status = 0;
    if (best->lacking > 0)
        status = err_set(err, "no cut of %d layers into %d stages was found that fits into the memory of every rank",
                         problem->layers, problem->stages);
    descent_destroy(&descents[0]);
    descent_destroy(&descents[1]);
    return status;
}
