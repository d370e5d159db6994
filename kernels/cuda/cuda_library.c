#include "kernels/cuda/cuda_library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#ifdef HAVE_NCCL
#include <nccl.h>
#endif

#include "kernels/kernels.h"

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)

#ifdef HAVE_NCCL
#define NCCL_TEXT ", NCCL " TEXT(NCCL_MAJOR) "." TEXT(NCCL_MINOR) "." TEXT(NCCL_PATCH)
#else
#define NCCL_TEXT ", without NCCL"
#endif

static struct cuda_library functions;
static bool open;

/* The functions are looked up among all libraries of the program, not in this one alone, so that one that was loaded
 * before it, as by LD_PRELOAD, may stand in for it. */
static int find(const char *name, void *function, struct err *err)
{
    void *found = dlsym(RTLD_DEFAULT, name);
    if (found == NULL)
        return err_set(err, "cuBLASLt has no %s", name);
    memcpy(function, &found, sizeof found);
    return 0;
}

int cuda_library_open(struct err *err)
{
    static const char file[] = "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR);
    if (open)
        return 0;
    if (dlopen(file, RTLD_NOW | RTLD_GLOBAL) == NULL)
        return err_set(err, "cannot load %s: %s", file, dlerror());
#define FIND(name)                             \
    if (find(#name, &functions.name, err) < 0) \
        return -1;
    CUDA_LIBRARY_FUNCTIONS(FIND)
#undef FIND
    open = true;
    return 0;
}

const struct cuda_library *cuda_library(void)
{
    return &functions;
}

void cuda_library_check(cublasStatus_t status, const char *call, const char *file, int line)
{
    if (status != CUBLAS_STATUS_SUCCESS)
        fatal("%s:%d: %s: %s", file, line, call, functions.cublasLtGetStatusString(status));
}

const char *device_cuda_libraries(void)
{
    static char text[64];
    snprintf(text, sizeof text, "CUDA %d.%d, cuBLAS %d.%d.%d%s", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10,
             CUBLAS_VER_MAJOR, CUBLAS_VER_MINOR, CUBLAS_VER_PATCH, NCCL_TEXT);
    return text;
}
