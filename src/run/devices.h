/* Which device each rank computes on. */
#ifndef RUN_DEVICES_H
#define RUN_DEVICES_H

#include "base/settings.h"
#include "parallel/job.h"

struct devices {
    const struct device *device; /* of this rank, as all others of the same kind */
    char name[256];              /* for people: the model of a CUDA device, "" for the CPU */
};

/* By &run device: the CPU with &run threads, or one CUDA device for each rank; 'auto' is CUDA where this build and
 * every node have enough of them. device and threads of the settings become what was chosen. Collective: 0, or -1 with
 * the same *err on all ranks, which names the node where devices are missing or shared. */
int devices_choose(struct devices *devices, const struct job *job, struct settings *settings, struct err *err);

#endif
