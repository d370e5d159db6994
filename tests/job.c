/* The job and what its ranks agree on. */
#define _GNU_SOURCE /* sched_setaffinity */

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parallel/agree.h"
#include "parallel/job.h"
#include "tests/tap.h"

static void check_agree(struct communicator *world)
{
    struct err err = {"untouched"};
    ok(agree(world, 0, &err) == 0, "no rank fails");
    is_text(err.text, "untouched", "then the text is left alone");
    ok(agree(world, 7, &err) == 0, "positive results are no failure");

    for (int first = 0; first < world->size; first++) { /* all ranks from `first` on fail */
        struct err mine = {""};
        int result = world->rank >= first ? err_set(&mine, "rank %d, 100%% lost", world->rank) : 0;
        char expected[64];
        snprintf(expected, sizeof expected, "rank %d, 100%% lost", first);
        ok(agree(world, result, &mine) == -1, "ranks from %d on fail: all know", first);
        is_text(mine.text, expected, "with the text of the lowest");
    }
    struct err full;
    memset(full.text, 'y', sizeof full.text);
    full.text[sizeof full.text - 1] = 0;
    if (world->rank != world->size - 1)
        full.text[0] = 0;
    agree(world, world->rank == world->size - 1 ? -1 : 0, &full);
    ok(strlen(full.text) == sizeof full.text - 1, "a text of full length arrives whole");
}

static void check_equal(struct communicator *world)
{
    int last = world->size - 1;
    bool alone = last == 0;
    ok(agree_equal(world, 0) && agree_equal(world, UINT64_MAX) && agree_equal(world, 0x8000000000000001u),
       "equal values are equal");
    for (int bit = 0; bit < 64; bit += 21) {
        uint64_t value = 0xFEDCBA9876543210u;
        bool equal = agree_equal(world, world->rank == last ? value ^ ((uint64_t)1 << bit) : value);
        ok(equal == alone, "one bit, number %d, on one rank makes the difference", bit);
    }
    uint64_t swapped = world->rank == last ? (uint64_t)1 << 32 : 1;
    ok(agree_equal(world, swapped) == alone, "halves are not mistaken for each other");
}

static void check_job(const struct job *job)
{
    char host[256], place[32];
    ok(gethostname(host, sizeof host) == 0 && strcmp(host, job->host) == 0, "the host's name");
    snprintf(place, sizeof place, "rank %d", job->world->rank);
    is_text(error_place(), place, "the place in messages");
    double nodes = job->node_rank == 0, ranks = job->node_rank < job->node_size ? job->node_size : -1e9;
    ranks /= job->node_size; /* each node counts its ranks */
    control_sum(job->world, &nodes, 1);
    control_sum(job->world, &ranks, 1);
    ok(nodes >= 1 && ranks == job->world->size, "every node has a first rank");
    char *library = job_library();
    ok(strlen(library) > 3 && !strpbrk(library, "\n\t"), "the library is one line");
    tap_note("%s", library);
    free(library);
}

static void use_cpus(const int *cpus, int count)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int i = 0; i < count; i++)
        CPU_SET(cpus[i], &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        fatal("sched_setaffinity");
}

/* All ranks are on one node here. */
static void check_cores(const struct job *job)
{
    int cpus[CPU_SETSIZE], count = 0, rank = job->world->rank, size = job->world->size;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        fatal("sched_getaffinity");
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &set))
            cpus[count++] = i;
    int share = count / size > 1 ? count / size : 1;
    ok(job_cores(job) == share, "%d ranks share %d cores", size, count);
    use_cpus(&cpus[rank % count], 1);
    ok(job_cores(job) == 1, "a core for each, or shared where there are fewer cores");
    use_cpus(cpus, count);
    if (count < 2) {
        tap_note("one core: masks that differ are not tested");
        return;
    }
    /* rank 0 alone on the first core, the others on the rest */
    if (rank == 0)
        use_cpus(cpus, 1);
    else
        use_cpus(cpus + 1, count - 1);
    int others = size > 1 ? (count - 1) / (size - 1) : 0;
    ok(job_cores(job) == (rank == 0 || others < 1 ? 1 : others), "separate masks do not share");
    use_cpus(cpus, count);
}

int main(int argc, char **argv)
{
    char *early = job_library(); /* before MPI starts, as for --version */
    struct job job;
    job_begin(&argc, &argv, &job);
    char *late = job_library();
    is_text(early, late, "the library is known before MPI starts");
    free(early);
    free(late);
    check_job(&job);
    check_cores(&job);
    check_agree(job.world);
    check_equal(job.world);
    int status = tap_done();
    job_end(&job);
    return status;
}
