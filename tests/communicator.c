/* Messages, sums and control traffic on any number of ranks. Sums are compared bit by bit with the plain loop. */
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "parallel/job.h"
#include "tests/comm_values.h"
#include "tests/tap.h"

static const float GUARD = 12345.678f; /* behind every buffer */
enum {
    GUARDS = 16
};

/* count floats and a guard. */
static float *make(int64_t count)
{
    float *vector = allocate((size_t)count + GUARDS, sizeof *vector);
    for (int i = 0; i < GUARDS; i++)
        vector[count + i] = GUARD;
    return vector;
}

static bool guarded(const float *vector, int64_t count)
{
    for (int i = 0; i < GUARDS; i++)
        if (vector[count + i] != GUARD)
            return false;
    return true;
}

static float *make_part(int i, int64_t count, unsigned salt)
{
    float *part = make(count);
    for (int64_t k = 0; k < count; k++)
        part[k] = element(i, k, salt);
    return part;
}

static bool same_bits(const float *found, int contributions, int64_t first, int64_t count, unsigned salt)
{
    for (int64_t k = 0; k < count; k++) {
        float expected = plain_sum(contributions, first + k, salt);
        if (memcmp(&found[k], &expected, sizeof expected) != 0)
            return false;
    }
    return true;
}

/* A sum under way with all that is needed to judge it. */
struct trial {
    struct contributions who;
    int64_t count;
    unsigned salt;
    bool in_place;
    int parts_count;
    float *parts[8], *result, *scratch;
    int64_t scratch_count;
    struct transfer *transfer;
};

static void trial_begin(struct trial *trial, struct communicator *comm)
{
    trial->parts_count = 0;
    for (int i = 0; i < trial->who.count; i++)
        if (trial->who.rank_of[i] == comm->rank)
            trial->parts[trial->parts_count++] = make_part(i, trial->count, trial->salt);
    /* in place: the last of several parts, the hardest to read before it is overwritten */
    bool in_place = trial->in_place && trial->parts_count > 0;
    trial->result = in_place ? trial->parts[trial->parts_count - 1] : make(trial->count);
    trial->in_place = in_place;
    trial->scratch_count =
        (int64_t)(comm->ops->sum_scratch(comm, ELEMENT_FLOAT32, trial->count, &trial->who) / sizeof(float));
    trial->scratch = make(trial->scratch_count);
    const void *parts[8]; /* gone after the call, as allowed */
    for (int i = 0; i < trial->parts_count; i++)
        parts[i] = trial->parts[i];
    trial->transfer =
        comm->ops->sum_begin(comm, ELEMENT_FLOAT32, trial->result, parts, trial->count, &trial->who, trial->scratch);
    memset(parts, 0, sizeof parts);
}

static bool trial_end(struct trial *trial, struct communicator *comm, bool by_test)
{
    if (by_test)
        while (!comm->ops->test(trial->transfer))
            sched_yield();
    else
        comm->ops->wait(trial->transfer);
    bool holds = same_bits(trial->result, trial->who.count, 0, trial->count, trial->salt) &&
                 guarded(trial->result, trial->count) && guarded(trial->scratch, trial->scratch_count);
    int part = 0;
    for (int i = 0; i < trial->who.count; i++) {
        if (trial->who.rank_of[i] != comm->rank)
            continue;
        float *found = trial->parts[part++];
        if (found == trial->result)
            continue;
        for (int64_t k = 0; k < trial->count; k++)
            holds = holds && found[k] == element(i, k, trial->salt); /* left alone */
        free(found);
    }
    free(trial->result);
    free(trial->scratch);
    return holds;
}

static const int64_t COUNTS[] = {0, 1, 15, 16, 17, 1000, 100003};
enum {
    COUNTS_COUNT = sizeof COUNTS / sizeof COUNTS[0]
};

