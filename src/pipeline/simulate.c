#include "pipeline/simulate.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "base/memory.h"

/* The output of one computation. */
struct product {
    double end;     /* of the computation; negative: not yet */
    double arrival; /* on its consumer's rank */
};

struct rank_run {
    int64_t next;     /* place in the list */
    double free;      /* neither computing nor occupied by a send, s */
    double link[2];   /* to the rank above, and to the one below where that is another: free from, s */
    int64_t forwards; /* yet to come */
    bool filled;      /* the computation has begun that ends the fill */
    bool awake;       /* on the stack */
};

struct run {
    const struct schedule *schedule;
    const struct simulate_costs *costs;
    struct simulation *simulation;
    struct simulate_spans *spans; /* [ranks], or NULL */
    struct product *forward;      /* [stages * microbatches] */
    struct product *gradient;     /* [stages * microbatches] of BACKWARD or BACKWARD_INPUT */
    struct rank_run *ranks;       /* [ranks] */
    double *slots;                /* [stages][MESSAGE_KINDS][send_slots] in turn: when the last send from it is done */
    int64_t *sends;               /* [stages][MESSAGE_KINDS] so far */
    int *awake;                   /* [ranks] stack of ranks that may be able to go on */
    int awake_count;
};

static double seconds(const double *costs, int index)
{
    return costs ? costs[index] : 0;
}

static void wake(struct run *run, int rank)
{
    if (run->ranks[rank].awake)
        return;
    run->ranks[rank].awake = true;
    run->awake[run->awake_count++] = rank;
}

static enum trace_lane lane_of(enum operation op)
{
    switch (op) {
    case SEND_ACTIVATION:
    case SEND_GRADIENT:
        return TRACE_SEND;
    case RECEIVE_ACTIVATION:
    case RECEIVE_GRADIENT:
        return TRACE_RECEIVE;
    case REDUCE_GRADIENTS:
        return TRACE_REDUCE;
    case FORWARD:
    case BACKWARD:
    case BACKWARD_INPUT:
    case BACKWARD_WEIGHT:
    case OPTIMIZER_STEP:
        break;
    }
    return TRACE_COMPUTE;
}

static void record(struct run *run, int rank, struct instruction item, double begin, double end)
{
    if (!run->spans)
        return;
    struct simulate_spans *spans = &run->spans[rank];
    if (spans->count == spans->capacity) {
        spans->capacity = spans->capacity ? 2 * spans->capacity : 64;
        spans->items = realloc(spans->items, (size_t)spans->capacity * sizeof *spans->items);
        if (!spans->items)
            fatal("out of host memory: the simulated trace of %d stages and %d microbatches", run->schedule->stages,
                  run->schedule->microbatches);
    }
    spans->items[spans->count++] = (struct trace_span){.name = instruction_name(item.op),
                                                       .begin = begin,
                                                       .end = end,
                                                       .bytes = -1,
                                                       .step = -1,
                                                       .stage = item.stage,
                                                       .microbatch = item.microbatch,
                                                       .lane = lane_of(item.op)};
}

