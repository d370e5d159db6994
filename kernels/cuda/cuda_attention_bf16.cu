#include "kernels/cuda/cuda_attention.cuh"

void cuda_attention_bf16(struct stream *stream, void *output, float *logsumexp, const void *qkv,
                         const struct attention *a)
{
    attention_by_size<bfloat16>(stream, output, logsumexp, qkv, a);
}

void cuda_attention_gradient_bf16(struct stream *stream, void *dqkv, const void *doutput, const void *qkv,
                                  const void *output, const float *logsumexp, float *delta, const struct attention *a)
{
    attention_gradient_by_size<bfloat16>(stream, dqkv, doutput, qkv, output, logsumexp, delta, a);
}
