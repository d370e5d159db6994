/* Sums and gatherings in the memory of devices, queued behind computations and ahead of others. NAME.np1 tests the
 * communicator of one rank, which needs no CUDA device. */
#include <unistd.h>

#include "tests/comm_vectors.h"

/* The address of element k. */
static inline char *at(const struct vector *v, int64_t k)
{
    return v->memory + (size_t)k * element_bytes(v->element);
}

/* Whether the vector is factor * (elements first ... of the contributions' sum), in their order and with a rounding
 * after each, or, in any order, within the error of such sums; and its guards are there. */
static bool is_sum(const struct vector *v, int contributions, int64_t first, unsigned salt, bool in_order, float factor)
{
    bool is_half = v->element == ELEMENT_BFLOAT16;
    float *found = read_vector(v);
    bool holds = true;
    for (int64_t k = 0; k < v->count; k++) {
        volatile float total = stored(v->element, 0, first + k, salt);
        float size = fabsf(total);
        for (int i = 1; i < contributions; i++) {
            float term = stored(v->element, i, first + k, salt);
            total = total + term;
            total = is_half ? from_upper_half(upper_half(total)) : total;
            size += fabsf(term);
        }
        float error = in_order ? 0 : (float)contributions * size * (is_half ? 0x1p-8f : 0x1p-23f);
        holds = holds && fabsf(found[k] - factor * total) <= fabsf(factor) * error;
    }
    for (int k = 0; k < GUARDS; k++)
        holds = holds && found[v->count + k] == GUARD;
    free(found);
    return holds;
}

struct trial {
    struct contributions who;
    enum element element;
    int64_t count;
    unsigned salt;
    bool in_place;
    int parts_count;
    struct vector parts[8], result, scratch;
    struct transfer *transfer;
};

static void trial_begin(struct trial *trial, struct communicator *comm)
{
    for (int i = 0; i < trial->who.count; i++)
        if (trial->who.rank_of[i] == comm->rank)
            trial->parts[trial->parts_count++] = make(trial->element, trial->count, i, 0, trial->salt);
    trial->in_place = trial->in_place && trial->parts_count > 0;
    trial->result = trial->in_place ? trial->parts[trial->parts_count - 1] : make_empty(trial->element, trial->count);
    size_t bytes = comm->ops->sum_scratch(comm, trial->element, trial->count, &trial->who);
    trial->scratch = make_empty(ELEMENT_FLOAT32, (int64_t)(bytes / sizeof(float)));
    const void *parts[8]; /* gone after the call, as allowed */
    for (int i = 0; i < trial->parts_count; i++)
        parts[i] = trial->parts[i].memory;
    trial->transfer = comm->ops->sum_begin(comm, trial->element, trial->result.memory, parts, trial->count, &trial->who,
                                           trial->scratch.memory);
    memset(parts, 0, sizeof parts);
}

static bool trial_end(struct trial *trial, struct communicator *comm, bool by_test)
{
    bool in_order = trial->who.rank_of != communicator_one_each(comm)->rank_of || comm->size <= 2;
    end(comm, trial->transfer, by_test);
    bool holds = is_sum(&trial->result, trial->who.count, 0, trial->salt, in_order, 1);
    float *behind = read_vector(&trial->scratch);
    for (int k = 0; k < GUARDS; k++)
        holds = holds && behind[trial->scratch.count + k] == GUARD;
    free(behind);
    int part = 0;
    for (int i = 0; i < trial->who.count; i++) {
        if (trial->who.rank_of[i] != comm->rank || trial->parts[part++].memory == trial->result.memory)
            continue;
        float *found = read_vector(&trial->parts[part - 1]);
        for (int64_t k = 0; k < trial->count; k++)
            holds = holds && found[k] == stored(trial->element, i, k, trial->salt); /* left alone */
        free(found);
        drop(&trial->parts[part - 1]);
    }
    drop(&trial->result);
    drop(&trial->scratch);
    return holds;
}

