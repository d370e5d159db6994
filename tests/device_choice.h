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
static struct device_identity cuda_identity;

/* NAME.t and NAME.npN test the CPU's kernels, NAME.cuda and NAME.npN.cuda those of a CUDA device: one for each of the
 * node_size ranks of a node. Returns NULL, or why there is none; a runner for such tests, which stands in for one, must
 * provide it. */
static inline const char *device_choice_open_for(const char *program, int node_rank, int node_size)
{
    static struct err err;
    const char *ending = strrchr(program, '.'), *runner = getenv("CUDA_RUNNER");
    if (ending == NULL || strcmp(ending, ".cuda") != 0)
        return NULL;
    cuda = device_cuda(node_rank, node_size, false, &cuda_identity, &err);
    if (cuda != NULL || runner == NULL || runner[0] == '\0')
        return cuda != NULL ? NULL : err.text;
    ok(false, "there is a CUDA device under %s: %s", runner, err.text);
    exit(1);
}

/* The same for a program that runs alone. */
static inline const char *device_choice_open(const char *program)
{
    return device_choice_open_for(program, 0, 1);
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

/* The first of them; sanitizers, under which a test takes many times as long, see most with the most threads. */
static inline int fewest_threads(void)
{
#ifdef __SANITIZE_ADDRESS__
    return most_threads();
#else
    return 1;
#endif
}

#endif
