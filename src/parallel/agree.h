/* Collective agreement: what one rank knows becomes what all ranks know. */
#ifndef PARALLEL_AGREE_H
#define PARALLEL_AGREE_H

#include "parallel/communicator.h"

/* Collective. `result` < 0 on any rank: -1 on all, with the text of the lowest such rank in err on all. Else 0, err
 * untouched. */
int agree(struct communicator *comm, int result, struct err *err);

/* Collective. Whether all ranks gave the same value. */
bool agree_equal(struct communicator *comm, uint64_t value);

#endif
