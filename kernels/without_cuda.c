/* In place of kernels/cuda in a build without CUDA. */
#include "base/error.h"
#include "kernels/kernels.h"

int device_cuda_count(struct err *err)
{
    err_set(err, "this program was built without CUDA");
    return 0;
}

const struct device *device_cuda(int node_rank, int node_size, bool tf32, struct device_identity *identity,
                                 struct err *err)
{
    (void)node_rank, (void)node_size, (void)tf32, (void)identity;
    device_cuda_count(err);
    return NULL;
}

const struct device *device_cuda_outline(void)
{
    return NULL;
}

const char *device_cuda_libraries(void)
{
    return "none";
}
