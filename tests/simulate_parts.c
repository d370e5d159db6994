/* What the simulator says besides the makespan: reasons for idle time, messages that are slow, occupy ranks or wait for
 * slots, reductions and the optimizer step, all against cases worked out by hand and against a clock that ticks; its
 * drawings and its traces. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "pipeline/simulate.h"
#include "tests/tap.h"

enum {
    MOST_RANKS = 4,
    MOST_STAGES = 12,
    MOST_CELLS = MOST_STAGES * 16
};

static struct schedule *lowered(const char *name, int ranks, int chunks, int microbatches)
{
    struct err err = {""};
    struct schedule *schedule = strcmp(name, "forward") == 0
                                    ? generate_forward_only(ranks, chunks, PLACEMENT_LOOP, microbatches, &err)
                                    : generate_schedule(name, ranks, chunks, microbatches, &err);
    struct schedule *result = lower_schedule(schedule, &err);
    schedule_destroy(schedule);
    return result;
}

static struct simulation *simulate(const char *name, int ranks, int chunks, int microbatches,
                                   const struct simulate_costs *costs)
{
    struct err err = {""};
    struct schedule *schedule = lowered(name, ranks, chunks, microbatches);
    struct simulation *simulation = simulate_schedule(schedule, costs, &err);
    schedule_destroy(schedule);
    return simulation;
}

static const double ones[MOST_STAGES] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

static void is_idle(const struct simulation *simulation, int rank, double fill, double imbalance, double communication,
                    double drain, const char *name)
{
    const struct simulate_rank *found = &simulation->ranks[rank];
    is_near(found->fill, fill, 1e-12, "%s, rank %d: fill", name, rank);
    is_near(found->imbalance, imbalance, 1e-12, "%s, rank %d: imbalance", name, rank);
    is_near(found->communication, communication, 1e-12, "%s, rank %d: communication", name, rank);
    is_near(found->drain, drain, 1e-12, "%s, rank %d: drain", name, rank);
}

static void reasons(void)
{
    /* rank 0: F 0-1, F 1-2, B 4.5-6.5, F 6.5-7.5, B 7.5-9.5 (its gradient is there at 7.5), B 11-13;
     * rank 1: F 1.25-2.25, B 2.25-4.25, F 4.25-5.25, B 5.25-7.25, F 7.75-8.75 (made until 7.5), B 8.75-10.75 */
    static const double quarter[] = {0.25}, slow[] = {2, 1}, tenth[] = {0.125};
    struct simulate_costs costs = {.forward = ones, .input = ones, .weight = ones, .message = quarter};
    struct simulation *simulation = simulate("1f1b", 2, 1, 3, &costs);
    is_near(simulation->makespan, 13, 1e-12, "slow messages: makespan");
    is_near(simulation->bubble, 1 - 18.0 / 26, 1e-12, "slow messages: bubble");
    is_idle(simulation, 0, 2.5, 0, 0, 1.5, "slow messages");
    is_idle(simulation, 1, 1.25, 0.25, 0.25, 2.25, "slow messages");
    simulate_destroy(simulation);

    /* rank 0: F 0-2, F 2-4, B 5-9, F 9-11, B 11-15, B 15-19; rank 1: F 2-3, B 3-5, F 5-6, B 6-8, F 11-12, B 12-14 */
    costs = (struct simulate_costs){.forward = slow, .input = slow, .weight = slow};
    simulation = simulate("1f1b", 2, 1, 3, &costs);
    is_near(simulation->makespan, 19, 0, "a slow stage: makespan");
    is_idle(simulation, 0, 1, 0, 0, 0, "a slow stage");
    is_idle(simulation, 1, 2, 3, 0, 5, "a slow stage");
    simulate_destroy(simulation);

    /* the same with rank 1: B -8.25, F 11.375-12.375, made until 11.25 */
    costs.message = tenth;
    simulation = simulate("1f1b", 2, 1, 3, &costs);
    const struct simulate_rank *last = &simulation->ranks[1];
    is_near(last->imbalance, 3.125, 1e-12, "a slow stage and messages: what the slow stage costs");
    is_near(last->communication, 0.125, 1e-12, "a slow stage and messages: what the messages cost");
    simulate_destroy(simulation);

    /* rank 0: F 0-3, sends -4, F 4-7, sends -8, B 9-11, F 11-14, sends -15, B 16-18, B 19-21;
     * rank 1: F 4-5, B 5-7, sends -8, F 9-10, B 10-12, sends -13, F 15-16 (made until 14), B 16-18 */
    static const double three[] = {3, 1};
    costs = (struct simulate_costs){.forward = three, .input = ones, .weight = ones, .message = ones, .occupied = 1};
    simulation = simulate("1f1b", 2, 1, 3, &costs);
    is_near(simulation->makespan, 21, 0, "a slow stage and messages that block: makespan");
    is_idle(simulation, 0, 3, 0, 0, 3, "a slow stage and messages that block");
    is_idle(simulation, 1, 4, 1, 4, 3, "a slow stage and messages that block");
    simulate_destroy(simulation);
}