static void check_sums(struct communicator *comm)
{
    int last = comm->size - 1;
    const int several[] = {last, 0, 1 % comm->size, 0, last};
    const struct contributions several_each = {.count = 5, .rank_of = several};
    const struct contributions only_last = {.count = 1, .rank_of = &last};
    const struct contributions *who[] = {communicator_one_each(comm), &several_each, &only_last};
    const char *names[] = {"one contribution per rank", "several, in mixed order", "one in all"};
    for (int w = 0; w < 3; w++)
        for (int in_place = 0; in_place < 2; in_place++) {
            bool holds = true;
            for (int c = 0; c < COUNTS_COUNT; c++) {
                struct trial trial = {
                    .who = *who[w], .count = COUNTS[c], .salt = (unsigned)(c + 7), .in_place = in_place};
                trial_begin(&trial, comm);
                holds = trial_end(&trial, comm, c % 2) && holds;
            }
            ok(holds, "sum, %s%s: the bits of the plain loop", names[w], in_place ? ", in place" : "");
        }

    int differ = 0; /* the comparison can fail: the other order gives other bits */
    for (int64_t k = 0; k < 1000; k++)
        differ += (element(0, k, 0) + element(1, k, 0)) + element(2, k, 0) !=
                  element(0, k, 0) + (element(1, k, 0) + element(2, k, 0));
    ok(differ > 100, "the values tell orders of addition apart");
}

static void check_many_sums(struct communicator *comm)
{
    int size = comm->size;
    const int pair[] = {0, size - 1}, back[] = {size - 1, size / 2, 0};
    const struct contributions ends = {.count = 2, .rank_of = pair}, reversed = {.count = 3, .rank_of = back};
    struct trial trials[21];
    enum {
        MANY = sizeof trials / sizeof trials[0]
    };
    bool holds = true;
    for (int round = 0; round < 3; round++) {
        memset(trials, 0, sizeof trials);
        for (int i = 0; i < MANY; i++) {
            trials[i].who = i % 3 == 0 ? *communicator_one_each(comm) : i % 3 == 1 ? ends : reversed;
            trials[i].count = COUNTS[(i + round) % COUNTS_COUNT];
            trials[i].salt = (unsigned)(100 * round + i);
            trials[i].in_place = i % 2;
            if ((i + comm->rank) % 5 == 0)
                usleep(2000);
            trial_begin(&trials[i], comm);
            comm->ops->progress(comm);
        }
        for (int i = 0; i < MANY; i++) { /* 8 is no divisor of 21: every sum once, another order on every rank */
            int which = (i * 8 + comm->rank + round) % MANY;
            if (which % 7 == comm->rank)
                usleep(1500);
            holds = trial_end(&trials[which], comm, i % 2) && holds;
        }
    }
    ok(holds, "21 sums under way, waited for in other orders by delayed ranks");

    enum {
        WAVES = 70,
        WAVE = 250 /* all waves together: more sums than there are numbers to keep them apart */
    };
    const struct contributions *who = communicator_one_each(comm);
    size_t room = comm->ops->sum_scratch(comm, ELEMENT_FLOAT32, 1, who);
    float values[WAVE];
    struct transfer *transfers[WAVE];
    char *scratch = allocate(WAVE, room);
    for (int wave = 0; wave < WAVES; wave++) {
        for (int i = 0; i < WAVE; i++) {
            const void *part = &values[i];
            values[i] = (float)(wave + i);
            transfers[i] =
                comm->ops->sum_begin(comm, ELEMENT_FLOAT32, &values[i], &part, 1, who, scratch + (size_t)i * room);
        }
        for (int i = 0; i < WAVE; i++) {
            comm->ops->wait(transfers[i]);
            holds = holds && values[i] == (float)(wave + i) * (float)size;
        }
    }
    free(scratch);
    ok(holds, "%d sums in waves of %d", WAVES * WAVE, WAVE);
}

static void check_all_reduce(struct communicator *comm)
{
    bool holds = true;
    for (int c = 0; c < COUNTS_COUNT; c++) {
        float *vector = make_part(comm->rank, COUNTS[c], 3);
        size_t bytes = comm->ops->sum_scratch(comm, ELEMENT_FLOAT32, COUNTS[c], communicator_one_each(comm));
        void *scratch = allocate(1, bytes);
        comm->ops->all_reduce(comm, ELEMENT_FLOAT32, vector, COUNTS[c], scratch);
        holds = holds && same_bits(vector, comm->size, 0, COUNTS[c], 3) && guarded(vector, COUNTS[c]);
        free(scratch);
        free(vector);
    }
    ok(holds, "all_reduce: the bits of the plain loop");
}

