#include "parallel/comm_nccl_library.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/cuda/cuda_load.h"
#include "parallel/comm_nccl.h"

/* An open communicator. */
struct member {
    ncclComm_t comm;
    struct member *next;
};

static struct nccl_library functions;
static bool loaded;

/* The watchdog's thread reads the list. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct member *members;

int comm_nccl_load(struct err *err)
{
    static const struct cuda_function all[] = {NCCL_LIBRARY_FUNCTIONS(CUDA_FUNCTION)};
    if (!loaded && cuda_load("libnccl.so.2", all, sizeof all / sizeof *all, err) < 0)
        return -1;
    loaded = true;
    return 0;
}

const struct nccl_library *nccl_library(void)
{
    return &functions;
}

/* What NCCL says about a failure, and about the last one where it says more. */
static void describe(ncclResult_t status, char *text, size_t room)
{
    const char *last = functions.ncclGetLastError(NULL);
    bool has_more = last != NULL && last[0] != '\0';
    snprintf(text, room, "%s%s%s", functions.ncclGetErrorString(status), has_more ? ": " : "", has_more ? last : "");
}

void nccl_library_check(ncclResult_t status, const char *call, const char *file, int line)
{
    char reason[1024];
    if (status == ncclSuccess)
        return;
    describe(status, reason, sizeof reason);
    fatal("%s:%d: %s: %s", file, line, call, reason);
}

ncclComm_t nccl_library_open(ncclUniqueId id, int size, int rank, int most_blocks)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    if (most_blocks > 0)
        config.maxCTAs = most_blocks;
    struct member *member = allocate(1, sizeof *member); /* freed by nccl_library_close */
    NCCL_CHECK(ncclCommInitRankConfig(&member->comm, size, id, rank, &config));
    pthread_mutex_lock(&mutex);
    member->next = members;
    members = member;
    pthread_mutex_unlock(&mutex);
    return member->comm;
}

void nccl_library_close(ncclComm_t comm)
{
    pthread_mutex_lock(&mutex);
    struct member **place = &members;
    while ((*place)->comm != comm)
        place = &(*place)->next;
    struct member *member = *place;
    *place = member->next;
    pthread_mutex_unlock(&mutex);
    free(member);
    NCCL_CHECK(ncclCommFinalize(comm));
    NCCL_CHECK(ncclCommDestroy(comm));
}

const char *comm_nccl_error(void)
{
    static char text[1024];
    static const char name[] = "NCCL: ";
    ncclResult_t status = ncclSuccess;
    pthread_mutex_lock(&mutex);
    for (const struct member *member = members; member && status == ncclSuccess; member = member->next)
        NCCL_CHECK(ncclCommGetAsyncError(member->comm, &status));
    pthread_mutex_unlock(&mutex);
    if (status == ncclSuccess)
        return NULL;
    memcpy(text, name, sizeof name);
    describe(status, text + sizeof name - 1, sizeof text - sizeof name + 1);
    return text;
}
