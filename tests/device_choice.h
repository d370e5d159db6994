/* Which kind of device a test program tests, by its name: a program of the same source may so test either. */
#ifndef TESTS_DEVICE_CHOICE_H
#define TESTS_DEVICE_CHOICE_H

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "kernels/kernels.h"
#include "tests/tap.h"

/* The CUDA device under test; NULL: the CPU is. */
static const struct device *cuda;

/* NAME.t tests the CPU's kernels, NAME.cuda those of a CUDA device. Returns NULL, or why there is none; a runner for
 * such tests, which stands in for one, must provide it. */
static inline const char *device_choice_open(const char *program)
{
    static struct err err;
    const char *ending = strrchr(program, '.'), *runner = getenv("CUDA_RUNNER");
    struct device_identity identity;
    if (ending == NULL || strcmp(ending, ".cuda") != 0)
        return NULL;
    cuda = device_cuda(0, 1, false, &identity, &err);
    if (cuda != NULL || runner == NULL || runner[0] == '\0')
        return cuda != NULL ? NULL : err.text;
    ok(false, "there is a CUDA device under %s: %s", runner, err.text);
    exit(1);
}

/* The device under test, and how many different numbers of threads it makes sense to test. */
static inline const struct device *device_of(int threads)
{
    return cuda != NULL ? cuda : device_cpu(threads);
}

static inline int most_threads(void)
{
    return cuda != NULL ? 1 : 3;
}

#endif
