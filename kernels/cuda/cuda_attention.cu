/* Attention for any type of element: describes the call to its kernels. */
#include "kernels/cuda/cuda_attention.cuh"

#define _Noreturn [[noreturn]] /* C's word for it */
extern "C" {
#include "base/error.h"
}
#undef _Noreturn

static struct attention describe(enum element element, const struct attention_shape *shape, const void *qkv,
                                 const void *dqkv, const void *output, const void *doutput)
{
    const int pack = 16 / (int)element_bytes(element);
    const uintptr_t addresses = (uintptr_t)qkv | (uintptr_t)dqkv | (uintptr_t)output | (uintptr_t)doutput;
    struct attention a = {};
    if (shape->head_size > 256)
        fatal("attention over heads of %d elements: at most 256 are supported", shape->head_size);
    a.length = shape->length;
    a.items = shape->sequences * shape->heads;
    a.qkv_row = (shape->heads + 2 * (int64_t)shape->kv_heads) * shape->head_size;
    a.output_row = (int64_t)shape->heads * shape->head_size;
    a.heads = shape->heads;
    a.kv_heads = shape->kv_heads;
    a.group = shape->heads / shape->kv_heads;
    a.size = shape->head_size;
    a.scale = (float)(1.0 / sqrt((double)shape->head_size));
    a.wide = addresses % 16 == 0 && shape->head_size % pack == 0;
    a.even = addresses % (2 * element_bytes(element)) == 0 && shape->head_size % 2 == 0;
    return a;
}

void cuda_attention(struct stream *stream, enum element element, void *output, float *logsumexp, const void *qkv,
                    const struct attention_shape *shape, void *workspace)
{
    (void)workspace;
    const struct attention a = describe(element, shape, qkv, nullptr, output, nullptr);
    (element == ELEMENT_BFLOAT16 ? cuda_attention_bf16 : cuda_attention_fp32)(stream, output, logsumexp, qkv, &a);
}

void cuda_attention_gradient(struct stream *stream, enum element element, void *dqkv, const void *doutput,
                             const void *qkv, const void *output, const float *logsumexp,
                             const struct attention_shape *shape, void *workspace)
{
    const struct attention a = describe(element, shape, qkv, dqkv, output, doutput);
    (element == ELEMENT_BFLOAT16 ? cuda_attention_gradient_bf16 : cuda_attention_gradient_fp32)(
        stream, dqkv, doutput, qkv, output, logsumexp, (float *)workspace, &a);
}

/* The sums of output * doutput. */
size_t cuda_attention_workspace(enum element element, const struct attention_shape *shape)
{
    (void)element;
    return (size_t)(shape->sequences * shape->heads * shape->length) * sizeof(float);
}
