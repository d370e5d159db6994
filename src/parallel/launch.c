#define _GNU_SOURCE /* sched_getaffinity */

#include "parallel/launch.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "parallel/mpi_check.h"

/* What launchers tell each rank, in the environment: how many there are, and its number. */
static const struct {
    const char *name, *size, *rank;
} launchers[] = {
    {"MPICH's mpiexec, or one like it", "PMI_SIZE", "PMI_RANK"}, /* Slurm's pmi2 too: the first entry decides */
    {"Open MPI's mpiexec", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
    {"srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"},
};

static int number(const char *variable)
{
    const char *value = getenv(variable);
    return value ? atoi(value) : 0;
}

int launch_check(const struct job *job, bool *speaks, struct err *err)
{
    *speaks = job->world->rank == 0;
    if (job->world->size > 1)
        return 0;
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        int size = number(launchers[i].size);
        if (size == 1)
            return 0;
        if (size > 1) {
            char *library = job_library();
            *speaks = number(launchers[i].rank) == 0;
            err_set(err,
                    "%s started %d ranks (%s = %d), but each of them is alone in its MPI: the launcher does not belong "
                    "to the MPI library of this program, which is %.60s; start it with that library's mpiexec, or with "
                    "srun --mpi=pmi2 or --mpi=pmix (srun --mpi=list tells what there is)",
                    launchers[i].name, size, launchers[i].size, size, library);
            free(library);
            return -1;
        }
    }
    return 0;
}

int launch_cores(const struct job *job)
{
    cpu_set_t *mask = allocate(1, CPU_ALLOC_SIZE(JOB_MAX_CPUS));
    if (sched_getaffinity(0, CPU_ALLOC_SIZE(JOB_MAX_CPUS), mask) != 0)
        fatal("sched_getaffinity: %s", strerror(errno));
    MPI_Comm node = job_split_node(job->world->mpi);
    mpi_check(MPI_Allreduce(MPI_IN_PLACE, mask, (int)CPU_ALLOC_SIZE(JOB_MAX_CPUS), MPI_BYTE, MPI_BOR, node),
              "MPI_Allreduce of affinity masks");
    mpi_check(MPI_Comm_free(&node), "MPI_Comm_free");
    int cores = CPU_COUNT_S(CPU_ALLOC_SIZE(JOB_MAX_CPUS), mask);
    free(mask);
    return cores;
}