/* Starts of the computations on one rank. */
static void starts(const struct simulate_costs *costs, int ranks, int chunks, int microbatches, int rank,
                   const char *expected, const char *name)
{
    struct err err = {""};
    struct schedule *schedule = lowered("forward", ranks, chunks, microbatches);
    struct simulate_spans *spans = calloc((size_t)ranks, sizeof *spans);
    struct simulation *simulation = simulate_recorded(schedule, costs, spans, &err);
    char text[256] = "";
    for (int64_t i = 0; i < spans[rank].count; i++)
        if (spans[rank].items[i].lane == TRACE_COMPUTE) {
            size_t used = strlen(text);
            snprintf(text + used, sizeof text - used, "%s%g", used ? " " : "", spans[rank].items[i].begin);
        }
    is_text(text, expected, "%s", name);
    simulate_destroy(simulation);
    simulate_spans_destroy(spans, ranks);
    schedule_destroy(schedule);
}

static void messages(void)
{
    static const double three[] = {3}, two[] = {2}, slow_receiver[] = {1, 4};
    struct simulate_costs costs = {.forward = ones, .message = three};
    starts(&costs, 2, 1, 3, 1, "4 7 10", "transfers go one after another");
    costs = (struct simulate_costs){.forward = ones, .latency = three};
    starts(&costs, 2, 1, 3, 1, "4 5 6", "latency keeps nobody");
    costs = (struct simulate_costs){.forward = ones, .message = two, .latency = three};
    starts(&costs, 2, 1, 3, 1, "6 8 10", "both");

    costs = (struct simulate_costs){.forward = ones, .message = three, .send_slots = 1};
    starts(&costs, 2, 1, 4, 0, "0 4 8 12", "with one slot a computation waits for the send before");
    costs.send_slots = 2;
    starts(&costs, 2, 1, 4, 0, "0 1 4 7", "with two for the one before that");
    starts(&costs, 2, 1, 4, 1, "4 7 10 13", "which delays no message");

    costs = (struct simulate_costs){.forward = ones, .message = two, .occupied = 1};
    starts(&costs, 2, 1, 2, 0, "0 3", "a send that blocks its rank");
    starts(&costs, 2, 1, 2, 1, "3 6", "and a receiver that had nothing else to do");
    costs.occupied = 0.5;
    starts(&costs, 2, 1, 3, 0, "0 2 4", "half a send");
    starts(&costs, 2, 1, 3, 1, "3 5 7", "and its receiver");
    costs.forward = slow_receiver;
    starts(&costs, 2, 1, 3, 1, "3 8 13", "a receiver that had something else to do");
    costs.occupied = 1;
    starts(&costs, 2, 1, 3, 1, "3 9 15", "and does nothing meanwhile");

    struct simulation *simulation = simulate("forward", 2, 1, 3, &costs);
    is_idle(simulation, 0, 0, 0, 4, 12, "occupied ranks"); /* the last send is behind the last forward */
    is_idle(simulation, 1, 3, 0, 4, 0, "occupied ranks");
    simulate_destroy(simulation);
}

