#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "parallel/agree.h"

static const char partial_end[] = ".h5.partial";

char *checkpoint_path(const char *directory, int64_t step)
{
    size_t bytes = strlen(directory) + 40;
    char *path = allocate(bytes, 1);
    snprintf(path, bytes, "%s/step-%08" PRId64 ".h5", directory, step);
    return path;
}

int64_t checkpoint_step(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (strncmp(name, "step-", 5) != 0 || strspn(name + 5, "0123456789") > 18)
        return -1;
    int64_t step = strtoll(name + 5, NULL, 10);
    char canonical[40];
    snprintf(canonical, sizeof canonical, "step-%08" PRId64 ".h5", step);
    return strcmp(name, canonical) == 0 ? step : -1;
}

static char *join(const char *directory, const char *name)
{
    size_t bytes = strlen(directory) + strlen(name) + 2;
    char *path = allocate(bytes, 1);
    snprintf(path, bytes, "%s/%s", directory, name);
    return path;
}

static bool is_partial(const char *name)
{
    size_t length = strlen(name), end = sizeof partial_end - 1;
    return strncmp(name, "step-", 5) == 0 && length > end && strcmp(name + length - end, partial_end) == 0;
}

static int newest_first(const void *a, const void *b)
{
    int64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x < y) - (x > y);
}

/* The steps of the complete files, newest first; also removes partial ones where this is asked for. */
static int scan(const char *directory, bool remove_partial, int64_t **steps, int *count, struct err *err)
{
    *steps = NULL;
    *count = 0;
    DIR *folder = opendir(directory);
    if (!folder)
        return errno == ENOENT ? 0 : err_set(err, "%s: the folder cannot be read: %s", directory, strerror(errno));
    int result = 0, room = 0;
    for (const struct dirent *entry; result == 0 && (entry = readdir(folder));) {
        int64_t step = checkpoint_step(entry->d_name);
        if (step >= 0) {
            if (*count == room) {
                int64_t *more = allocate((size_t)(room = room * 2 + 16), sizeof *more);
                if (*count > 0)
                    memcpy(more, *steps, (size_t)*count * sizeof *more);
                free(*steps);
                *steps = more;
            }
            (*steps)[(*count)++] = step;
        } else if (remove_partial && is_partial(entry->d_name)) {
            char *path = join(directory, entry->d_name);
            result = file_remove(path, err);
            free(path);
        }
    }
    closedir(folder);
    if (*count > 0)
        qsort(*steps, (size_t)*count, sizeof **steps, newest_first);
    return result;
}

int checkpoint_list(struct communicator *comm, const char *directory, char ***paths, int *count, struct err *err)
{
    int64_t *steps = NULL;
    *paths = NULL;
    *count = 0;
    int found = 0, result = comm->rank == 0 ? scan(directory, false, &steps, &found, err) : 0;
    result = agree(comm, result, err);
    if (result == 0) {
        control_broadcast(comm, &found, sizeof found, 0);
        if (comm->rank > 0)
            steps = allocate((size_t)found, sizeof *steps);
        if (found > 0)
            control_broadcast(comm, steps, (size_t)found * sizeof *steps, 0);
        *paths = allocate((size_t)found, sizeof **paths);
        for (*count = 0; *count < found; (*count)++)
            (*paths)[*count] = checkpoint_path(directory, steps[*count]);
    }
    free(steps);
    return result;
}

void checkpoint_list_free(char **paths, int count)
{
    for (int i = 0; i < count; i++)
        free(paths[i]);
    free(paths);
}

static int prune(const char *directory, int64_t keep, int64_t keep_every, struct err *err)
{
    int64_t *steps;
    int count, result = scan(directory, true, &steps, &count, err);
    for (int i = 0; i < count && result == 0; i++) {
        if (keep == 0 || i < keep || (keep_every > 0 && steps[i] % keep_every == 0))
            continue;
        char *path = checkpoint_path(directory, steps[i]);
        result = file_remove(path, err);
        free(path);
    }
    free(steps);
    return result;
}

int checkpoint_prune(struct communicator *comm, const char *directory, int64_t keep, int64_t keep_every,
                     struct err *err)
{
    return agree(comm, comm->rank == 0 ? prune(directory, keep, keep_every, err) : 0, err);
}
