/* What one device does: matrix products from small to large, memory, optimizer. */
#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "plan/cost.h"
#include "run/bench.h"

#define COPY_BYTES ((size_t)64 << 20)
#define OPTIMIZER_ELEMENTS (INT64_C(1) << 22)
#define FEWEST_ROWS 8

/* The three products of one matrix in training. */
struct products {
    const struct bench *bench;
    void *x, *w, *y;
    float *gradient;
    int64_t rows, in, out;
};

static void run_products(void *of)
{
    const struct products *p = of;
    const struct device *device = p->bench->context.device;
    struct stream *stream = p->bench->context.stream;
    device->linear(stream, p->bench->element, p->y, NULL, p->x, p->w, NULL, p->rows, p->in, p->out);
    device->linear_input_gradient(stream, p->bench->element, p->x, p->y, p->w, p->rows, p->in, p->out);
    device->linear_weight_gradient(stream, p->bench->element, p->gradient, NULL, p->y, p->x, p->rows, p->in, p->out,
                                   false);
}

/* Gflop/s of products of so many rows; they are zeros, which take as long as any numbers and never overflow. */
static double products_speed(const struct bench *bench, int64_t rows, int64_t in, int64_t out)
{
    const enum element element = bench->element;
    const size_t each = element_bytes(element), gradient = (size_t)(in * out) * sizeof(float);
    size_t x = (size_t)(rows * in) * each, w = (size_t)(in * out) * each, y = (size_t)(rows * out) * each;
    struct products p = {.bench = bench,
                         .x = bench_random(bench, element, x),
                         .w = bench_random(bench, element, w),
                         .y = bench_random(bench, element, y),
                         .gradient = bench_random(bench, ELEMENT_FLOAT32, gradient),
                         .rows = rows,
                         .in = in,
                         .out = out};
    bench->context.device->zero(bench->context.stream, p.x, x);
    double seconds = bench_time(bench, run_products, &p);
    bench_release(bench, p.x, x);
    bench_release(bench, p.w, w);
    bench_release(bench, p.y, y);
    bench_release(bench, p.gradient, gradient);
    return 6e-9 * (double)rows * (double)in * (double)out / seconds;
}

/* The model's products are [rows, in] by [out, in], in the middle of its layers: `in` is the width that crosses the
 * boundary there, `out` what gives the average product its operations. */
static void bench_products(struct bench *bench)
{
    struct machine_settings *m = &bench->figures->machine;
    const struct circumstances *circumstances = &bench->context.circumstances;
    int middle = bench->model.layer_count / 2;
    const struct declaration *before = &bench->model.declarations[middle - 1];
    int64_t microbatch = circumstances->sequences * bench->model.sequence, in = 1;
    for (int i = 0; i < before->after_count; i++)
        in = before->after[i].width > in ? before->after[i].width : in;
    double operations = cost_product(&bench->model, middle, circumstances);
    int64_t out = (int64_t)ceil(operations / (2.0 * (double)microbatch * (double)in));
    double fastest = 0;
    for (int64_t rows = FEWEST_ROWS; rows < 8 * microbatch; rows *= 2) {
        bench_add(&m->matmul_gflop, 2e-9 * (double)rows * (double)in * (double)out);
        bench_add(&m->matmul_efficiency, products_speed(bench, rows, in, out));
        fastest = fmax(fastest, m->matmul_efficiency.items[m->matmul_efficiency.count - 1]);
    }
    *(bench->element == ELEMENT_BFLOAT16 ? &m->peak_bf16_gflops : &m->peak_gflops) = bench_round(fastest);
    for (int i = 0; i < m->matmul_efficiency.count; i++)
        m->matmul_efficiency.items[i] = bench_round(m->matmul_efficiency.items[i] / fastest);
}

struct copying {
    const struct bench *bench;
    float *from, *to;
};

static void run_copy(void *of)
{
    const struct copying *copying = of;
    copying->bench->context.device->copy(copying->bench->context.stream, copying->to, copying->from, COPY_BYTES);
}

static void bench_memory(struct bench *bench)
{
    struct copying copying = {bench, bench_random(bench, ELEMENT_FLOAT32, COPY_BYTES),
                              bench_random(bench, ELEMENT_FLOAT32, COPY_BYTES)};
    bench->figures->machine.memory_gbs = bench_round(2e-9 * (double)COPY_BYTES / bench_time(bench, run_copy, &copying));
    bench_release(bench, copying.from, COPY_BYTES);
    bench_release(bench, copying.to, COPY_BYTES);
}

struct optimizing {
    const struct bench *bench;
    float *arenas[4]; /* weights, first and second moments, gradients */
    void *computed;   /* what computations read of the weights */
};

static void run_optimizer(void *of)
{
    const struct optimizing *o = of;
    const struct optimizer_range range = {.count = OPTIMIZER_ELEMENTS, .element = o->bench->element, .decay = true};
    const struct adamw step = {.learning_rate = 1e-6,
                               .beta1 = 0.9,
                               .beta2 = 0.95,
                               .epsilon = 1e-8,
                               .weight_decay = 0.1,
                               .correction1 = 1,
                               .correction2 = 1,
                               .scale = 1};
    o->bench->context.device->adamw(o->bench->context.stream, o->arenas[0], o->arenas[1], o->arenas[2], o->arenas[3],
                                    o->computed, &range, 1, &step);
}

static void bench_optimizer(struct bench *bench)
{
    const size_t bytes = (size_t)OPTIMIZER_ELEMENTS * sizeof(float);
    struct optimizing o = {.bench = bench};
    if (bench->element != ELEMENT_FLOAT32)
        o.computed = bench_random(bench, bench->element, bytes);
    for (int i = 0; i < 4; i++)
        o.arenas[i] = bench_random(bench, ELEMENT_FLOAT32, bytes);
    bench->context.device->zero(bench->context.stream, o.arenas[2], bytes); /* second moments are not negative */
    bench->figures->machine.optimizer_ns =
        bench_round(1e9 * bench_time(bench, run_optimizer, &o) / (double)OPTIMIZER_ELEMENTS);
    for (int i = 0; i < 4; i++)
        bench_release(bench, o.arenas[i], bytes);
    if (o.computed)
        bench_release(bench, o.computed, bytes);
}

void bench_device(struct bench *bench)
{
    bench_products(bench);
    bench_memory(bench);
    bench_optimizer(bench);
}