static void end_of_step(void)
{
    /* rank 0: F 0-1, B 4-6; rank 1: F 1-2, B 2-4 */
    static const double reduce[] = {1, 5}, tied[] = {1, 1, 0}, step[] = {2, 1}, gather[] = {1, 3};
    struct simulate_costs costs = {.forward = ones, .input = ones, .weight = ones, .reduce = reduce};
    struct simulation *simulation = simulate("1f1b", 2, 1, 1, &costs);
    is_near(simulation->makespan, 6, 0, "the makespan has no reduction in it");
    is_near(simulation->ranks[0].reduced, 7, 0, "a reduction after the last backward");
    is_near(simulation->ranks[1].reduced, 9, 0, "and one beside what follows");
    is_near(simulation->step_seconds, 9, 0, "the step ends with the last");
    simulate_destroy(simulation);

    costs.tied = tied, costs.step = step, costs.gather = gather;
    simulation = simulate("1f1b", 2, 1, 1, &costs);
    is_near(simulation->reduced, 10, 0, "tied ends are added when both are there");
    is_near(simulation->step_seconds, 14, 0, "then the optimizer step and the gather of the slower rank");
    simulate_destroy(simulation);

    /* ends on ranks 0 and 1 are added at 9 + 1 while rank 2 reduces until 4 + 8 */
    static const double late[] = {1, 1, 8};
    costs = (struct simulate_costs){.forward = ones, .input = ones, .weight = ones, .reduce = late, .tied = tied};
    simulation = simulate("1f1b", 3, 1, 1, &costs);
    is_near(simulation->reduced, 13, 0, "ranks without an end are waited for, for the norm");
    simulate_destroy(simulation);

    /* one rank: F0a F0b B0b 2-4 B0a 4-6; chunk b's reduction 4-7, chunk a's 7-10 */
    static const double three[] = {3, 3};
    costs = (struct simulate_costs){.forward = ones, .input = ones, .weight = ones, .reduce = three, .step = step};
    simulation = simulate("looped-bfs", 1, 2, 1, &costs);
    is_near(simulation->makespan, 6, 0, "a reduction delays no computation");
    is_near(simulation->reduced, 10, 0, "reductions of a rank run one after another");
    simulate_destroy(simulation);
    simulation = simulate("forward", 1, 2, 1, &costs);
    is_near(simulation->step_seconds, 2, 0, "forward only there is no step");
    simulate_destroy(simulation);
}

/* The same in whole ticks of a clock: at each tick everything goes on that can. */
struct clock_rank {
    int64_t next;
    int busy_until, occupied_until; /* computing; taken by a send */
    int receiving;                  /* ticks of the receive that it has still to be free for; -1: not begun */
};

struct ticking {
    const struct schedule *schedule;
    const int (*cost)[3]; /* [stages] */
    const int *message, *latency;
    int half_occupied;                             /* 0, 1, 2 */
    int made[2][MOST_CELLS], there[2][MOST_CELLS]; /* when; -1: not yet */
    struct clock_rank ranks[MOST_RANKS];
    struct {
        int cells[2 * MOST_CELLS], kinds[2 * MOST_CELLS], between[2 * MOST_CELLS];
        int first, count, until; /* on the link: transfers wait in a queue; the first one is under way if until >= 0 */
    } links[MOST_RANKS][MOST_RANKS];
};

