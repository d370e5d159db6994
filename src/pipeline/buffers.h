/* The message buffers that a lowered schedule needs, and the proof that it does not deadlock with them.
 *
 * Both functions take a table that is right in all but how the ranks' orders fit together; validate.h checks the rest
 * first. They take time in proportion to the table, and the first also to ranks * steps of its run. */
#ifndef PIPELINE_BUFFERS_H
#define PIPELINE_BUFFERS_H

#include "base/error.h"
#include "pipeline/instruction.h"

/* Receives of each kind that a rank should keep posted for each peer, into receive_depth[ranks][MESSAGE_KINDS]; 0 where
 * none comes. Found by a run in which all ranks compute in step: the most messages that ever lie there, and one more,
 * so that a receive has a computation to complete behind. That is 2 in most schedules, and more where a rank is sent to
 * long before it consumes. With that many no send in that run has to wait, so the schedule cannot deadlock. */
void buffers_depth(const struct schedule *schedule, int (*receive_depth)[MESSAGE_KINDS]);

/* Runs the table with bounded buffers. Of each kind and peer a rank has the next receive_depth[rank][kind] receives of
 * its list posted, from the first that is not consumed on, and at most `send_slots` sends that no posted receive has
 * taken up. A computation waits for its message, a send for a free slot. Each wait is for one fixed instruction
 * elsewhere, so that the outcome does not depend on timing and one run proves all.
 *
 * Returns 0 when every rank finishes, else -1 with the circle of ranks that wait for each other in *err. */
int buffers_check(const struct schedule *schedule, int (*receive_depth)[MESSAGE_KINDS], int send_slots,
                  struct err *err);

#endif
