/* The watchdog: a thread of each rank that wakes once a second, lets the rank's heart beat and writes its flight record
 * into the output folder. When no instruction has ended anywhere for `hang_seconds`, the first one that notices reads
 * the records of all ranks, tells on standard error who keeps the job (parallel/verdict.h), writes them as
 * flight-<rank>.json and ends the job with EXIT_HANG. It does the same with EXIT_FAILED when a library ends the process
 * by abort(), as MPI libraries do that find another rank dead. It also looks for errors of NCCL, which come while the
 * main thread waits for its device, and ends the job with EXIT_FAILED. The thread makes no MPI call but the one that
 * ends the job. */
#ifndef PARALLEL_WATCHDOG_H
#define PARALLEL_WATCHDOG_H

#include "parallel/job.h"

/* Makes the records, in a folder that exists, and starts the threads; what earlier runs left there of theirs is
 * removed. hang_seconds = 0: nothing is watched or written. Collective: 0, or -1 and the same text on all ranks. */
int watchdog_open(const struct job *job, const char *folder, double hang_seconds, struct err *err);

/* Ends the threads and removes the records. Collective; without watchdog_open, or after it failed, nothing is done. */
void watchdog_close(const struct job *job);

#endif
