/* NCCL, loaded when a communicator over several CUDA devices is opened: linked to the program it would cost every run
 * on CPUs memory and time. And NCCL's communicators, which are listed here so that their errors can be looked for. */
#ifndef PARALLEL_COMM_NCCL_LIBRARY_H
#define PARALLEL_COMM_NCCL_LIBRARY_H

#include <nccl.h>

#include "base/error.h"

/* The functions in use, by name. */
#define NCCL_LIBRARY_FUNCTIONS(X) \
    X(ncclAllGather)              \
    X(ncclAllReduce)              \
    X(ncclBroadcast)              \
    X(ncclCommDestroy)            \
    X(ncclCommFinalize)           \
    X(ncclCommGetAsyncError)      \
    X(ncclCommInitRankConfig)     \
    X(ncclGetErrorString)         \
    X(ncclGetLastError)           \
    X(ncclGetUniqueId)            \
    X(ncclGroupEnd)               \
    X(ncclGroupStart)             \
    X(ncclRecv)                   \
    X(ncclReduce)                 \
    X(ncclReduceScatter)          \
    X(ncclSend)

#define NCCL_LIBRARY_MEMBER(name) __typeof__(&name) name;
struct nccl_library {
    NCCL_LIBRARY_FUNCTIONS(NCCL_LIBRARY_MEMBER)
};
#undef NCCL_LIBRARY_MEMBER

/* Its functions; comm_nccl_load() must have succeeded. */
const struct nccl_library *nccl_library(void);

/* Ends the job with the library's messages where a call failed: NCCL_CHECK(ncclGroupStart()). */
#define NCCL_CHECK(call) nccl_library_check(nccl_library()->call, #call, __FILE__, __LINE__)
void nccl_library_check(ncclResult_t status, const char *call, const char *file, int line);

/* Opens a communicator of NCCL. Collective over those who have the id, which one of them has made. most_blocks: how
 * many of the device's multiprocessors it may keep busy; 0: for NCCL to choose. */
ncclComm_t nccl_library_open(ncclUniqueId id, int size, int rank, int most_blocks);

/* Its streams must be empty. Collective. */
void nccl_library_close(ncclComm_t comm);

#endif