static void check_sums(struct communicator *comm)
{
    const int64_t counts[] = {0, 1, 15, 1000, 12293};
    int last = comm->size - 1;
    const int several[] = {last, 0, 1 % comm->size, 0, last}, back[] = {last, comm->size / 2, 0};
    const int same[] = {last, last, last}, two[] = {0, 0, last};
    const struct {
        const char *name;
        struct contributions who;
    } lists[] = {{"one of each rank", *communicator_one_each(comm)},
                 {"several, in mixed order", {.count = 5, .rank_of = several}},
                 {"in reversed order", {.count = 3, .rank_of = back}},
                 {"two on one rank", {.count = 2, .rank_of = same}},
                 {"three in all on one rank", {.count = 3, .rank_of = same}},
                 {"two of one rank before another's", {.count = 3, .rank_of = two}},
                 {"one in all", {.count = 1, .rank_of = &last}}};
    for (int list = 0; list < (int)(sizeof lists / sizeof lists[0]); list++)
        for (int form = 0; form < 4; form++) {
            bool holds = true;
            for (int c = 0; c < 5; c++) {
                struct trial trial = {.who = lists[list].who,
                                      .element = form / 2 ? ELEMENT_BFLOAT16 : ELEMENT_FLOAT32,
                                      .count = counts[c],
                                      .salt = (unsigned)(c + 7),
                                      .in_place = form % 2};
                trial_begin(&trial, comm);
                holds = trial_end(&trial, comm, c % 2) && holds;
            }
            ok(holds, "sum of contributions, %s%s%s", lists[list].name, form / 2 ? ", bfloat16" : "",
               form % 2 ? ", in place" : "");
        }
}

static void check_many_sums(struct communicator *comm)
{
    enum {
        MANY = 11
    };
    struct trial trials[MANY];
    const int back[] = {comm->size - 1, comm->size / 2, 0};
    const struct contributions reversed = {.count = 3, .rank_of = back};
    bool holds = true;
    for (int round = 0; round < 2; round++) {
        memset(trials, 0, sizeof trials);
        for (int i = 0; i < MANY; i++) {
            trials[i] = (struct trial){.who = i % 2 ? reversed : *communicator_one_each(comm),
                                       .count = 100 * i + 1,
                                       .salt = (unsigned)(100 * round + i),
                                       .in_place = i % 3 == 0};
            if ((i + comm->rank) % 5 == 0)
                usleep(2000);
            trial_begin(&trials[i], comm);
            comm->ops->progress(comm);
        }
        for (int i = 0; i < MANY; i++)
            holds = trial_end(&trials[(i * 4 + comm->rank + round) % MANY], comm, i % 2) && holds;
    }
    ok(holds, "%d sums under way, waited for in other orders on each rank", MANY);
}

/* A transfer of any kind between two computations: what makes x comes before it, what reads y, and writes over both,
 * comes behind it, and the host waits for nothing. */
enum kind {
    SUM,
    ENDS,
    SCATTER,
    GATHER,
    KINDS
};

struct passage {
    enum kind kind;
    struct contributions who; /* of ENDS */
    int64_t counts[MOST_RANKS], begin, total;
    struct vector source, x, y, twice, scratch;
    struct transfer *transfer;
};

static const int64_t PASSAGE_COUNT = 5003;