/* Terms of bfloat16: their sum in float32, in rank order, rounded once. */
static void check_bfloat16(struct communicator *comm)
{
    enum {
        COUNT = 1003
    };
    uint16_t vector[COUNT], mine[COUNT], whole[COUNT], gathered[COUNT], sum[COUNT];
    int64_t counts[64] = {0}, begin = 0;
    for (int64_t k = 0; k < COUNT; k++) {
        whole[k] = vector[k] = upper_half(element(comm->rank, k, 5));
        volatile float total = from_upper_half(upper_half(element(0, k, 5)));
        for (int i = 1; i < comm->size; i++)
            total = total + from_upper_half(upper_half(element(i, k, 5)));
        sum[k] = upper_half(total);
        counts[k * comm->size / COUNT]++;
    }
    for (int i = 0; i < comm->rank; i++)
        begin += counts[i];
    void *scratch = allocate(COUNT, sizeof(uint16_t) * (size_t)comm->size);
    comm->ops->all_reduce(comm, ELEMENT_BFLOAT16, vector, COUNT, scratch);
    ok(memcmp(vector, sum, sizeof sum) == 0, "all_reduce of bfloat16: added in float32, rounded once");
    comm->ops->reduce_scatter(comm, ELEMENT_BFLOAT16, mine, whole, counts, scratch);
    ok(memcmp(mine, sum + begin, (size_t)counts[comm->rank] * sizeof *mine) == 0,
       "reduce_scatter of bfloat16: as well");
    comm->ops->all_gather(comm, gathered, mine, counts, sizeof *mine);
    ok(memcmp(gathered, sum, sizeof sum) == 0, "all_gather of bfloat16");
    free(scratch);
}

static void check_uneven(struct communicator *comm)
{
    int64_t counts[64];
    for (int form = 0; form < 3; form++) {
        int64_t total = 0, begin = 0;
        for (int i = 0; i < comm->size; i++) {
            counts[i] = form == 0 ? (i * 37) % 5 * 4001 : form == 1 ? (i == comm->size - 1 ? 0 : 17 + i) : 0;
            begin += i < comm->rank ? counts[i] : 0;
            total += counts[i];
        }
        int64_t mine_count = counts[comm->rank];
        float *whole = make_part(comm->rank, total, 11), *mine = make(mine_count);
        float *scratch = make((comm->size - 1) * mine_count);
        comm->ops->reduce_scatter(comm, ELEMENT_FLOAT32, mine, whole, counts, scratch);
        bool holds = same_bits(mine, comm->size, begin, mine_count, 11) && guarded(mine, mine_count) &&
                     guarded(scratch, (comm->size - 1) * mine_count);
        for (int64_t k = 0; k < total; k++)
            holds = holds && whole[k] == element(comm->rank, k, 11);
        comm->ops->reduce_scatter(comm, ELEMENT_FLOAT32, whole + begin, whole, counts, scratch);
        holds = holds && memcmp(whole + begin, mine, (size_t)mine_count * sizeof *mine) == 0;
        ok(holds, "reduce_scatter with uneven counts, form %d", form);

        float *gathered = make(total);
        comm->ops->all_gather(comm, gathered, mine, counts, sizeof *mine);
        holds = same_bits(gathered, comm->size, 0, total, 11) && guarded(gathered, total);
        comm->ops->all_gather(comm, whole, whole + begin, counts, sizeof *whole);
        holds = holds && memcmp(whole, gathered, (size_t)total * sizeof *whole) == 0 && guarded(whole, total);
        ok(holds, "all_gather with uneven counts, form %d", form);
        free(whole);
        free(mine);
        free(scratch);
        free(gathered);
    }
}

