#include "pipeline/simulate.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

struct run {
    const struct schedule *schedule;
    const struct simulate_costs *costs;
    struct simulation *simulation;
    double **starts;      /* [ranks][place in the list] when the computation starts; or NULL */
    double *forward_end;  /* [stages * microbatches]; negative: not computed yet */
    double *gradient_end; /* [stages * microbatches] of BACKWARD or BACKWARD_INPUT */
    int64_t *next;        /* [ranks] place in the rank's list */
    bool *filled;         /* [ranks] the computation has begun that ends the rank's fill */
    int *awake;           /* [ranks] stack of ranks that may be able to go on */
    bool *is_awake;       /* [ranks] is on the stack */
    int awake_count;
};

static void wake(struct run *run, int rank)
{
    if (run->is_awake[rank])
        return;
    run->is_awake[rank] = true;
    run->awake[run->awake_count++] = rank;
}

static double duration(const struct simulate_costs *costs, struct instruction now)
{
    switch (now.op) {
    case FORWARD:
        return costs->forward[now.stage];
    case BACKWARD:
        return costs->input[now.stage] + costs->weight[now.stage];
    case BACKWARD_INPUT:
        return costs->input[now.stage];
    case BACKWARD_WEIGHT:
        return costs->weight[now.stage];
    case SEND_ACTIVATION:
    case RECEIVE_ACTIVATION:
    case SEND_GRADIENT:
    case RECEIVE_GRADIENT:
    case REDUCE_GRADIENTS:
    case OPTIMIZER_STEP:
        break;
    }
    return 0;
}

/* When the input of a computation is on its rank; negative: not known yet. */
static double input_time(const struct run *run, struct instruction now)
{
    int producer = schedule_producer(run->schedule, now);
    if (producer < 0)
        return 0;
    const double *end = now.op == FORWARD ? run->forward_end : run->gradient_end;
    double time = end[schedule_cell(run->schedule, producer, now.microbatch)];
    if (time < 0 || schedule_source(run->schedule, now) < 0)
        return time;
    return time + run->costs->message[producer < now.stage ? producer : now.stage];
}

/* Counts the idle time before a computation. What follows a forward is taken for `drain` until another forward shows
 * that it was not the last one. */
static void count_idle(struct run *run, int rank, enum operation op, double idle)
{
    struct simulate_rank *result = &run->simulation->ranks[rank];
    if (op == FORWARD) {
        result->steady += result->drain;
        result->drain = 0;
    }
    if (!run->filled[rank])
        result->fill += idle;
    else if (op == FORWARD)
        result->steady += idle;
    else
        result->drain += idle;
    run->filled[rank] |= op != FORWARD || run->schedule->forward_only;
}

/* Runs the rank's next instruction; false when it has to wait. */
static bool run_one(struct run *run, int rank)
{
    const struct schedule *schedule = run->schedule;
    struct simulate_rank *result = &run->simulation->ranks[rank];
    struct instruction now = schedule->lists[rank].items[run->next[rank]];
    if (instruction_computes(now.op)) {
        double start = input_time(run, now);
        if (start < 0)
            return false;
        if (start < result->end)
            start = result->end;
        double seconds = duration(run->costs, now), end = start + seconds;
        count_idle(run, rank, now.op, start - result->end);
        if (run->starts)
            run->starts[rank][run->next[rank]] = start;
        if (result->busy == 0)
            result->start = start;
        result->busy += seconds;
        result->end = end;
        if (now.op != BACKWARD_WEIGHT) {
            double *ends = now.op == FORWARD ? run->forward_end : run->gradient_end;
            ends[schedule_cell(schedule, now.stage, now.microbatch)] = end;
            int consumer = schedule_consumer(schedule, now);
            if (consumer >= 0)
                wake(run, schedule_rank_of(schedule, consumer));
        }
    }
    run->next[rank]++;
    return true;
}

static void summarize(const struct schedule *schedule, struct simulation *simulation)
{
    double busy = 0, makespan = 0;
    for (int rank = 0; rank < schedule->ranks; rank++) {
        busy += simulation->ranks[rank].busy;
        makespan = fmax(makespan, simulation->ranks[rank].end);
    }
    simulation->makespan = makespan;
    simulation->bubble = makespan > 0 ? 1 - busy / (schedule->ranks * makespan) : 0;
    for (int rank = 0; rank < schedule->ranks; rank++)
        simulation->ranks[rank].drain += makespan - simulation->ranks[rank].end;
}

