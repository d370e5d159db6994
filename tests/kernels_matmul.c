/* The device table's memory, events and matmuls. */
#include <stdio.h>

#include "kernels/cpu/cpu.h"
#include "tests/kernel_run.h"

/* rows, in, out, pitch; the last four are more than one block of what is widened, in each of its directions */
static const int64_t shapes[][4] = {
    {0, 5, 7, 7},        {1, 1, 1, 1},       {5, 3, 48, 48},      {23, 101, 3, 5},       {100, 48, 257, 264},
    {5, 257, 101, 128},  {1, 257, 48, 64},   {100, 1, 101, 101},  {23, 48, 1, 8},        {300, 129, 1100, 1100},
    {7, 0, 5, 8},        {7, 5, 0, 8},       {100, 48, 257, 257}, {9, 64, 333, 333 + 3}, {520, 9, 390, 390},
    {11, 530, 390, 392}, {3, 390, 520, 520}, {520, 3, 530, 576}};

static double gelu(double x)
{
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

/* The sum in float32 of products of numbers between -1 and 1. */
static double tolerance(int64_t terms)
{
    return 1e-6 + 2e-6 * sqrt((double)terms);
}

static void linear(struct run *r, const int64_t *shape, bool bias, bool activate)
{
    const int64_t rows = shape[0], in = shape[1], out = shape[2], pitch = activate ? out : shape[3];
    void *y = give_elements(r, rows * pitch, NAN), *activated = give_elements(r, rows * out, NAN);
    const void *x = give_elements(r, rows * in, 1.0), *w = give_elements(r, out * in, 1.0);
    const float *b = give_numbers(r, out, 1.0);
    r->device->linear(r->stream, r->element, y, activate ? activated : NULL, x, w, bias ? b : NULL, rows, in, out,
                      pitch);
    if (activate) { /* what the separate kernel gives has the same bits */
        void *again = give_elements(r, rows * out, NAN);
        r->device->gelu(r->stream, r->element, again, y, rows * out);
    }
    take_back(r);
    double *hx = before(r, 2), *hw = before(r, 3), *hb = before(r, 4);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t o = 0; o < out; o++) {
            double sum = bias ? hb[o] : 0.0;
            for (int64_t k = 0; k < in; k++)
                sum += hx[i * in + k] * hw[o * in + k];
            const bool rounded = cuda != NULL && r->element == ELEMENT_BFLOAT16; /* the bias */
            expect(r, 0, i * pitch + o, sum, tolerance(in) + (rounded && bias ? half_unit(hb[o]) : 0.0));
            if (activate) { /* of y as it was stored */
                expect(r, 1, i * out + o, gelu((double)r->array[0].after[i * out + o]), tolerance(in));
                expect_equal(r, 5, i * out + o, r->array[1].after[i * out + o]);
            }
        }
    expect_gaps(r, 0, out, pitch);
    free(hx), free(hw), free(hb);
}

static void linear_alone(struct run *r, const int64_t *shape)
{
    linear(r, shape, false, false);
}

static void linear_bias(struct run *r, const int64_t *shape)
{
    linear(r, shape, true, false);
}

static void linear_gelu(struct run *r, const int64_t *shape)
{
    linear(r, shape, true, true);
}

static void input_gradient(struct run *r, const int64_t *shape)
{
    const int64_t rows = shape[0], in = shape[1], out = shape[2], pitch = shape[3];
    void *dx = give_elements(r, rows * in, NAN);
    const void *dy = give_rows(r, rows, out, pitch, 1.0), *w = give_elements(r, out * in, 1.0);
    r->device->linear_input_gradient(r->stream, r->element, dx, dy, w, rows, in, out, pitch);
    take_back(r);
    const int64_t whole = out - out % (16 / (int64_t)element_bytes(r->element));
    const bool rounded = cuda != NULL && r->element == ELEMENT_BFLOAT16 && out < pitch; /* both parts */
    double *hdy = before(r, 1), *hw = before(r, 2);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < in; k++) {
            double sum = 0.0, last = 0.0;
            for (int64_t o = 0; o < out; o++) {
                const double term = hdy[i * pitch + o] * hw[o * in + k];
                sum += term;
                last += o >= whole ? term : 0.0;
            }
            expect(r, 0, i * in + k, sum, tolerance(out) + (rounded ? half_unit(last) + half_unit(sum - last) : 0.0));
        }
    free(hdy), free(hw);
}

static void weight_gradient(struct run *r, const int64_t *shape, bool bias, bool accumulate)
{
    const int64_t rows = shape[0], in = shape[1], out = shape[2], pitch = shape[3];
    float *dw = give_numbers(r, out * in, accumulate ? 1.0 : NAN), *db = give_numbers(r, out, accumulate ? 1.0 : NAN);
    const void *dy = give_rows(r, rows, out, pitch, 1.0), *x = give_elements(r, rows * in, 1.0);
    r->device->linear_weight_gradient(r->stream, r->element, dw, bias ? db : NULL, dy, x, rows, in, out, pitch,
                                      accumulate);
    take_back(r);
    double *hdw = before(r, 0), *hdb = before(r, 1), *hdy = before(r, 2), *hx = before(r, 3);
    for (int64_t o = 0; o < out; o++) {
        for (int64_t k = 0; k < in; k++) {
            double sum = accumulate ? hdw[o * in + k] : 0.0;
            for (int64_t i = 0; i < rows; i++)
                sum += hdy[i * pitch + o] * hx[i * in + k];
            expect(r, 0, o * in + k, sum, tolerance(rows));
        }
        double sum = accumulate ? hdb[o] : 0.0;
        for (int64_t i = 0; i < rows; i++)
            sum += hdy[i * pitch + o];
        if (bias)
            expect(r, 1, o, sum, tolerance(rows));
    }
    free(hdw), free(hdb), free(hdy), free(hx);
}