/* Halves of sums under way together with whole ones, waited for in other orders on each rank. */
static void check_halves(struct communicator *comm)
{
    enum {
        MANY = 9,
        MOST = 64
    };
    int64_t counts[MANY][MOST], begin[MANY], total[MANY];
    float *whole[MANY], *scratch[MANY];
    struct transfer *transfers[MANY];
    struct trial trial = {.who = *communicator_one_each(comm), .count = 1000, .salt = 40};
    bool scattered = true, gathered = true, summed = true;
    for (int gather = 0; gather < 2; gather++) {
        for (int i = 0; i < MANY; i++) {
            if (!gather) {
                begin[i] = total[i] = 0;
                for (int rank = 0; rank < comm->size; rank++) {
                    counts[i][rank] = (i * 7 + rank * 13) % 4 * (i % 2 ? 3001 : 5);
                    begin[i] += rank < comm->rank ? counts[i][rank] : 0;
                    total[i] += counts[i][rank];
                }
                whole[i] = make_part(comm->rank, total[i], (unsigned)i + 20);
                scratch[i] = make((comm->size - 1) * counts[i][comm->rank]);
            }
            int64_t given[MOST]; /* gone after the call, as allowed */
            memcpy(given, counts[i], sizeof given);
            float *mine = whole[i] + begin[i];
            transfers[i] =
                gather ? comm->ops->all_gather_begin(comm, whole[i], mine, given, sizeof *mine)
                       : comm->ops->reduce_scatter_begin(comm, ELEMENT_FLOAT32, mine, whole[i], given, scratch[i]);
            memset(given, 0, sizeof given);
            if (i == MANY / 2)
                trial_begin(&trial, comm);
        }
        for (int i = 0; i < MANY; i++) {
            int which = (i * 4 + comm->rank) % MANY;
            if (which % 4 == comm->rank)
                usleep(1500);
            if (which % 2)
                comm->ops->wait(transfers[which]);
            else
                while (!comm->ops->test(transfers[which]))
                    sched_yield();
            int64_t mine_count = counts[which][comm->rank];
            float *mine = whole[which] + begin[which];
            if (gather)
                gathered = gathered && same_bits(whole[which], comm->size, 0, total[which], (unsigned)which + 20) &&
                           guarded(whole[which], total[which]);
            else
                scattered = scattered && same_bits(mine, comm->size, begin[which], mine_count, (unsigned)which + 20) &&
                            guarded(scratch[which], (comm->size - 1) * mine_count);
        }
        summed = trial_end(&trial, comm, gather) && summed;
    }
    for (int i = 0; i < MANY; i++) {
        free(whole[i]);
        free(scratch[i]);
    }
    ok(scattered, "%d reduce-scatters under way: the bits of the plain loop, in place", MANY);
    ok(gathered, "%d all-gathers under way", MANY);
    ok(summed, "a sum among them");

    int64_t counts_of_three[MOST];
    char bytes[3 * 2 * MOST], mine[3 * 2];
    for (int rank = 0; rank < comm->size; rank++)
        counts_of_three[rank] = 1 + rank % 2;
    memset(bytes, 'x', sizeof bytes);
    memset(mine, 'a' + comm->rank, sizeof mine);
    comm->ops->wait(comm->ops->all_gather_begin(comm, bytes, mine, counts_of_three, 3));
    bool holds = true;
    int at = 0;
    for (int rank = 0; rank < comm->size; rank++)
        for (int64_t k = 0; k < 3 * counts_of_three[rank]; k++)
            holds = holds && bytes[at++] == 'a' + rank;
    ok(holds && bytes[at] == 'x', "all_gather of elements of three bytes");
}

/* Round the ring, two tags crossing, three messages in order under each, sizes on both sides of every protocol. */
static void check_messages(struct communicator *comm)
{
    const size_t sizes[] = {0, 1, 4095, 65537, 4194307};
    enum {
        SIZES = sizeof sizes / sizeof sizes[0],
        EACH = 3,
        MESSAGES = 2 * EACH
    };
    int to = (comm->rank + 1) % comm->size, from = (comm->rank + comm->size - 1) % comm->size;
    for (int s = 0; s < SIZES; s++) {
        size_t bytes = sizes[s];
        unsigned char *out[MESSAGES], *in[MESSAGES];
        struct transfer *sends[MESSAGES], *receives[MESSAGES];
        for (int i = 0; i < MESSAGES; i++) {
            out[i] = allocate(bytes + 1, 1);
            in[i] = allocate(bytes + 1, 1);
            for (size_t k = 0; k < bytes; k++)
                out[i][k] = (unsigned char)(k * 7 + (size_t)i * 31 + (size_t)comm->rank * 101);
            in[i][bytes] = 77;
        }
        for (int i = 0; i < MESSAGES; i++) /* messages 0, 2, 4 under tag 32767 */
            sends[i] = comm->ops->send(comm, out[i], bytes, to, i % 2 ? 0 : 32767);
        if (comm->rank == 0)
            usleep(3000);
        for (int i = 1; i < MESSAGES; i += 2)
            receives[i] = comm->ops->receive(comm, in[i], bytes, from, 0);
        for (int i = 0; i < MESSAGES; i += 2)
            receives[i] = comm->ops->receive(comm, in[i], bytes, from, 32767);
        for (int i = MESSAGES - 1; i >= 0; i--)
            if (i % 2)
                comm->ops->wait(receives[i]);
            else
                while (!comm->ops->test(receives[i]))
                    sched_yield();
        bool holds = true;
        for (int i = 0; i < MESSAGES; i++) {
            comm->ops->wait(sends[i]);
            for (size_t k = 0; k < bytes; k++)
                holds = holds && in[i][k] == (unsigned char)(k * 7 + (size_t)i * 31 + (size_t)from * 101);
            holds = holds && in[i][bytes] == 77;
            free(out[i]);
            free(in[i]);
        }
        ok(holds, "messages of %zu bytes keep their order under each tag", bytes);
    }
}

