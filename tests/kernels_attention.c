/* The device table's attention and its gradient. */
#include "tests/kernel_run.h"

/* sequences, length, heads, kv_heads, head_size */
static const int64_t shapes[][5] = {{0, 5, 1, 1, 4},    {1, 1, 1, 1, 1},    {2, 5, 3, 3, 7},    {1, 23, 1, 1, 16},
                                    {3, 65, 1, 1, 7},   {1, 65, 3, 3, 64},  {1, 130, 1, 1, 80}, {1, 130, 3, 1, 16},
                                    {2, 64, 4, 2, 33},  {1, 65, 1, 1, 256}, {1, 200, 2, 1, 24}, {5, 23, 6, 3, 1},
                                    {1, 128, 1, 1, 64}, {1, 129, 2, 1, 64}, {2, 1, 2, 1, 128},  {1, 161, 2, 1, 128},
                                    {1, 97, 3, 1, 96},  {1, 31, 1, 1, 72}};

struct heads {
    int64_t length, heads, kv_heads, size;
};

static int64_t row_of(const struct heads *h)
{
    return (h->heads + 2 * h->kv_heads) * h->size;
}

/* One query head of one sequence in float64: output [length, size] in rows of heads * size, weights [length, length]
 * kept for the gradient, logsumexp [length]. spread, as output: the same sums of absolute terms. */
static void attend(const struct heads *h, double *output, double *spread, double *weights, double *logsumexp,
                   const double *qkv, int64_t head)
{
    const int64_t row = row_of(h), kv = head / (h->heads / h->kv_heads), out = h->heads * h->size;
    const double *q = qkv + head * h->size, *k = qkv + (h->heads + kv) * h->size, *v = k + h->kv_heads * h->size;
    for (int64_t i = 0; i < h->length; i++) {
        double sum = 0.0, *w = weights + i * h->length;
        for (int64_t j = 0; j < h->length; j++) {
            w[j] = 0.0;
            for (int64_t d = 0; d < h->size; d++)
                w[j] += q[i * row + d] * k[j * row + d];
            w[j] = j <= i ? exp(w[j] / sqrt((double)h->size)) : 0.0;
            sum += w[j];
        }
        logsumexp[i] = log(sum);
        for (int64_t j = 0; j <= i; j++)
            w[j] /= sum;
        for (int64_t d = 0; d < h->size; d++) {
            const int64_t at = i * out + head * h->size + d;
            output[at] = spread[at] = 0.0;
            for (int64_t j = 0; j <= i; j++) {
                output[at] += w[j] * v[j * row + d];
                spread[at] += w[j] * fabs(v[j * row + d]);
            }
        }
    }
}

/* Adds the gradients of one query head, from the softmax's Jacobian: ds_ij = w_ij (dw_ij - sum_k w_ik dw_ik). The sum
 * over k is that of output * doutput, with the output that the kernel is given. */
static void attend_gradient(const struct heads *h, double *dqkv, double *spread, const double *doutput,
                            const double *weights, const double *qkv, const double *output, int64_t head)
{
    const int64_t row = row_of(h), kv = head / (h->heads / h->kv_heads), out = h->heads * h->size;
    const int64_t q = head * h->size, k = (h->heads + kv) * h->size, v = k + h->kv_heads * h->size;
    double *dw = allocate((size_t)h->length, sizeof *dw);
    for (int64_t i = 0; i < h->length; i++) {
        const double *w = weights + i * h->length, *d_out = doutput + i * out + head * h->size;
        double mean = 0.0;
        for (int64_t j = 0; j <= i; j++) {
            dw[j] = 0.0;
            for (int64_t d = 0; d < h->size; d++) {
                dw[j] += d_out[d] * qkv[j * row + v + d];
                dqkv[j * row + v + d] += w[j] * d_out[d];
                spread[j * row + v + d] += w[j] * fabs(d_out[d]);
            }
        }
        for (int64_t d = 0; d < h->size; d++)
            mean += output[i * out + head * h->size + d] * d_out[d];
        for (int64_t j = 0; j <= i; j++) {
            const double ds = w[j] * (dw[j] - mean) / sqrt((double)h->size);
            for (int64_t d = 0; d < h->size; d++) {
                dqkv[i * row + q + d] += ds * qkv[j * row + k + d];
                dqkv[j * row + k + d] += ds * qkv[i * row + q + d];
                spread[i * row + q + d] += fabs(ds * qkv[j * row + k + d]);
                spread[j * row + k + d] += fabs(ds * qkv[i * row + q + d]);
            }
        }
    }
    free(dw);
}

