/* The MPI job: start, end, and what a rank shares with its neighbours on the node. */
#ifndef PARALLEL_JOB_H
#define PARALLEL_JOB_H

#include "parallel/communicator.h"

enum {
    JOB_MAX_CPUS = 16384 /* of one node; cpu_set_t alone ends at 1024 */
};

struct job {
    struct communicator *world; /* all ranks */
    int node_rank, node_size;   /* this rank among the ranks of its node */
    char host[256];
};

/* Starts MPI (MPI_THREAD_SERIALIZED: a watchdog thread may abort), makes MPI errors return to the caller instead of
 * ending the program, sets fatal()'s abort to MPI_Abort and the place in messages to "rank 5". Collective. */
void job_begin(int *argc, char ***argv, struct job *job);

/* Ends the job on all ranks with this exit code, once what was written to standard error is through. May be called by
 * another thread than the main one. */
void job_abort(int code);

/* Closes the world and ends MPI. Collective. */
void job_end(struct job *job);

/* The ranks of this rank's node; the caller frees it. Collective. */
MPI_Comm job_split_node(MPI_Comm world);

/* The MPI library, for --version; needs no started MPI. The caller frees it. */
char *job_library(void);

/* Cores that this rank may use divided by the ranks that share them, at least 1: the default number of threads. Takes
 * the affinity masks of all ranks of the node into account. Collective. */
int job_cores(const struct job *job);

#endif