static void passage_init(struct passage *p, enum kind kind, const struct communicator *comm, enum element type, int n)
{
    *p = (struct passage){.kind = kind, .who = *communicator_one_each(comm)};
    int parts = 1, mine = comm->rank;
    static int ends[3];
    ends[0] = ends[2] = comm->size - 1;
    if (kind == ENDS) {
        p->who = (struct contributions){.count = 3, .rank_of = ends};
        parts = (ends[0] == mine) + (ends[1] == mine) + (ends[2] == mine);
    }
    for (int i = 0; i < comm->size; i++) {
        p->counts[i] = kind >= SCATTER ? n % 3 == 0 ? 1024 : (i * 7 + n) % 3 * 1501 : i == 0 ? PASSAGE_COUNT : 0;
        p->begin += i < mine ? p->counts[i] : 0;
        p->total += p->counts[i];
    }
    int64_t piece = p->counts[mine];
    if (kind < SCATTER)
        p->begin = 0;
    p->source = kind == GATHER ? make(type, piece, mine, p->begin, (unsigned)n)
                               : make(type, parts * p->total, mine, 0, (unsigned)n);
    float *values = read_vector(&p->source); /* the parts of the ends, one behind the other */
    int part = 0;
    for (int i = 0; i < 3 && kind == ENDS; i++)
        if (ends[i] == mine) {
            for (int64_t k = 0; k < p->total; k++)
                values[part * p->total + k] = stored(type, i, k, (unsigned)n);
            part++;
        }
    write_vector(&p->source, values);
    free(values);
    p->x = make_empty(type, p->source.count);
    p->y = make_empty(type, kind == SCATTER ? piece : p->total);
    p->twice = make_empty(type, p->y.count);
    p->scratch = make_empty(ELEMENT_FLOAT32, (int64_t)(comm->ops->sum_scratch(comm, type, p->total, &p->who) / 4));
}

static void passage_begin(struct passage *p, struct communicator *comm, bool blocking)
{
    enum element type = p->x.element;
    size_t bytes = (size_t)p->x.count * element_bytes(type);
    const void *parts[3];
    for (int i = 0; i < 3; i++)
        parts[i] = at(&p->x, i * p->total);
    for (int again = 0; again < 8; again++) /* leaves a transfer that does not wait for x the time to go wrong */
        device->zero(stream, p->twice.memory, (size_t)p->twice.count * element_bytes(type));
    device->copy(stream, p->x.memory, p->source.memory, bytes);
    if (blocking && p->kind == SUM) {
        device->copy(stream, p->y.memory, p->x.memory, bytes);
        comm->ops->all_reduce(comm, type, p->y.memory, p->total, NULL);
    } else if (blocking && p->kind == SCATTER) {
        comm->ops->reduce_scatter(comm, type, p->y.memory, p->x.memory, p->counts, NULL);
    } else if (blocking && p->kind == GATHER) {
        comm->ops->all_gather(comm, p->y.memory, p->x.memory, p->counts, element_bytes(type));
    } else if (p->kind == SCATTER) {
        p->transfer =
            comm->ops->reduce_scatter_begin(comm, type, p->y.memory, p->x.memory, p->counts, p->scratch.memory);
    } else if (p->kind == GATHER) {
        p->transfer = comm->ops->all_gather_begin(comm, p->y.memory, p->x.memory, p->counts, element_bytes(type));
    } else {
        p->transfer = comm->ops->sum_begin(comm, type, p->y.memory, parts, p->total, &p->who, p->scratch.memory);
    }
}

static void passage_use(struct passage *p, struct communicator *comm)
{
    if (p->transfer)
        comm->ops->join(p->transfer);
    device->add_residual(stream, p->y.element, p->twice.memory, p->y.memory, p->y.memory, NULL, 1, p->y.count);
    device->zero(stream, p->y.memory, (size_t)p->y.count * element_bytes(p->y.element));
    device->zero(stream, p->x.memory, (size_t)p->x.count * element_bytes(p->x.element));
}

static bool passage_end(struct passage *p, struct communicator *comm, unsigned salt)
{
    if (p->transfer)
        end(comm, p->transfer, salt % 2);
    bool in_order = p->kind == ENDS || comm->size <= 2, holds = true;
    if (p->kind != GATHER) {
        holds = is_sum(&p->twice, p->who.count, p->begin, salt, in_order, 2);
    } else {
        float *found = read_vector(&p->twice);
        int64_t k = 0;
        for (int i = 0; i < comm->size; i++)
            for (int64_t left = p->counts[i]; left > 0; left--, k++)
                holds = holds && found[k] == 2 * stored(p->twice.element, i, k, salt);
        holds = holds && found[k] == GUARD;
        free(found);
    }
    drop(&p->source);
    drop(&p->x);
    drop(&p->y);
    drop(&p->twice);
    drop(&p->scratch);
    return holds;
}