/* Compares a whole array of sums; where their terms' weights were rounded to elements by up to `part` of themselves,
 * the sums may be off by that much of their spread. */
static void expect_sums(struct run *r, int array, const double *sums, const double *spread, double part,
                        double tolerance)
{
    for (int64_t i = 0; i < r->array[array].count; i++)
        expect(r, array, i, sums[i], tolerance + part * spread[i]);
}

static void attention(struct run *r, const int64_t *numbers)
{
    const struct attention_shape shape = {.sequences = numbers[0],
                                          .length = numbers[1],
                                          .heads = (int)numbers[2],
                                          .kv_heads = (int)numbers[3],
                                          .head_size = (int)numbers[4]};
    const struct heads h = {numbers[1], numbers[2], numbers[3], numbers[4]};
    const int64_t rows = shape.sequences * h.length, out = h.heads * h.size;
    void *output = give_elements(r, rows * out, NAN);
    float *logsumexp = give_numbers(r, rows * h.heads, NAN);
    void *dqkv = give_elements(r, rows * row_of(&h), NAN);
    const void *qkv = give_elements(r, rows * row_of(&h), 2.0), *doutput = give_elements(r, rows * out, 1.0);
    const int64_t floats = (int64_t)(r->device->attention_workspace(r->element, &shape) / sizeof(float));
    float *none = allocate((size_t)floats + 1, sizeof *none);
    for (int64_t i = 0; i < floats; i++)
        none[i] = NAN;
    float *workspace = give(r, floats, none);
    r->device->attention(r->stream, r->element, output, logsumexp, qkv, &shape, workspace);
    r->device->copy(r->stream, workspace, none, (size_t)floats * sizeof *none);
    r->device->attention_gradient(r->stream, r->element, dqkv, doutput, qkv, output, logsumexp, &shape, workspace);
    take_back(r);
    r->array[5].count = 0; /* what is left in the workspace does not matter */
    free(none);

    double *hqkv = before(r, 3), *hd = before(r, 4), *ho = allocate((size_t)(rows * out) + 1, sizeof *ho);
    double *hdqkv = allocate((size_t)(rows * row_of(&h)) + 1, sizeof *hdqkv);
    double *spread = allocate((size_t)(rows * out) + 1, sizeof *spread);
    double *dspread = allocate((size_t)(rows * row_of(&h)) + 1, sizeof *dspread);
    double *weights = allocate((size_t)(h.length * h.length), sizeof *weights);
    double *stored = allocate((size_t)(rows * out) + 1, sizeof *stored);
    for (int64_t i = 0; i < rows * out; i++)
        stored[i] = (double)r->array[0].after[i];
    double *lse = allocate((size_t)h.length, sizeof *lse);
    for (int64_t sequence = 0; sequence < shape.sequences; sequence++)
        for (int64_t head = 0; head < h.heads; head++) {
            const int64_t row = sequence * h.length;
            attend(&h, ho + row * out, spread + row * out, weights, lse, hqkv + row * row_of(&h), head);
            attend_gradient(&h, hdqkv + row * row_of(&h), dspread + row * row_of(&h), hd + row * out, weights,
                            hqkv + row * row_of(&h), stored + row * out, head);
            for (int64_t i = 0; i < h.length; i++)
                expect(r, 1, (sequence * h.heads + head) * h.length + i, lse[i], 4e-6);
        }
    const double part = cuda != NULL && r->element == ELEMENT_BFLOAT16 ? half_unit(1.0) : 0.0;
    expect_sums(r, 0, ho, spread, part, 4e-6);
    expect_sums(r, 2, hdqkv, dspread, part, 2e-5);
    free(hqkv), free(hd), free(ho), free(hdqkv), free(spread), free(dspread), free(weights), free(stored), free(lse);
}

