#include "kernels/cuda/cuda_library.h"

#include <stdio.h>

#ifdef HAVE_NCCL
#include <nccl.h>
#endif

#include "kernels/cuda/cuda_load.h"
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

int cuda_library_open(struct err *err)
{
    static const struct cuda_function all[] = {CUDA_LIBRARY_FUNCTIONS(CUDA_FUNCTION)};
    if (!open && cuda_load("libcublasLt.so." TEXT(CUBLAS_VER_MAJOR), all, sizeof all / sizeof *all, err) < 0)
        return -1;
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