static void check_passages(struct communicator *comm, bool blocking)
{
    enum {
        EACH = 3,
        MANY = EACH * KINDS
    };
    for (int form = 0; form < 2; form++) {
        enum element type = form ? ELEMENT_BFLOAT16 : ELEMENT_FLOAT32;
        struct passage passages[MANY];
        bool holds = true;
        for (int ahead = 1; ahead <= 3; ahead += 2) { /* transfers begun before the first is used */
            for (int i = 0; i < MANY; i++)
                passage_init(&passages[i], blocking && i % KINDS == ENDS ? SUM : (enum kind)(i % KINDS), comm, type, i);
            for (int i = 0; i < MANY + ahead; i++) {
                if (i % 4 == comm->rank)
                    usleep(1000);
                if (i < MANY)
                    passage_begin(&passages[i], comm, blocking);
                if (i >= ahead)
                    passage_use(&passages[i - ahead], comm);
            }
            for (int i = 0; i < MANY; i++) { /* 5 is no divisor of 12 */
                int which = (5 * i + comm->rank) % MANY;
                holds = passage_end(&passages[which], comm, (unsigned)which) && holds;
            }
        }
        ok(holds, "%s %d transfers between computations that the host does not wait for%s",
           blocking ? "all_reduce, reduce_scatter, all_gather:" : "begun and joined:", MANY, form ? ", bfloat16" : "");
    }
}

/* Scattering into the vector itself, and gathering there. */
static void check_in_place(struct communicator *comm)
{
    for (int form = 0; form < 3; form++) {
        int64_t counts[MOST_RANKS], begin = 0, total = 0;
        for (int i = 0; i < comm->size; i++) {
            counts[i] = form == 0 ? 257 : form == 1 ? (i == comm->size - 1 ? 0 : 17 + i) : 0;
            begin += i < comm->rank ? counts[i] : 0;
            total += counts[i];
        }
        struct vector whole = make(ELEMENT_FLOAT32, total, comm->rank, 0, 11);
        char *mine = at(&whole, begin);
        struct vector scratch = make_empty(ELEMENT_FLOAT32, (comm->size - 1) * counts[comm->rank]);
        comm->ops->wait(
            comm->ops->reduce_scatter_begin(comm, ELEMENT_FLOAT32, mine, whole.memory, counts, scratch.memory));
        float *found = read_vector(&whole);
        bool holds = true;
        for (int64_t k = 0; k < total; k++)
            holds = holds && ((k >= begin && k < begin + counts[comm->rank]) || found[k] == element(comm->rank, k, 11));
        free(found);
        ok(holds, "reduce_scatter in place leaves the others' pieces alone, form %d", form);
        comm->ops->wait(comm->ops->all_gather_begin(comm, whole.memory, mine, counts, sizeof(float)));
        ok(is_sum(&whole, comm->size, 0, 11, comm->size <= 2, 1), "and all_gather makes the sum whole");
        drop(&whole);
        drop(&scratch);
    }
}

static void check(const struct job *job)
{
    /* what is begun and what is queued with the computations must not be mixed on one */
    struct communicator *group = comm_nccl_open_group(job->world->mpi, device, stream);
    struct communicator *queued = comm_nccl_open_group(job->world->mpi, device, stream);
    ok(group->size == job->world->size && group->rank == job->world->rank, "same ranks in the same order");
    check_sums(group);
    check_many_sums(group);
    check_passages(group, false);
    check_passages(queued, true);
    check_in_place(group);
    communicator_close(queued);
    communicator_close(group);
}

int main(int argc, char **argv)
{
    return check_on_devices(argc, argv, check);
}