static void tick_links(struct ticking *x, int now)
{
    for (int from = 0; from < x->schedule->ranks; from++)
        for (int to = 0; to < x->schedule->ranks; to++)
            for (;;) {
                if (x->links[from][to].first == x->links[from][to].count)
                    break;
                int first = x->links[from][to].first, between = x->links[from][to].between[first];
                if (x->links[from][to].until < 0)
                    x->links[from][to].until = now + x->message[between];
                if (x->links[from][to].until > now)
                    break;
                x->there[x->links[from][to].kinds[first]][x->links[from][to].cells[first]] = now + x->latency[between];
                x->links[from][to].first++;
                x->links[from][to].until = -1;
            }
}

static void enqueue(struct ticking *x, int rank, struct instruction item, int cell)
{
    int consumer = schedule_consumer(x->schedule, item), kind = item.op != FORWARD;
    int to = consumer < 0 ? rank : schedule_rank_of(x->schedule, consumer);
    if (to == rank)
        x->there[kind][cell] = x->made[kind][cell];
    if (to == rank)
        return;
    int place = x->links[rank][to].count++, between = consumer < item.stage ? consumer : item.stage;
    x->links[rank][to].cells[place] = cell;
    x->links[rank][to].kinds[place] = kind;
    x->links[rank][to].between[place] = between;
    x->ranks[rank].occupied_until = x->ranks[rank].busy_until + x->half_occupied * x->message[between] / 2;
}

/* Begins the rank's next computation at this tick if it can. */
static bool tick_rank(struct ticking *x, int rank, int now)
{
    const struct instruction_list *list = &x->schedule->lists[rank];
    struct clock_rank *own = &x->ranks[rank];
    while (own->next < list->count && !instruction_computes(list->items[own->next].op))
        own->next++;
    if (own->next == list->count || own->busy_until > now || own->occupied_until > now)
        return false;
    struct instruction item = list->items[own->next];
    int producer = schedule_producer(x->schedule, item), kind = item.op != FORWARD;
    if (producer >= 0) {
        int cell = (int)schedule_cell(x->schedule, producer, item.microbatch);
        int between = producer < item.stage ? producer : item.stage;
        bool remote = schedule_source(x->schedule, item) >= 0;
        if (own->receiving < 0) /* free since now */
            own->receiving = now + (remote ? x->half_occupied * x->message[between] / 2 : 0);
        if (own->receiving > now || x->there[kind][cell] < 0 || x->there[kind][cell] > now)
            return false;
    }
    int length = item.op == FORWARD          ? x->cost[item.stage][0]
                 : item.op == BACKWARD       ? x->cost[item.stage][1] + x->cost[item.stage][2]
                 : item.op == BACKWARD_INPUT ? x->cost[item.stage][1]
                                             : x->cost[item.stage][2];
    own->busy_until = own->occupied_until = now + length;
    own->receiving = -1;
    own->next++;
    if (item.op != BACKWARD_WEIGHT)
        x->made[kind][schedule_cell(x->schedule, item.stage, item.microbatch)] = now + length;
    return true;
}

/* The computations that end at this tick send their results. Costs are at least 1, so each rank has at most one. */
static void tick_sends(struct ticking *x, int rank, int now)
{
    struct clock_rank *own = &x->ranks[rank];
    int64_t last = own->next - 1;
    while (last >= 0 && !instruction_computes(x->schedule->lists[rank].items[last].op))
        last--;
    if (last < 0 || own->busy_until != now)
        return;
    struct instruction item = x->schedule->lists[rank].items[last];
    if (item.op != BACKWARD_WEIGHT)
        enqueue(x, rank, item, (int)schedule_cell(x->schedule, item.stage, item.microbatch));
}

static int ticking_makespan(struct ticking *x)
{
    int ranks = x->schedule->ranks, makespan = 0;
    memset(x->made, -1, sizeof x->made);
    memset(x->there, -1, sizeof x->there);
    for (int from = 0; from < ranks; from++) {
        x->ranks[from].receiving = -1;
        for (int to = 0; to < ranks; to++)
            x->links[from][to].until = -1;
    }
    for (int now = 0; now < 20000; now++) {
        for (int rank = 0; rank < ranks; rank++)
            tick_sends(x, rank, now);
        tick_links(x, now);
        for (int rank = 0; rank < ranks; rank++)
            tick_rank(x, rank, now);
    }
    for (int rank = 0; rank < ranks; rank++) {
        if (x->ranks[rank].next < x->schedule->lists[rank].count - 1)
            return -1;
        makespan = x->ranks[rank].busy_until > makespan ? x->ranks[rank].busy_until : makespan;
    }
    return makespan;
}

