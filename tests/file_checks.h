/* What tests of files look at: whether a file is there, and whether all ranks were told the same. */
#ifndef TESTS_FILE_CHECKS_H
#define TESTS_FILE_CHECKS_H

#include <unistd.h>

#include "base/random.h"
#include "parallel/agree.h"

/* Whether all ranks have the same text, and there is one. Collective. */
static inline bool same_text(struct communicator *comm, const struct err *err)
{
    uint64_t hash = 0;
    for (const char *c = err->text; *c; c++)
        hash = random_mix(hash ^ (uint64_t)*c);
    return agree_equal(comm, hash) && err->text[0];
}

static inline bool is_there(const char *path)
{
    return access(path, F_OK) == 0;
}

#endif
