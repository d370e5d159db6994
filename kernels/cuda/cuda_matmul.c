/* Matmuls by cuBLASLt. It is column-major: a row-major matrix is its transpose there, so that y = x w^T becomes
 * y^T = w x^T with the same memory.
 *
 * How a product is done is asked of the library once for each shape and kept. Sums that are split over blocks are
 * allowed only where the parts are kept in float32 and added in a pass of their own; where a bias or what is there is
 * added to a bfloat16 result not at all, as that pass rounds the sum before it adds them. The library's GELU is not
 * used: it takes y before it is rounded, and the same numbers could not be had again from y alone. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/cuda_library.h"

/* d [n, m] (+)= op(b) op(a) in row-major terms, that is d^T [m, n] = op(a) op(b) in the library's. */
struct product {
    bool transpose_a, transpose_b, accumulate;
    int64_t m, n, k;
    const void *a, *b;
    void *d;
    int64_t a_row, b_row, d_row; /* elements between the starts of rows */
    enum element element, result;
    const void *bias; /* [m] of the type `result`, or NULL */
};

/* What a way to do it depends on; the padding is zero, so that keys can be compared as bytes. */
struct key {
    int64_t m, n, k, a_row, b_row, d_row;
    int alignment[4]; /* of a, b, d and bias: up to 16 bytes */
    int flags;
    int padding;
};

/* A product as the library knows it. */
struct way {
    struct key key;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;
};

/* Training has some dozens of shapes; ragged evaluation may have more, and then the oldest go. */
enum {
    WAYS = 512, /* places, a power of two */
    WAYS_USED = 384
};

static struct way ways[WAYS];
static int ways_used;
static cublasLtHandle_t handle;

static int alignment_of(const void *address)
{
    const uintptr_t low = (uintptr_t)address & 15;
    return low == 0 ? 16 : (int)(low & -low);
}

static struct key key_of(const struct product *p)
{
    return (struct key){
        .m = p->m,
        .n = p->n,
        .k = p->k,
        .a_row = p->a_row,
        .b_row = p->b_row,
        .d_row = p->d_row,
        .alignment = {alignment_of(p->a), alignment_of(p->b), alignment_of(p->d), alignment_of(p->bias)},
        .flags = p->transpose_a | p->transpose_b << 1 | p->accumulate << 2 | (p->bias != NULL) << 3 |
                 (int)p->element << 4 | (int)p->result << 5 | cuda_tf32() << 6};
}

static size_t hash(const struct key *key)
{
    const unsigned char *bytes = (const unsigned char *)key;
    uint64_t sum = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof *key; i++)
        sum = (sum ^ bytes[i]) * 0x100000001b3u;
    return (size_t)(sum ^ sum >> 29);
}

static void forget_all(void)
{
    for (int i = 0; i < WAYS; i++) {
        if (ways[i].product == NULL)
            continue;
        BLAS_CHECK(cublasLtMatmulDescDestroy(ways[i].product));
        BLAS_CHECK(cublasLtMatrixLayoutDestroy(ways[i].a));
        BLAS_CHECK(cublasLtMatrixLayoutDestroy(ways[i].b));
        BLAS_CHECK(cublasLtMatrixLayoutDestroy(ways[i].d));
    }
    memset(ways, 0, sizeof ways);
    ways_used = 0;
}

static cudaDataType type_of(enum element element)
{
    return element == ELEMENT_BFLOAT16 ? CUDA_R_16BF : CUDA_R_32F;
}

static cublasLtMatrixLayout_t lay_out(enum element element, bool transposed, int64_t rows, int64_t columns, int64_t row)
{
    cublasLtMatrixLayout_t layout;
    BLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, type_of(element), (uint64_t)(transposed ? columns : rows),
                                          (uint64_t)(transposed ? rows : columns), row));
    return layout;
}

static void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, const void *value, size_t size)
{
    BLAS_CHECK(cublasLtMatmulDescSetAttribute(product, attribute, value, size));
}

static void describe(struct way *way, const struct product *p)
{
    const cublasOperation_t a = p->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t b = p->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const bool rounded = p->element == ELEMENT_FLOAT32 && cuda_tf32();
    const cublasLtEpilogue_t bias = CUBLASLT_EPILOGUE_BIAS;
    BLAS_CHECK(cublasLtMatmulDescCreate(&way->product, rounded ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                                        CUDA_R_32F));
    set(way->product, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof a);
    set(way->product, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof b);
    if (p->bias != NULL) { /* its alignment matters to the choice */
        set(way->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, sizeof bias);
        set(way->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
    }
    way->a = lay_out(p->element, p->transpose_a, p->m, p->k, p->a_row);
    way->b = lay_out(p->element, p->transpose_b, p->k, p->n, p->b_row);
    way->d = lay_out(p->result, false, p->m, p->n, p->d_row);
}

static void choose(struct way *way, const struct product *p)
{
    const uint64_t workspace = CUDA_WORKSPACE;
    const uint32_t schemes = (p->bias != NULL || p->accumulate) && p->result == ELEMENT_BFLOAT16
                                 ? CUBLASLT_REDUCTION_SCHEME_NONE
                                 : CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES};
    cublasLtMatmulPreference_t preference;
    BLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                    sizeof workspace));
    BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                                    sizeof schemes));
    for (int i = 0; i < 4; i++) { /* c lies where d does */
        const uint32_t bytes = (uint32_t)way->key.alignment[i < 3 ? i : 2];
        BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, alignments[i], &bytes, sizeof bytes));
    }
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    BLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(handle, way->product, way->a, way->b, way->d, way->d, preference, 1,
                                              &result, &found));
    BLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    if (found == 0)
        fatal("cuBLASLt has no way to multiply %lld x %lld x %lld", (long long)p->m, (long long)p->n, (long long)p->k);
    way->algorithm = result.algo;
    way->workspace = result.workspaceSize;
}

