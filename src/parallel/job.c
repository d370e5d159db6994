#define _GNU_SOURCE /* sched_getaffinity */

#include "parallel/job.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/memory.h"
#include "parallel/mpi_check.h"

enum {
    MESSAGE_NANOSECONDS = 100000000 /* from the message to the end of the job */
};

/* The launcher may end the job without passing on what still stands in a rank's pipe (MPICH's does so now and then), so
 * that it is given time to read the message. */
void job_abort(int code)
{
    nanosleep(&(struct timespec){.tv_nsec = MESSAGE_NANOSECONDS}, NULL);
    MPI_Abort(MPI_COMM_WORLD, code);
}

MPI_Comm job_split_node(MPI_Comm world)
{
    MPI_Comm node;
    mpi_check(MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
    mpi_check(MPI_Comm_set_errhandler(node, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    return node;
}

void job_begin(int *argc, char ***argv, struct job *job)
{
    int provided;
    mpi_check(MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
    error_set_abort(job_abort);
    mpi_check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    mpi_check(MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    job->world = comm_mpi_open(MPI_COMM_WORLD);
    error_set_place("rank %d", job->world->rank);
    if (provided < MPI_THREAD_SERIALIZED)
        fatal("this MPI library does not allow calls from more than one thread (MPI_THREAD_SERIALIZED)");

    MPI_Comm node = job_split_node(job->world->mpi);
    mpi_check(MPI_Comm_rank(node, &job->node_rank), "MPI_Comm_rank");
    mpi_check(MPI_Comm_size(node, &job->node_size), "MPI_Comm_size");
    mpi_check(MPI_Comm_free(&node), "MPI_Comm_free");
    if (gethostname(job->host, sizeof job->host) != 0)
        fatal("gethostname: %s", strerror(errno));
    job->host[sizeof job->host - 1] = 0;
}

void job_end(struct job *job)
{
    communicator_close(job->world);
    job->world = NULL;
    error_set_abort(NULL);
    mpi_check(MPI_Finalize(), "MPI_Finalize");
}

char *job_library(void)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length;
    if (MPI_Get_library_version(text, &length) != MPI_SUCCESS)
        return copy_text("unknown MPI");
    text[strcspn(text, "\n")] = 0;
    char *end = text; /* runs of white space become one blank */
    for (const char *word = strtok(text, " \t\r"); word; word = strtok(NULL, " \t\r")) {
        size_t letters = strlen(word);
        if (end > text)
            *end++ = ' ';
        memmove(end, word, letters);
        end += letters;
    }
    *end = 0;
    return copy_text(text);
}

int job_cores(const struct job *job)
{
    size_t bytes = CPU_ALLOC_SIZE(JOB_MAX_CPUS);
    char *masks = allocate((size_t)job->node_size, bytes);
    cpu_set_t *mine = allocate(1, bytes), *both = allocate(1, bytes);
    if (sched_getaffinity(0, bytes, mine) != 0)
        fatal("sched_getaffinity: %s", strerror(errno));

    MPI_Comm node = job_split_node(job->world->mpi);
    mpi_check(MPI_Allgather(mine, (int)bytes, MPI_BYTE, masks, (int)bytes, MPI_BYTE, node),
              "MPI_Allgather of affinity masks");
    mpi_check(MPI_Comm_free(&node), "MPI_Comm_free");

    int sharers = 0; /* this rank is one of them */
    for (int i = 0; i < job->node_size; i++) {
        memcpy(both, masks + (size_t)i * bytes, bytes);
        CPU_AND_S(bytes, both, both, mine);
        sharers += CPU_COUNT_S(bytes, both) > 0;
    }
    int cores = CPU_COUNT_S(bytes, mine) / sharers;
    free(both);
    free(mine);
    free(masks);
    return cores > 1 ? cores : 1;
}