static void weight_gradient_first(struct run *r, const int64_t *shape)
{
    weight_gradient(r, shape, true, false);
}

static void weight_gradient_later(struct run *r, const int64_t *shape)
{
    weight_gradient(r, shape, true, true);
}

static void weight_gradient_alone(struct run *r, const int64_t *shape)
{
    weight_gradient(r, shape, false, false);
}

static void test_memory(void)
{
    const struct device *device = device_of(2);
    struct stream *stream = device->stream_open();
    static const size_t sizes[] = {0, 1, 63, 4097, 300001, 5000000};
    bool aligned = true, copied = true, zeroed = true;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const size_t bytes = sizes[i];
        unsigned char *a = device->allocate(bytes), *b = device->allocate(bytes), *host = allocate(bytes + 1, 1);
        aligned = aligned && a != NULL && (uintptr_t)a % 64 == 0;
        for (size_t j = 0; j < bytes; j++)
            host[j] = (unsigned char)(j * 7 % 251);
        device->copy(stream, a, host, bytes);
        device->copy(stream, b, a, bytes);
        memset(host, 0, bytes);
        device->copy(stream, host, b, bytes);
        device->stream_wait(stream);
        for (size_t j = 0; j < bytes; j++)
            copied = copied && host[j] == j * 7 % 251;
        device->zero(stream, b, bytes);
        device->copy(stream, host, b, bytes);
        device->stream_wait(stream);
        for (size_t j = 0; j < bytes; j++)
            zeroed = zeroed && host[j] == 0;
        device->release(a, bytes);
        device->release(b, bytes);
        free(host);
    }
    device->release(NULL, 100);
    ok(aligned, "memory of any size is aligned to 64 bytes");
    ok(copied, "bytes are copied to, on and from the device");
    ok(zeroed, "memory is zeroed");
    ok(device->allocate(SIZE_MAX - 100) == NULL, "memory that no address reaches is NULL");
#ifndef __SANITIZE_ADDRESS__ /* which ends the program */
    ok(device->allocate((size_t)1 << 56) == NULL, "so is more than there is");
#endif
    device->stream_close(stream);
}

static void test_events(void)
{
    const struct device *device = device_of(1);
    struct stream *stream = device->stream_open(), *other = device->stream_open();
    struct event *first = device->event_open(), *second = device->event_open();
    float *memory = device->allocate(1 << 24);
    device->event_record(stream, first);
    device->zero(stream, memory, 1 << 24);
    device->event_record(stream, second);
    device->event_wait(other, second);
    device->stream_wait(other);
    ok(device->event_done(second), "an event that was waited for is done");
    const double seconds = device->event_seconds(second) - device->event_seconds(first);
    ok(seconds > 0.0 && seconds < 60.0, "events tell the time between them (%g s)", seconds);
    device->release(memory, 1 << 24);
    device->event_close(first);
    device->event_close(second);
    device->stream_close(stream);
    device->stream_close(other);
}

static const struct {
    const char *name;
    test_fn *test;
} products[] = {{"linear", linear_alone},
                {"linear with bias", linear_bias},
                {"linear with bias and GELU", linear_gelu},
                {"linear's input gradient", input_gradient},
                {"linear's weight gradient", weight_gradient_first},
                {"linear's weight gradient, accumulated", weight_gradient_later},
                {"linear's weight gradient without bias", weight_gradient_alone}};

enum {
    PRODUCTS = sizeof products / sizeof products[0],
    SHAPES = sizeof shapes / sizeof shapes[0]
};

static void test_products(enum element element, const char *how)
{
    for (int i = 0; i < PRODUCTS; i++)
        for (int threads = fewest_threads(); threads <= most_threads(); threads++) {
            char name[128];
            snprintf(name, sizeof name, "%s%s", products[i].name, how);
            test_shapes_with(name, products[i].test, shapes[0], SHAPES, 4, element, threads);
        }
}

/* More shapes than are kept, in both directions. */
static void test_many_shapes(void)
{
    enum {
        MANY = 150
    };
    static int64_t many[2 * MANY][4];
    for (int64_t i = 0; i < 2 * MANY; i++) {
        many[i][0] = i < MANY ? i + 1 : 2 * MANY - i;
        many[i][1] = 3;
        many[i][2] = many[i][3] = 5;
    }
    test_shapes_with("many shapes", linear_bias, many[0], 2 * MANY, 4, ELEMENT_BFLOAT16, 2);
}

int main(int argc, char **argv)
{
    const char *missing = device_choice_open(argv[argc - 1]);
    if (missing != NULL)
        return tap_skip_all(missing);
    bits_of_alignment = cuda != NULL;
    test_memory();
    test_events();
    test_products(ELEMENT_FLOAT32, "");
    if (cuda != NULL) {
        test_products(ELEMENT_BFLOAT16, "");
        test_many_shapes();
        return tap_done();
    }
    ok(device_cpu_bf16()[0] != '\0', "it says how it multiplies bfloat16: %s", device_cpu_bf16());
    ok(cpu_matmul_choose(false), "bfloat16 can be widened on any processor");
    test_products(ELEMENT_BFLOAT16, ", widened");
    if (cpu_matmul_choose(true)) {
        test_products(ELEMENT_BFLOAT16, ", by oneDNN");
        test_many_shapes();
    } else
        tap_note("built without oneDNN: its kernels for bfloat16 are not tested");
    ok(strstr(device_cpu_libraries(), "oneDNN") != NULL, "the libraries are named: %s", device_cpu_libraries());
    return tap_done();
}
