/* What writing and reading a checkpoint have in common: this rank's parts of the tensors. */
#ifndef IO_CHECKPOINT_PARTS_H
#define IO_CHECKPOINT_PARTS_H

#include "io/box.h"
#include "io/checkpoint.h"

struct box checkpoint_box(const struct checkpoint_tensor *tensor, const struct checkpoint_part *part);

/* Whether every part lies within its tensor and those marked first cover each tensor once, by the number of elements.
 * Collective. */
int checkpoint_check_parts(struct communicator *comm, const struct checkpoint_tensor *tensors, int tensor_count,
                           const struct checkpoint_part *parts, int part_count, struct err *err);

/* Each tensor's digest from the parts marked first of all ranks. Collective. */
void checkpoint_digest_parts(struct communicator *comm, const struct checkpoint_tensor *tensors, int tensor_count,
                             const struct checkpoint_part *parts, int part_count, uint64_t *digests);

#endif
