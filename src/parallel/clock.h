/* How the ranks' clocks relate: those of different hosts start anywhere and run a little faster or slower. */
#ifndef PARALLEL_CLOCK_H
#define PARALLEL_CLOCK_H

#include "parallel/communicator.h"

/* One comparison with rank 0. */
struct clock_reading {
    double here;  /* clock_seconds() of this rank */
    double ahead; /* what rank 0's clock_seconds() was then, less `here` */
    double error; /* at most; seconds */
};

/* Asks rank 0 for the time some dozens of times and takes the answer that came fastest (Cristian, 1989): the time was
 * that of the middle between question and answer, or at most half the way off. Clocks that this cannot tell apart count
 * as one, as those of a host's processes are. Collective and blocking; microseconds for each rank, one after another.
 */
void clock_compare(struct communicator *world, struct clock_reading *reading);

#endif