static struct way *way_of(const struct product *p)
{
    const struct key key = key_of(p);
    if (ways_used >= WAYS_USED)
        forget_all();
    size_t at = hash(&key) % WAYS;
    while (ways[at].product != NULL && memcmp(&ways[at].key, &key, sizeof key) != 0)
        at = (at + 1) % WAYS;
    struct way *way = &ways[at];
    if (way->product == NULL) {
        if (handle == NULL)
            BLAS_CHECK(cublasLtCreate(&handle));
        way->key = key;
        describe(way, p);
        choose(way, p);
        ways_used++;
    }
    return way;
}

static void multiply(struct stream *stream, const struct product *p)
{
    if (p->m == 0 || p->n == 0)
        return;
    struct way *way = way_of(p);
    const float one = 1.0f, beta = p->accumulate ? 1.0f : 0.0f;
    if (p->bias != NULL)
        set(way->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
    BLAS_CHECK(cublasLtMatmul(handle, way->product, &one, p->a, way->a, p->b, way->b, &beta, p->d, way->d, p->d, way->d,
                              &way->algorithm, stream->workspace, way->workspace, stream->queue));
}

/* The library takes biases of the result's type alone. */
static const void *bias_as(struct stream *stream, enum element element, const float *bias, int64_t out)
{
    if (bias == NULL || element == ELEMENT_FLOAT32)
        return bias;
    void *rounded = stream->workspace + CUDA_WORKSPACE;
    if ((size_t)out * element_bytes(element) > CUDA_BIAS_BYTES)
        fatal("a bias of %lld elements is longer than the %zu bytes for it", (long long)out, CUDA_BIAS_BYTES);
    cuda_convert(stream, element, rounded, bias, out);
    return rounded;
}

/* The library is many times slower where a matrix has an odd number of columns, even with rows that are aligned to 16
 * bytes. So columns of y and dy that fill no 16 bytes are a product of their own. Returns how many of `out` columns
 * those from `first` on are that are taken together. */
static int64_t columns_from(enum element element, int64_t first, int64_t in, int64_t out, int64_t pitch)
{
    const int64_t pack = 16 / (int64_t)element_bytes(element), whole = out - out % pack;
    return in % pack == 0 && pitch % pack == 0 && first < whole ? whole - first : out - first;
}

static const void *column_at(enum element element, const void *matrix, int64_t column)
{
    return matrix == NULL ? NULL : (const char *)matrix + column * (int64_t)element_bytes(element);
}

void cuda_linear(struct stream *stream, enum element element, void *y, void *activated, const void *x, const void *w,
                 const float *bias, int64_t rows, int64_t in, int64_t out, int64_t pitch)
{
    const int64_t count = columns_from(element, 0, in, out, pitch);
    if (in == 0)
        cuda_repeat(stream, element, y, bias, rows, out, pitch);
    else
        multiply(stream, &(struct product){.transpose_a = true,
                                           .m = count,
                                           .n = rows,
                                           .k = in,
                                           .a = w,
                                           .a_row = in,
                                           .b = x,
                                           .b_row = in,
                                           .d = y,
                                           .d_row = pitch,
                                           .element = element,
                                           .result = element,
                                           .bias = bias_as(stream, element, bias, count)});
    if (in > 0 && count < out)
        cuda_linear_columns(stream, element, y, x, w, bias, rows, in, count, out, pitch);
    if (activated != NULL && pitch != out)
        fatal("an activation of rows with gaps");
    if (activated != NULL)
        cuda_gelu(stream, element, activated, y, rows * out);
}

/* Both parts are rounded to elements before the library adds them, whatever the way. */
void cuda_linear_input_gradient(struct stream *stream, enum element element, void *dx, const void *dy, const void *w,
                                int64_t rows, int64_t in, int64_t out, int64_t pitch)
{
    const int64_t most = columns_from(element, 0, in, out, pitch);
    if (out == 0)
        cuda_repeat(stream, element, dx, NULL, rows, in, in);
    for (int64_t first = most < out ? most : 0, end = out; end > 0; end = first, first = 0)
        multiply(stream, &(struct product){.accumulate = end < out,
                                           .m = in,
                                           .n = rows,
                                           .k = end - first,
                                           .a = column_at(element, w, first * in),
                                           .a_row = in,
                                           .b = column_at(element, dy, first),
                                           .b_row = pitch,
                                           .d = dx,
                                           .d_row = in,
                                           .element = element,
                                           .result = element});
}

void cuda_linear_weight_gradient(struct stream *stream, enum element element, float *dw, float *dbias, const void *dy,
                                 const void *x, int64_t rows, int64_t in, int64_t out, int64_t pitch, bool accumulate)
{
    if (rows == 0 && !accumulate)
        cuda_repeat(stream, ELEMENT_FLOAT32, dw, NULL, out, in, in);
    for (int64_t first = 0, count; rows > 0 && first < out; first += count) {
        count = columns_from(element, first, in, out, pitch);
        multiply(stream, &(struct product){.transpose_b = true,
                                           .accumulate = accumulate,
                                           .m = in,
                                           .n = count,
                                           .k = rows,
                                           .a = x,
                                           .a_row = in,
                                           .b = column_at(element, dy, first),
                                           .b_row = pitch,
                                           .d = dw + first * in,
                                           .d_row = in,
                                           .element = element,
                                           .result = ELEMENT_FLOAT32});
    }
    if (dbias != NULL)
        cuda_column_sums(stream, element, dbias, dy, rows, out, pitch, accumulate);
}
