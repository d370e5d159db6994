/* Which device each rank computes on. */
#ifndef RUN_DEVICES_H
#define RUN_DEVICES_H

#include "base/settings.h"
#include "parallel/job.h"

/* By &run device: the CPU with &run threads, or one CUDA device for each rank; 'auto' is CUDA where this build and
 * every node have enough of them. device and threads of the settings become what was chosen. Collective: a device of
 * the same kind on all ranks, or NULL with the same *err, which names the node where devices are missing or shared. */
const struct device *devices_choose(const struct job *job, struct settings *settings, struct err *err);

#endif