/* A rank that waits elsewhere goes on with its share of the sums: without that, these never return. */
static void check_beside(struct communicator *comm)
{
    struct communicator *other = comm_mpi_open_beside(comm->mpi, comm);
    struct trial trial = {.who = *communicator_one_each(other), .count = 1000, .salt = 5};
    char word = 0;
    trial_begin(&trial, other);
    bool holds;
    if (comm->rank == 0) { /* rank 0 waits for messages that the others send after their sums */
        for (int from = 1; from < comm->size; from++)
            comm->ops->wait(comm->ops->receive(comm, &word, 1, from, 1));
        holds = trial_end(&trial, other, false);
    } else {
        holds = trial_end(&trial, other, false);
        comm->ops->wait(comm->ops->send(comm, &word, 1, 0, 1));
    }
    ok(holds, "waiting on one communicator advances a sum on another");

    trial = (struct trial){.who = *communicator_one_each(other), .count = 1000, .salt = 6, .in_place = true};
    trial_begin(&trial, other);
    if (comm->rank == 0) {
        control_barrier(comm);
        holds = trial_end(&trial, other, false);
    } else {
        holds = trial_end(&trial, other, false);
        control_barrier(comm);
    }
    ok(holds, "control traffic advances a sum on another communicator");
    communicator_close(other);
    communicator_close(NULL);
}

static void check_control(struct communicator *comm)
{
    int rank = comm->rank, size = comm->size, last = size - 1;
    char text[1000] = "";
    if (rank == last)
        memset(text, 'x', sizeof text - 1);
    control_broadcast(comm, text, sizeof text, last);
    ok(strlen(text) == sizeof text - 1 && text[998] == 'x', "control_broadcast from the last rank");
    control_broadcast(comm, text, 0, 0);

    int mine[3] = {rank, rank * rank, -rank}, *all = allocate((size_t)size, sizeof mine);
    control_gather(comm, all, mine, sizeof mine, last);
    bool holds = true;
    for (int i = 0; i < size && rank == last; i++)
        holds = holds && all[3 * i] == i && all[3 * i + 1] == i * i && all[3 * i + 2] == -i;
    ok(holds, "control_gather to the last rank");
    free(all);

    double sum[2] = {0, rank}, least[2] = {rank, -rank}, most[2] = {rank, -rank};
    sum[0] = rank == last ? 0.1 : 0;
    control_sum(comm, sum, 2);
    ok(sum[0] == 0.1 && sum[1] == 0.5 * size * (size - 1), "control_sum");
    control_min(comm, least, 2);
    ok(least[0] == 0 && least[1] == -last, "control_min");
    control_max(comm, most, 2);
    ok(most[0] == last && most[1] == 0, "control_max");
    uint64_t wide[2] = {UINT64_MAX - (uint64_t)rank, (uint64_t)1 << 60};
    control_sum_uint64(comm, wide, 2);
    uint64_t expected = 0;
    for (int i = 0; i < size; i++)
        expected += UINT64_MAX - (uint64_t)i;
    ok(wide[0] == expected && wide[1] == (uint64_t)size << 60, "control_sum_uint64 modulo 2^64");
}

int main(int argc, char **argv)
{
    struct job job;
    job_begin(&argc, &argv, &job);
    struct communicator *comm = comm_mpi_open(job.world->mpi);
    ok(comm->size == job.world->size && comm->rank == job.world->rank, "same ranks in the same order");
    check_messages(comm);
    check_sums(comm);
    check_many_sums(comm);
    check_all_reduce(comm);
    check_bfloat16(comm);
    check_uneven(comm);
    check_halves(comm);
    check_beside(comm);
    check_control(comm);

    struct communicator *self = comm_mpi_open(MPI_COMM_SELF);
    ok(self->size == 1 && self->rank == 0, "a communicator of one rank");
    check_sums(self);
    check_uneven(self);
    check_halves(self);
    check_messages(self);
    communicator_close(self);
    communicator_close(comm);
    int status = tap_done();
    job_end(&job);
    return status;
}
