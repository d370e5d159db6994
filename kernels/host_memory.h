/* Memory of the host that a device copies to and from. */
#ifndef KERNELS_HOST_MEMORY_H
#define KERNELS_HOST_MEMORY_H

#include "base/error.h"
#include "kernels/kernels.h"

/* The device's host_allocate(), to be released by its host_release(); never NULL: ends the job where there is not
 * enough, naming what it is for. */
static inline void *host_memory(const struct device *device, size_t bytes, const char *what)
{
    void *memory = device->host_allocate(bytes);
    if (!memory)
        fatal("out of host memory: %zu bytes for %s", bytes, what);
    return memory;
}

#endif
