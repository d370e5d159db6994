/* cuBLASLt, loaded when a CUDA device is opened. Linked to the program it would cost every run on CPUs about 150 MB of
 * memory per rank and a tenth of a second. */
#ifndef KERNELS_CUDA_CUDA_LIBRARY_H
#define KERNELS_CUDA_CUDA_LIBRARY_H

#include <cublasLt.h>

#include "base/error.h"

/* The functions in use, by name. */
#define CUDA_LIBRARY_FUNCTIONS(X)           \
    X(cublasLtCreate)                       \
    X(cublasLtGetStatusString)              \
    X(cublasLtMatmul)                       \
    X(cublasLtMatmulAlgoGetHeuristic)       \
    X(cublasLtMatmulDescCreate)             \
    X(cublasLtMatmulDescDestroy)            \
    X(cublasLtMatmulDescSetAttribute)       \
    X(cublasLtMatmulPreferenceCreate)       \
    X(cublasLtMatmulPreferenceDestroy)      \
    X(cublasLtMatmulPreferenceSetAttribute) \
    X(cublasLtMatrixLayoutCreate)           \
    X(cublasLtMatrixLayoutDestroy)

#define CUDA_LIBRARY_MEMBER(name) __typeof__(&name) name;
struct cuda_library {
    CUDA_LIBRARY_FUNCTIONS(CUDA_LIBRARY_MEMBER)
};
#undef CUDA_LIBRARY_MEMBER

/* Loads the library once. Returns -1 with the loader's message where it is not there. */
int cuda_library_open(struct err *err);

/* Its functions; cuda_library_open must have succeeded. */
const struct cuda_library *cuda_library(void);

/* Ends the job with the library's message where a call failed: BLAS_CHECK(cublasLtCreate(&handle)). */
#define BLAS_CHECK(call) cuda_library_check(cuda_library()->call, #call, __FILE__, __LINE__)
void cuda_library_check(cublasStatus_t status, const char *call, const char *file, int line);

#endif