/* Of a rank's computation at a place of its list. */
static double duration(const struct simulate_costs *costs, struct instruction now, int rank, int64_t place)
{
    if (costs->computation)
        return costs->computation[rank][place];
    switch (now.op) {
    case FORWARD:
        return seconds(costs->forward, now.stage);
    case BACKWARD:
        return seconds(costs->input, now.stage) + seconds(costs->weight, now.stage);
    case BACKWARD_INPUT:
        return seconds(costs->input, now.stage);
    case BACKWARD_WEIGHT:
        return seconds(costs->weight, now.stage);
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

/* The other rank that takes the computation's output, or -1. */
static int receiver(const struct schedule *schedule, struct instruction now)
{
    int consumer = schedule_consumer(schedule, now);
    if (consumer < 0)
        return -1;
    int rank = schedule_rank_of(schedule, consumer);
    return rank == schedule_rank_of(schedule, now.stage) ? -1 : rank;
}

/* Index of the boundary that a message between the stage and its neighbour crosses. */
static int boundary(int stage, int neighbour)
{
    return stage < neighbour ? stage : neighbour;
}

static struct product input_of(const struct run *run, struct instruction now)
{
    int producer = schedule_producer(run->schedule, now);
    if (producer < 0)
        return (struct product){0, 0};
    const struct product *products = now.op == FORWARD ? run->forward : run->gradient;
    return products[schedule_cell(run->schedule, producer, now.microbatch)];
}

/* The slot that the computation's output is sent from, or NULL. */
static double *slot_of(const struct run *run, struct instruction now)
{
    int slots = run->costs->send_slots;
    if (slots == 0 || receiver(run->schedule, now) < 0)
        return NULL;
    size_t queue = (size_t)now.stage * MESSAGE_KINDS + (now.op == FORWARD ? MESSAGE_ACTIVATION : MESSAGE_GRADIENT);
    return &run->slots[queue * (size_t)slots + (size_t)(run->sends[queue] % slots)];
}

/* Sends the output of a computation that ends at `end`; returns its arrival. */
static double send(struct run *run, int rank, struct instruction now, double end)
{
    const struct schedule *schedule = run->schedule;
    int consumer = schedule_consumer(schedule, now), peer = receiver(schedule, now);
    if (peer < 0)
        return end;
    int between = boundary(now.stage, consumer);
    double message = seconds(run->costs->message, between), latency = seconds(run->costs->latency, between);
    struct rank_run *own = &run->ranks[rank];
    double *link = &own->link[peer != (rank + 1) % schedule->ranks], *slot = slot_of(run, now);
    double begin = fmax(end, *link), done = begin + message;
    *link = done;
    own->free += run->costs->occupied * message;
    if (slot) {
        *slot = done;
        run->sends[now.stage * MESSAGE_KINDS + (now.op == FORWARD ? MESSAGE_ACTIVATION : MESSAGE_GRADIENT)]++;
    }
    bool forward = now.op == FORWARD;
    record(run, rank, (struct instruction){forward ? SEND_ACTIVATION : SEND_GRADIENT, now.stage, now.microbatch, peer},
           end, done);
    record(run, peer,
           (struct instruction){forward ? RECEIVE_ACTIVATION : RECEIVE_GRADIENT, consumer, now.microbatch, rank}, begin,
           done + latency);
    return done + latency;
}

/* Gives the idle time before a computation its reason. */
static void count_idle(struct run *run, int rank, enum operation op, double start, double producer_end)
{
    struct simulate_rank *result = &run->simulation->ranks[rank];
    struct rank_run *own = &run->ranks[rank];
    double idle = start - result->end;
    if (!own->filled) {
        result->fill += idle;
    } else if (own->forwards == 0) {
        result->drain += idle;
    } else {
        double imbalance = fmax(0, fmin(producer_end, start) - own->free);
        result->imbalance += imbalance;
        result->communication += idle - imbalance;
    }
    own->forwards -= op == FORWARD;
    own->filled |= op != FORWARD || run->schedule->forward_only;
}

/* Runs a computation; false when it has to wait for one that has not been simulated yet. */
static bool compute(struct run *run, int rank, struct instruction now)
{
    const struct schedule *schedule = run->schedule;
    struct simulate_rank *result = &run->simulation->ranks[rank];
    struct rank_run *own = &run->ranks[rank];
    struct product input = input_of(run, now);
    if (input.end < 0)
        return false;
    double start = own->free;
    const double *slot = slot_of(run, now);
    if (schedule_source(schedule, now) >= 0) {
        double message = seconds(run->costs->message, boundary(now.stage, schedule_producer(schedule, now)));
        start = fmax(start + run->costs->occupied * message, input.arrival);
    }
    if (slot)
        start = fmax(start, *slot);

    count_idle(run, rank, now.op, start, input.end);
    if (result->busy == 0)
        result->start = start;
    double length = duration(run->costs, now, rank, own->next), end = start + length;
    result->busy += length;
    result->end = own->free = end;
    record(run, rank, now, start, end);
    if (now.op != BACKWARD_WEIGHT) {
        struct product *products = now.op == FORWARD ? run->forward : run->gradient;
        products[schedule_cell(schedule, now.stage, now.microbatch)] = (struct product){end, send(run, rank, now, end)};
        int consumer = schedule_consumer(schedule, now);
        if (consumer >= 0)
            wake(run, schedule_rank_of(schedule, consumer));
    }
    return true;
}

/* Runs the rank's next instruction; false when it has to wait. */
static bool run_one(struct run *run, int rank)
{
    struct rank_run *own = &run->ranks[rank];
    struct simulate_rank *result = &run->simulation->ranks[rank];
    struct instruction now = run->schedule->lists[rank].items[own->next];
    if (instruction_computes(now.op) && !compute(run, rank, now))
        return false;
    if (now.op == REDUCE_GRADIENTS && run->costs->reduce) {
        double begin = fmax(result->end, result->reduced);
        result->reduced = begin + run->costs->reduce[now.stage];
        record(run, rank, now, begin, result->reduced);
    }
    own->next++;
    return true;
}

/* What follows the computations: all wait for all, first for their ends of tied weights, then for the norm. */
static void finish_step(struct run *run)
{
    struct simulation *simulation = run->simulation;
    const struct simulate_costs *costs = run->costs;
    int ranks = run->schedule->ranks;
    double tied = 0, longest = 0;
    simulation->reduced = simulation->step_seconds = simulation->makespan;
    for (int rank = 0; rank < ranks; rank++) {
        struct simulate_rank *result = &simulation->ranks[rank];
        result->reduced = fmax(result->reduced, result->end);
        if (seconds(costs->tied, rank) > 0)
            tied = fmax(tied, result->reduced);
    }
    if (run->schedule->forward_only)
        return;
    for (int rank = 0; rank < ranks; rank++) {
        simulation->reduced = fmax(simulation->reduced, simulation->ranks[rank].reduced);
        if (seconds(costs->tied, rank) > 0)
            simulation->reduced = fmax(simulation->reduced, tied + costs->tied[rank]);
    }
    for (int rank = 0; rank < ranks; rank++) {
        double step = seconds(costs->step, rank), begin = simulation->reduced;
        longest = fmax(longest, step + seconds(costs->gather, rank));
        if (step > 0)
            record(run, rank, (struct instruction){OPTIMIZER_STEP, -1, -1, -1}, begin, begin + step);
    }
    simulation->step_seconds = simulation->reduced + longest;
}

static void summarize(struct run *run)
{
    struct simulation *simulation = run->simulation;
    int ranks = run->schedule->ranks;
    double busy = 0, makespan = 0;
    for (int rank = 0; rank < ranks; rank++) {
        busy += simulation->ranks[rank].busy;
        makespan = fmax(makespan, simulation->ranks[rank].end);
    }
    simulation->makespan = makespan;
    simulation->bubble = makespan > 0 ? 1 - busy / (ranks * makespan) : 0;
    for (int rank = 0; rank < ranks; rank++)
        simulation->ranks[rank].drain += makespan - simulation->ranks[rank].end;
    finish_step(run);
}

static int check_finished(const struct run *run, struct err *err)
{
    for (int rank = 0; rank < run->schedule->ranks; rank++) {
        const struct instruction_list *list = &run->schedule->lists[rank];
        int64_t index = run->ranks[rank].next;
        char text[INSTRUCTION_TEXT_SIZE];
        if (index < list->count)
            return err_set(err, "rank %d instruction %" PRId64 " (%s): its input is never computed", rank, index,
                           instruction_text(list->items[index], text));
    }
    return 0;
}

struct simulation *simulate_recorded(const struct schedule *schedule, const struct simulate_costs *costs,
                                     struct simulate_spans *spans, struct err *err)
{
    size_t ranks = (size_t)schedule->ranks, cells = schedule_cells(schedule);
    size_t queues = (size_t)schedule->stages * MESSAGE_KINDS;
    struct simulation *simulation = allocate(1, sizeof *simulation);
    simulation->ranks = allocate(ranks, sizeof *simulation->ranks);
    struct run run = {.schedule = schedule,
                      .costs = costs,
                      .simulation = simulation,
                      .spans = spans,
                      .forward = allocate(cells, sizeof *run.forward),
                      .gradient = allocate(cells, sizeof *run.gradient),
                      .ranks = allocate(ranks, sizeof *run.ranks),
                      .slots = allocate(queues * (size_t)costs->send_slots, sizeof *run.slots),
                      .sends = allocate(queues, sizeof *run.sends),
                      .awake = allocate(ranks, sizeof *run.awake)};
    for (size_t cell = 0; cell < cells; cell++)
        run.forward[cell].end = run.gradient[cell].end = -1;
    for (int rank = schedule->ranks - 1; rank >= 0; rank--) {
        run.ranks[rank].forwards = (int64_t)schedule->chunks * schedule->microbatches;
        wake(&run, rank);
    }
    while (run.awake_count > 0) {
        int rank = run.awake[--run.awake_count];
        run.ranks[rank].awake = false;
        while (run.ranks[rank].next < schedule->lists[rank].count && run_one(&run, rank))
            continue;
    }
    summarize(&run);
    if (check_finished(&run, err) < 0) {
        simulate_destroy(simulation);
        simulation = NULL;
    }
    free(run.forward);
    free(run.gradient);
    free(run.ranks);
    free(run.slots);
    free(run.sends);
    free(run.awake);
    return simulation;
}

struct simulation *simulate_schedule(const struct schedule *schedule, const struct simulate_costs *costs,
                                     struct err *err)
{
    return simulate_recorded(schedule, costs, NULL, err);
}

void simulate_destroy(struct simulation *simulation)
{
    if (!simulation)
        return;
    free(simulation->ranks);
    free(simulation);
}

void simulate_spans_destroy(struct simulate_spans *spans, int ranks)
{
    for (int rank = 0; rank < ranks; rank++)
        free(spans[rank].items);
    free(spans);
}