static unsigned next_random(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

static void against_a_clock(const char *name, int chunks)
{
    unsigned random = 17;
    int cases = 60, times = 0, sums = 0, free_messages = 0;
    for (int i = 0; i < cases; i++) {
        int ranks = 1 + (int)(next_random(&random) % MOST_RANKS), microbatches = 1 + (int)(next_random(&random) % 8);
        int cost[MOST_STAGES][3], message[MOST_STAGES], latency[MOST_STAGES], half = (int)(next_random(&random) % 3);
        double real[5][MOST_STAGES];
        for (int stage = 0; stage < MOST_STAGES; stage++) {
            for (int part = 0; part < 3; part++)
                real[part][stage] = cost[stage][part] = 1 + (int)(next_random(&random) % 9);
            real[3][stage] = message[stage] = i % 4 == 0 ? 0 : 2 * (int)(next_random(&random) % 5);
            real[4][stage] = latency[stage] = i % 4 == 0 ? 0 : (int)(next_random(&random) % 4);
        }
        struct simulate_costs costs = {.forward = real[0],
                                       .input = real[1],
                                       .weight = real[2],
                                       .message = real[3],
                                       .latency = real[4],
                                       .occupied = 0.5 * half};
        struct schedule *schedule = lowered(name, ranks, chunks, microbatches);
        struct ticking *ticking = calloc(1, sizeof *ticking);
        ticking->schedule = schedule;
        ticking->cost = (const int(*)[3])cost;
        ticking->message = message;
        ticking->latency = latency;
        ticking->half_occupied = half;
        struct err err = {""};
        struct simulation *simulation = simulate_schedule(schedule, &costs, &err);
        times += simulation->makespan == ticking_makespan(ticking);
        bool sum = true, free_of = true;
        for (int rank = 0; rank < ranks; rank++) {
            const struct simulate_rank *r = &simulation->ranks[rank];
            sum &= r->fill + r->drain + r->imbalance + r->communication == simulation->makespan - r->busy &&
                   r->fill >= 0 && r->drain >= 0 && r->imbalance >= 0 && r->communication >= 0;
            free_of &= r->communication == 0;
        }
        sums += sum;
        free_messages += i % 4 != 0 || free_of;
        free(ticking);
        simulate_destroy(simulation);
        schedule_destroy(schedule);
    }
    ok(times == cases, "%s: %d of %d makespans as by the clock", name, times, cases);
    ok(sums == cases, "%s: the reasons add up", name);
    ok(free_messages == cases, "%s: free messages cost nothing", name);
}

static char *written(const struct schedule *schedule, const struct simulate_costs *costs, int width)
{
    struct err err = {""};
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    int status =
        width > 0 ? simulate_print(schedule, costs, width, out, &err) : simulate_trace(schedule, costs, 8, out, &err);
    if (status < 0)
        fputs(err.text, out);
    fclose(out);
    return text;
}

static void drawing(void)
{
    static const double halves[] = {0.5, 0.5};
    struct simulate_costs costs = {.forward = ones, .input = ones, .weight = ones};
    struct schedule *schedule = lowered("1f1b", 2, 1, 2);
    char *text = written(schedule, &costs, 27);
    is_text(text,
            "r0: F0-F1-......B0----...B1----\n"
            "r1: ...F0-B0----F1-B1----......\n",
            "a drawing");
    free(text);
    text = written(schedule, &costs, 9);
    is_text(text,
            "r0: FF..B0.B1\n"
            "r1: .FB0FB1..\n",
            "a narrow one");
    free(text);
    schedule_destroy(schedule);

    costs.weight = halves;
    schedule = lowered("zb-v", 1, 2, 1);
    text = written(schedule, &costs, 20);
    is_text(text, "r0: F0a-F0b-I0b-W-I0a-W-\n", "chunks and split backwards of different length");
    free(text);
    schedule->lists[0].count = 0;
    text = written(schedule, &costs, 5);
    is_text(text, "r0: .....\n", "nothing at all");
    free(text);
    schedule_destroy(schedule);
}

static void trace(void)
{
    static const double half[] = {0.5}, reduce[] = {0.25, 0.25}, step[] = {2, 1};
    struct simulate_costs costs = {
        .forward = ones, .input = ones, .weight = ones, .message = half, .reduce = reduce, .step = step};
    struct schedule *schedule = lowered("1f1b", 2, 1, 1);
    char *text = written(schedule, &costs, 0);
    /* rank 0: F 0-1, B 5-7; rank 1: F 1.5-2.5, B 2.5-4.5 */
    static const char *const spans[] = {
        "\"pid\":8,\"name\":\"process_name\",\"args\":{\"name\":\"predicted p0\"}",
        "\"pid\":9,\"tid\":2,\"name\":\"thread_name\",\"args\":{\"name\":\"receive\"}",
        "\"pid\":8,\"tid\":0,\"name\":\"FORWARD\",\"ts\":0.000,\"dur\":1000000.000,\"args\":{\"rank\":0,\"stage\":0,"
        "\"microbatch\":0}},",
        "\"pid\":8,\"tid\":1,\"name\":\"SEND_ACTIVATION\",\"ts\":1000000.000,\"dur\":500000.000,\"args\":{\"rank\":0,"
        "\"stage\":0,\"microbatch\":0}},",
        "\"pid\":9,\"tid\":2,\"name\":\"RECEIVE_ACTIVATION\",\"ts\":1000000.000,\"dur\":500000.000,\"args\":{\"rank\":"
        "1,"
        "\"stage\":1,\"microbatch\":0}},",
        "\"pid\":9,\"tid\":0,\"name\":\"BACKWARD\",\"ts\":2500000.000,\"dur\":2000000.000",
        "\"pid\":9,\"tid\":1,\"name\":\"SEND_GRADIENT\",\"ts\":4500000.000,\"dur\":500000.000",
        "\"pid\":8,\"tid\":2,\"name\":\"RECEIVE_GRADIENT\",\"ts\":4500000.000,\"dur\":500000.000",
        "\"pid\":9,\"tid\":3,\"name\":\"REDUCE_GRADIENTS\",\"ts\":4500000.000,\"dur\":250000.000",
        "\"pid\":8,\"tid\":0,\"name\":\"OPTIMIZER_STEP\",\"ts\":7250000.000,\"dur\":2000000.000,\"args\":{\"rank\":0}"
        "}"};
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++)
        ok(strstr(text, spans[i]), "the trace has %.48s", spans[i]);
    int count = 0;
    for (const char *at = text; (at = strstr(at, "\"ph\":\"X\"")); at++)
        count++;
    ok(count == 12, "and nothing else");
    ok(strncmp(text, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", 40) == 0 && strstr(text, "]}\n"),
       "between the same head and tail as a real one");
    free(text);
    schedule_destroy(schedule);
}

int main(void)
{
    reasons();
    messages();
    end_of_step();
    against_a_clock("gpipe", 1);
    against_a_clock("1f1b", 1);
    against_a_clock("eager-1f1b", 1);
    against_a_clock("interleaved", 3);
    against_a_clock("looped-bfs", 2);
    against_a_clock("zb-h1", 1);
    against_a_clock("zb-v", 2);
    against_a_clock("v-half", 2);
    against_a_clock("v-min", 2);
    against_a_clock("forward", 3);
    drawing();
    trace();
    return tap_done();
}
