/* What one device does: matrix products from small to large, memory, optimizer. */
#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "plan/cost.h"
#include "run/bench.h"

/* Several times what caches hold: more on a device of its own than on a rank's share of a CPU. */
#define COPY_BYTES ((size_t)64 << 20)
#define DEVICE_COPY_BYTES ((size_t)512 << 20)
#define OPTIMIZER_ELEMENTS (INT64_C(1) << 22)
#define DEVICE_OPTIMIZER_ELEMENTS (INT64_C(1) << 24)
#define FEWEST_ROWS 8
#define TILE 64

/* The three products of one matrix in training. */
struct products {
    const struct bench *bench;
    void *x, *w, *y, *dx;
    float *gradient;
    int64_t rows, in, out;
};

static void run_products(void *of)
{
    const struct products *p = of;
    const struct device *device = p->bench->context.device;
    struct stream *stream = p->bench->context.stream;
    device->linear(stream, p->bench->element, p->y, NULL, p->x, p->w, NULL, p->rows, p->in, p->out, p->out);
    device->linear_input_gradient(stream, p->bench->element, p->dx, p->y, p->w, p->rows, p->in, p->out, p->out);
    device->linear_weight_gradient(stream, p->bench->element, p->gradient, NULL, p->y, p->x, p->rows, p->in, p->out,
                                   p->out, false);
}

/* Gflop/s of products of so many rows, of random numbers: devices multiply zeros faster. */
static double products_speed(const struct bench *bench, int64_t rows, int64_t in, int64_t out)
{
    const enum element element = bench->element;
    const size_t each = element_bytes(element), gradient = (size_t)(in * out) * sizeof(float);
    size_t x = (size_t)(rows * in) * each, w = (size_t)(in * out) * each, y = (size_t)(rows * out) * each;
    struct products p = {.bench = bench,
                         .x = bench_random(bench, element, x),
                         .w = bench_random(bench, element, w),
                         .y = bench_random(bench, element, y),
                         .dx = bench_random(bench, element, x),
                         .gradient = bench_random(bench, ELEMENT_FLOAT32, gradient),
                         .rows = rows,
                         .in = in,
                         .out = out};
    double seconds = bench_time(bench, run_products, &p);
    bench_release(bench, p.x, x);
    bench_release(bench, p.w, w);
    bench_release(bench, p.y, y);
    bench_release(bench, p.dx, x);
    bench_release(bench, p.gradient, gradient);
    return 6e-9 * (double)rows * (double)in * (double)out / seconds;
}

/* The model's products are [rows, in] by [out, in], in the middle of its layers: `in` is the width that crosses the
 * boundary there, `out` what gives the average product its operations, in whole tiles as models have them. */
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
    int64_t out = TILE * (int64_t)ceil(operations / (2.0 * (double)microbatch * (double)in) / TILE);
    double fastest = 0;
    for (int64_t rows = FEWEST_ROWS; rows < 8 * microbatch; rows *= 2) {
        bench_add(&m->matmul_gflop, 2e-9 * (double)rows * (double)in * (double)out);
        bench_add(&m->matmul_efficiency, products_speed(bench, rows, in, out));
        fastest = fmax(fastest, m->matmul_efficiency.items[m->matmul_efficiency.count - 1]);
    }
    double *const peaks[] = {[PRECISION_FP32] = &m->peak_gflops,
                             [PRECISION_TF32] = &m->peak_tf32_gflops,
                             [PRECISION_BF16] = &m->peak_bf16_gflops};
    *peaks[bench->settings->run.precision] = bench_round(fastest);
    for (int i = 0; i < m->matmul_efficiency.count; i++)
        m->matmul_efficiency.items[i] = bench_round(m->matmul_efficiency.items[i] / fastest);
}

struct copying {
    const struct bench *bench;
    float *from, *to;
    size_t bytes;
};

static void run_copy(void *of)
{
    const struct copying *copying = of;
    copying->bench->context.device->copy(copying->bench->context.stream, copying->to, copying->from, copying->bytes);
}

static void bench_memory(struct bench *bench)
{
    const size_t bytes = bench->context.device->host_memory ? COPY_BYTES : DEVICE_COPY_BYTES;
    struct copying copying = {bench, bench_random(bench, ELEMENT_FLOAT32, bytes),
                              bench_random(bench, ELEMENT_FLOAT32, bytes), bytes};
    bench->figures->machine.memory_gbs = bench_round(2e-9 * (double)bytes / bench_time(bench, run_copy, &copying));
    bench_release(bench, copying.from, bytes);
    bench_release(bench, copying.to, bytes);
}

struct optimizing {
    const struct bench *bench;
    float *arenas[4]; /* weights, first and second moments, gradients */
    void *computed;   /* what computations read of the weights */
    int64_t count;    /* elements of each */
};

static void run_optimizer(void *of)
{
    const struct optimizing *o = of;
    const struct optimizer_range range = {.count = o->count, .element = o->bench->element, .decay = true};
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
    const bool host = bench->context.device->host_memory;
    struct optimizing o = {.bench = bench, .count = host ? OPTIMIZER_ELEMENTS : DEVICE_OPTIMIZER_ELEMENTS};
    const size_t bytes = (size_t)o.count * sizeof(float);
    if (bench->element != ELEMENT_FLOAT32)
        o.computed = bench_random(bench, bench->element, bytes);
    for (int i = 0; i < 4; i++)
        o.arenas[i] = bench_random(bench, ELEMENT_FLOAT32, bytes);
    bench->context.device->zero(bench->context.stream, o.arenas[2], bytes); /* second moments are not negative */
    bench->figures->machine.optimizer_ns = bench_round(1e9 * bench_time(bench, run_optimizer, &o) / (double)o.count);
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
