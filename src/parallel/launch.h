/* How the job was started, as far as that can be wrong without MPI noticing. */
#ifndef PARALLEL_LAUNCH_H
#define PARALLEL_LAUNCH_H

#include "parallel/job.h"

/* A launcher that this MPI library does not know starts as many jobs of one rank each as there are ranks: -1 with *err
 * then, and *speaks on the first of them alone. Else 0, and *speaks on rank 0. Local. */
int launch_check(const struct job *job, bool *speaks, struct err *err);

/* Cores that the ranks of this node together may use. Collective. */
int launch_cores(const struct job *job);

#endif