static struct simulation *simulate(const struct schedule *schedule, const struct simulate_costs *costs, double **starts,
                                   struct err *err)
{
    size_t ranks = (size_t)schedule->ranks, cells = schedule_cells(schedule);
    struct simulation *simulation = allocate(1, sizeof *simulation);
    simulation->ranks = allocate(ranks, sizeof *simulation->ranks);
    struct run run = {.schedule = schedule,
                      .costs = costs,
                      .simulation = simulation,
                      .starts = starts,
                      .forward_end = allocate(cells, sizeof *run.forward_end),
                      .gradient_end = allocate(cells, sizeof *run.gradient_end),
                      .next = allocate(ranks, sizeof *run.next),
                      .filled = allocate(ranks, sizeof *run.filled),
                      .awake = allocate(ranks, sizeof *run.awake),
                      .is_awake = allocate(ranks, sizeof *run.is_awake)};
    for (size_t cell = 0; cell < cells; cell++)
        run.forward_end[cell] = run.gradient_end[cell] = -1;

    for (int rank = schedule->ranks - 1; rank >= 0; rank--)
        wake(&run, rank);
    while (run.awake_count > 0) {
        int rank = run.awake[--run.awake_count];
        run.is_awake[rank] = false;
        while (run.next[rank] < schedule->lists[rank].count && run_one(&run, rank))
            continue;
    }
    summarize(schedule, simulation);

    for (int rank = 0; rank < schedule->ranks; rank++) {
        int64_t index = run.next[rank];
        if (index == schedule->lists[rank].count)
            continue;
        char text[INSTRUCTION_TEXT_SIZE];
        err_set(err, "rank %d instruction %" PRId64 " (%s): its input is never computed", rank, index,
                instruction_text(schedule->lists[rank].items[index], text));
        simulate_destroy(simulation);
        simulation = NULL;
        break;
    }
    free(run.forward_end);
    free(run.gradient_end);
    free(run.next);
    free(run.filled);
    free(run.awake);
    free(run.is_awake);
    return simulation;
}

struct simulation *simulate_schedule(const struct schedule *schedule, const struct simulate_costs *costs,
                                     struct err *err)
{
    return simulate(schedule, costs, NULL, err);
}

void simulate_destroy(struct simulation *simulation)
{
    if (!simulation)
        return;
    free(simulation->ranks);
    free(simulation);
}

static void print_rank(const struct schedule *schedule, int rank, const struct simulate_costs *costs,
                       const double *starts, int columns, int width, FILE *out)
{
    const struct instruction_list *list = &schedule->lists[rank];
    int column = 0;
    fprintf(out, "r%d:", rank);
    for (int64_t index = 0; index < list->count; index++) {
        if (!instruction_computes(list->items[index].op))
            continue;
        char text[INSTRUCTION_TEXT_SIZE];
        int end = (int)(starts[index] + duration(costs, list->items[index]));
        for (; column < (int)starts[index]; column++)
            fprintf(out, " %-*s", width, ".");
        fprintf(out, " %-*s", width, instruction_text(list->items[index], text));
        for (column++; column < end; column++)
            fprintf(out, " %-*s", width, "-");
    }
    for (; column < columns; column++)
        fprintf(out, " %-*s", width, ".");
    fputc('\n', out);
}

int simulate_print(const struct schedule *schedule, FILE *out, struct err *err)
{
    double *one = allocate((size_t)schedule->stages, sizeof *one);
    double *zero = allocate((size_t)schedule->stages, sizeof *zero);
    double **starts = allocate((size_t)schedule->ranks, sizeof *starts);
    for (int stage = 0; stage < schedule->stages; stage++)
        one[stage] = 1;
    for (int rank = 0; rank < schedule->ranks; rank++)
        starts[rank] = allocate((size_t)schedule->lists[rank].count, sizeof *starts[rank]);

    struct simulate_costs costs = {.forward = one, .input = one, .weight = one, .message = zero};
    struct simulation *simulation = simulate(schedule, &costs, starts, err);
    if (simulation) {
        char text[INSTRUCTION_TEXT_SIZE];
        struct instruction longest = {FORWARD, schedule->stages - 1, schedule->microbatches - 1, -1};
        int width = (int)strlen(instruction_text(longest, text));
        for (int rank = 0; rank < schedule->ranks; rank++)
            print_rank(schedule, rank, &costs, starts[rank], (int)simulation->makespan, width, out);
    }
    for (int rank = 0; rank < schedule->ranks; rank++)
        free(starts[rank]);
    free(starts);
    free(one);
    free(zero);
    int status = simulation ? 0 : -1;
    simulate_destroy(simulation);
    return status;
}
