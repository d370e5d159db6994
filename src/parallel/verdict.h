/* Who keeps a job that hangs: follows from each rank that waits to the one that it waits for. A chain ends at a rank
 * that does not wait, which is stopped or dead, or works on without an end; or it comes back to itself: a deadlock.
 *
 * A wait for a message leads to its sender. A wait within a group leads to a rank that has not begun this transfer of
 * the group yet; where all have, to one that is stopped, or that works elsewhere. */
#ifndef PARALLEL_VERDICT_H
#define PARALLEL_VERDICT_H

#include "base/text.h"
#include "parallel/flight_files.h"

enum standing {
    STANDING_UNKNOWN, /* no record */
    STANDING_STOPPED, /* or dead: no heartbeat */
    STANDING_WORKS,   /* waits for no other rank */
    STANDING_WAITS
};

struct finding_of_rank {
    enum standing standing;
    int waits_for; /* a rank, -1: none */
    int waiters;   /* ranks whose chain comes by */
    bool in_cycle;
    bool is_cause; /* one of those that keep the job */
};

/* "stopped", "works"; static. */
const char *verdict_standing(enum standing standing);

/* Fills found[size] from the sightings of all ranks. */
void verdict_find(const struct sighting *sightings, int size, struct finding_of_rank *found);

/* Appends the causes, then a line for each rank, of those that only wait not more than some. `wall`: now, seconds since
 * 1970. */
void verdict_print(const struct sighting *sightings, int size, const struct finding_of_rank *found, double wall,
                   struct text *out);

#endif
