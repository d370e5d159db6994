#include "kernels/cuda/cuda_attention_keys.cuh"

template <int D, bool WIDE>
static void tensor_forward(struct stream *stream, bfloat16 *output, float *logsumexp, const bfloat16 *qkv,
                           const struct attention *a)
{
    using S = forward_tiles<D>;
    constexpr size_t BYTES = tensor_bytes<D, S>(1);
    CUDA_CHECK(cudaFuncSetAttribute(tensor_attend<D, WIDE>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    LAUNCH(stream, tensor_attend<D, WIDE>, dim3((unsigned)(parts_of(a->length, S::ROWS) * a->items)), S::THREADS, BYTES,
           output, logsumexp, qkv, *a);
}

/* The kernel for heads of up to D elements. */
template <int D, bool WIDE> static auto key_value_kernel()
{
    if constexpr (D > 64)
        return paired_key_value_gradient<D, WIDE>;
    else
        return tensor_key_value_gradient<D, WIDE>;
}

template <int D, bool WIDE>
static void tensor_backward(struct stream *stream, bfloat16 *dqkv, const bfloat16 *doutput, const bfloat16 *qkv,
                            const bfloat16 *output, const float *logsumexp, float *delta, const struct attention *a)
{
    using Q = query_tiles<D>;
    using K = key_tiles<D, (D > 64)>;
    constexpr size_t QUERY_BYTES = tensor_bytes<D, Q>(2);
    struct attention keys = *a;
    keys.items = a->items / a->group;
    CUDA_CHECK(
        cudaFuncSetAttribute(tensor_query_gradient<D, WIDE>, cudaFuncAttributeMaxDynamicSharedMemorySize, QUERY_BYTES));
    CUDA_CHECK(
        cudaFuncSetAttribute(key_value_kernel<D, WIDE>(), cudaFuncAttributeMaxDynamicSharedMemorySize, K::BYTES));
    LAUNCH(stream, tensor_query_gradient<D, WIDE>, dim3((unsigned)(parts_of(a->length, Q::ROWS) * a->items)),
           Q::THREADS, QUERY_BYTES, dqkv, delta, doutput, qkv, output, logsumexp, *a);
    LAUNCH(stream, key_value_kernel<D, WIDE>(), dim3((unsigned)(parts_of(a->length, K::ROWS) * keys.items)), K::THREADS,
           K::BYTES, dqkv, doutput, qkv, logsumexp, (const float *)delta, keys);
}

void cuda_attention_bf16(struct stream *stream, void *output, float *logsumexp, const void *qkv,
                         const struct attention *a)
{
    const auto run = a->size > 128  ? attention_forward<bfloat16, 256>
                     : a->size > 64 ? (a->wide ? tensor_forward<128, true> : tensor_forward<128, false>)
                                    : (a->wide ? tensor_forward<64, true> : tensor_forward<64, false>);
    run(stream, (bfloat16 *)output, logsumexp, (const bfloat16 *)qkv, a);
}

void cuda_attention_gradient_bf16(struct stream *stream, void *dqkv, const void *doutput, const void *qkv,
                                  const void *output, const float *logsumexp, float *delta, const struct attention *a)
{
    const auto run = a->size > 128  ? attention_backward<bfloat16, 256>
                     : a->size > 64 ? (a->wide ? tensor_backward<128, true> : tensor_backward<128, false>)
                                    : (a->wide ? tensor_backward<64, true> : tensor_backward<64, false>);
    run(stream, (bfloat16 *)dqkv, (const bfloat16 *)doutput, (const bfloat16 *)qkv, (const bfloat16 *)output, logsumexp,
        delta, a);
}