/* The reference's gradient against differences of the reference, with two query heads to a key/value head. */
static void test_reference(void)
{
    enum {
        LENGTH = 4,
        HEADS = 2,
        SIZE = 3,
        ROW = 4 * SIZE,
        OUT = HEADS * SIZE
    };
    const struct heads h = {LENGTH, HEADS, 1, SIZE};
    double qkv[LENGTH * ROW], d_out[LENGTH * OUT], dqkv[LENGTH * ROW] = {0}, out[LENGTH * OUT];
    double spread[LENGTH * OUT], dspread[LENGTH * ROW] = {0};
    double weights[LENGTH * LENGTH], lse[LENGTH], worst = 0.0;
    for (int i = 0; i < LENGTH * ROW; i++)
        qkv[i] = 2.0 * (double)number_at(0, i);
    for (int i = 0; i < LENGTH * OUT; i++)
        d_out[i] = (double)number_at(1, i);
    for (int head = 0; head < HEADS; head++) {
        attend(&h, out, spread, weights, lse, qkv, head);
        attend_gradient(&h, dqkv, dspread, d_out, weights, qkv, out, head);
    }
    for (int i = 0; i < LENGTH * ROW; i++) {
        double change = 0.0;
        for (int side = 0; side < 2; side++) {
            qkv[i] += side == 0 ? 1e-5 : -2e-5;
            for (int head = 0; head < HEADS; head++)
                attend(&h, out, spread, weights, lse, qkv, head);
            for (int o = 0; o < LENGTH * OUT; o++)
                change += (side == 0 ? 1.0 : -1.0) * out[o] * d_out[o];
        }
        qkv[i] += 1e-5;
        worst = fmax(worst, fabs(change / 2e-5 - dqkv[i]));
    }
    ok(worst < 1e-8, "the reference's gradient is that of finite differences (%g)", worst);
}

/* Number i of elements in memory. */
static void put(enum element element, void *elements, int64_t i, float x)
{
    const float rounded = rounded_to(element, x);
    const size_t size = element_bytes(element); /* the last bytes of a float32 are its upper ones */
    memcpy((char *)elements + (size_t)i * size, (const char *)&rounded + sizeof rounded - size, size);
}

static float get(enum element element, const void *elements, int64_t i)
{
    float x = 0.0f;
    const size_t size = element_bytes(element);
    memcpy((char *)&x + sizeof x - size, (const char *)elements + (size_t)i * size, size);
    return x;
}

/* Scores of some thousands that rise from key to key: the softmax is all but one-hot and must not overflow. */
static void test_large_scores(enum element element)
{
    enum {
        LENGTH = 134,
        SIZE = 4
    };
    const struct device *d = device_of(1);
    struct stream *stream = d->stream_open();
    const struct attention_shape shape = {1, LENGTH, 1, 1, SIZE};
    const size_t size = element_bytes(element), bytes = d->attention_workspace(element, &shape);
    float host[LENGTH * 3 * SIZE], out[LENGTH * SIZE]; /* room for either type */
    for (int i = 0; i < LENGTH; i++)
        for (int j = 0; j < 3 * SIZE; j++)
            put(element, host, i * 3 * SIZE + j, j < SIZE ? 20.0f : (float)i);
    void *workspace = d->allocate(bytes), *qkv = d->allocate(LENGTH * 3 * SIZE * size);
    void *output = d->allocate(LENGTH * SIZE * size);
    float *logsumexp = d->allocate(4 * LENGTH);
    d->copy(stream, qkv, host, LENGTH * 3 * SIZE * size);
    d->attention(stream, element, output, logsumexp, qkv, &shape, workspace);
    d->copy(stream, out, output, LENGTH * SIZE * size);
    d->stream_wait(stream);
    double worst = 0.0;
    for (int i = 0; i < LENGTH * SIZE; i++) /* the last key has the largest score, by 40 */
        worst = worse(worst, fabs((double)get(element, out, i) - i / SIZE));
    ok(worst < 1e-4, "%s: scores of %d neither overflow nor lose their way (%g)",
       element == ELEMENT_FLOAT32 ? "float32" : "bfloat16", 40 * (LENGTH - 1), worst);
    d->release(workspace, bytes);
    d->release(qkv, LENGTH * 3 * SIZE * size);
    d->release(output, LENGTH * SIZE * size);
    d->release(logsumexp, 4 * LENGTH);
    d->stream_close(stream);
}

int main(int argc, char **argv)
{
    const char *missing = device_choice_open(argv[argc - 1]);
    if (missing != NULL)
        return tap_skip_all(missing);
    test_reference();
    test_large_scores(ELEMENT_FLOAT32);
    test_large_scores(ELEMENT_BFLOAT16);
    TEST_SHAPES("attention and its gradient", attention, shapes);
    return tap_done();
}
