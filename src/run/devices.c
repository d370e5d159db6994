#include "run/devices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "parallel/agree.h"
#include "parallel/comm_nccl.h"
#include "run/modes.h"

/* Whether all ranks can have a CUDA device of their own, as far as each of them sees. */
static bool all_have_cuda(const struct job *job)
{
    struct err err;
    const int count = device_cuda_count(&err);
    double enough = count == 1 || count >= job->node_size; /* one: a scheduler may have bound it to this rank */
    control_min(job->world, &enough, 1);
    return enough > 0;
}

/* A rank's device, for all to see that no two have the same. */
struct seat {
    char host[256];
    struct device_identity device;
};

static int check_seats(const struct seat *seats, int count, struct err *err)
{
    for (int rank = 1; rank < count; rank++)
        for (int other = 0; other < rank; other++)
            if (strcmp(seats[rank].host, seats[other].host) == 0 &&
                memcmp(seats[rank].device.unique, seats[other].device.unique, sizeof seats->device.unique) == 0)
                return err_set(err,
                               "ranks %d and %d both have the CUDA device '%s' of %s: start one rank for each device "
                               "there is (srun --gpus-per-task=1, or --ntasks-per-node)",
                               other, rank, seats[rank].device.name, seats[rank].host);
    return 0;
}

/* Collective. */
static int check_unique(const struct job *job, const struct device_identity *identity, struct err *err)
{
    struct seat mine = {.device = *identity}, *all = allocate((size_t)job->world->size, sizeof *all);
    snprintf(mine.host, sizeof mine.host, "%s", job->host);
    control_gather(job->world, all, &mine, sizeof mine, 0);
    int result = job->world->rank == 0 ? check_seats(all, job->world->size, err) : 0;
    free(all);
    return agree(job->world, result, err);
}

static const struct device *choose_cuda(const struct job *job, const struct settings *settings, struct err *err)
{
    struct device_identity identity = {0};
    const bool tf32 = settings->run.precision == PRECISION_TF32;
    const struct device *device = device_cuda(job->node_rank, job->node_size, tf32, &identity, err);
    int result = device ? 0 : err_prefix(err, "&run device = 'cuda': %s", job->host);
    if (result == 0 && job->world->size > 1)
        result = comm_nccl_load(err);
    return agree(job->world, result, err) == 0 && check_unique(job, &identity, err) == 0 ? device : NULL;
}

const struct device *devices_choose(const struct job *job, struct settings *settings, struct err *err)
{
    settings->run.threads = mode_threads(job, settings);
    if (settings->run.device == DEVICE_AUTO)
        settings->run.device = all_have_cuda(job) ? DEVICE_CUDA : DEVICE_CPU;
    if (settings->run.device == DEVICE_CPU && settings->run.precision == PRECISION_TF32) {
        err_set(err, "&run precision = 'tf32' is for device = 'cuda'; available here: 'fp32', 'bf16'");
        return NULL;
    }
    const struct device *cpu = device_cpu(settings->run.threads); /* for what the host computes beside a device, too */
    return settings->run.device == DEVICE_CUDA ? choose_cuda(job, settings, err) : cpu;
}
