/* Matrix products, and what moves memory row by row. */
#include "tests/speed.h"

/* Matrix products */

void speed_linear(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->linear(bench->stream, bench->element, a[0], a[4], a[1], a[2], a[3], o->rows, o->in, o->out,
                          o->pitch);
}

static void run_input_gradient(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->linear_input_gradient(bench->stream, bench->element, a[0], a[1], a[2], o->rows, o->in, o->out,
                                         o->pitch);
}

static void run_weight_gradient(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->linear_weight_gradient(bench->stream, bench->element, a[0], a[3], a[1], a[2], o->rows, o->in, o->out,
                                          o->pitch, o->accumulate);
}

/* y [rows, out] = x [rows, in] w^T, and its gradients. */
static void measure_products(struct bench *bench, const char *use, int64_t in, int64_t out, int64_t pitch, bool bias,
                             bool activated)
{
    const int64_t rows = bench->rows, x = rows * in, w = in * out, y = rows * pitch;
    const double each = (double)element_bytes(bench->element), operations = 2.0 * (double)rows * (double)w;
    const double moved = (double)(x + w + rows * out) * each;
    struct operation o = {.name = "linear",
                          .use = use,
                          .run = speed_linear,
                          .rows = rows,
                          .in = in,
                          .out = out,
                          .pitch = pitch,
                          .arrays = {{ELEMENTS, y}, {ELEMENTS, x}, {ELEMENTS, w}, {bias ? FLOATS : NOTHING, out}},
                          .bytes = moved,
                          .operations = operations};
    speed_measure(bench, &o);
    if (activated) {
        o.name = "linear with gelu";
        o.arrays[4].content = ELEMENTS;
        o.arrays[4].count = y;
        o.bytes += (double)y * each;
        speed_measure(bench, &o);
    }
    o = (struct operation){.name = "linear_input_gradient",
                           .use = use,
                           .run = run_input_gradient,
                           .rows = rows,
                           .in = in,
                           .out = out,
                           .pitch = pitch,
                           .arrays = {{ELEMENTS, x}, {ELEMENTS, y}, {ELEMENTS, w}},
                           .bytes = moved,
                           .operations = operations};
    speed_measure(bench, &o);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        o = (struct operation){.name = "linear_weight_gradient",
                               .use = use,
                               .run = run_weight_gradient,
                               .rows = rows,
                               .in = in,
                               .out = out,
                               .pitch = pitch,
                               .accumulate = accumulate,
                               .arrays = {{FLOATS, w}, {ELEMENTS, y}, {ELEMENTS, x}, {bias ? FLOATS : NOTHING, out}},
                               .bytes = (double)(x + rows * out) * each + (double)w * 4 * (1 + accumulate),
                               .operations = operations};
        speed_measure(bench, &o);
    }
}

void speed_products(struct bench *bench)
{
    const struct size *size = &bench->size;
    const int64_t h = size->hidden;
    measure_products(bench, "qkv", h, 3 * h, 3 * h, true, false);
    measure_products(bench, "out", h, h, h, true, false);
    measure_products(bench, "up", h, size->ffn, size->ffn, true, true);
    measure_products(bench, "down", size->ffn, h, h, true, false);
    measure_products(bench, "head", h, size->vocabulary, size->vocabulary, false, false);
    if (size->odd_vocabulary > 0)
        measure_products(bench, "odd head", h, size->odd_vocabulary, (size->odd_vocabulary + 63) / 64 * 64, false,
                         false);
}

/* What moves memory */

void speed_gelu(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->gelu(bench->stream, bench->element, a[0], a[1], o->rows * o->in);
}

static void run_gelu_gradient(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->gelu_gradient(bench->stream, bench->element, a[0], a[1], a[2], o->rows * o->in);
}

static void run_column_sums(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->column_sums(bench->stream, bench->element, a[0], a[1], o->rows, o->in, o->in, o->accumulate);
}

static void run_add_residual(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->add_residual(bench->stream, bench->element, a[0], a[1], a[2], a[3], o->rows, o->in);
}

static void run_norm(const struct bench *bench, const struct operation *o, void *const *a)
{
    const float *weights = a[3];
    bench->device->norm(bench->stream, bench->element, a[0], a[1], (float *)a[1] + o->rows, a[2], weights,
                        weights + o->in, o->rows, o->in, 1e-5);
}

static void run_add_residual_norm(const struct bench *bench, const struct operation *o, void *const *a)
{
    const float *weights = a[3];
    bench->device->add_residual_norm(bench->stream, bench->element, a[4], a[0], a[1], (float *)a[1] + o->rows, a[2],
                                     a[5], weights + 2 * o->in, weights, weights + o->in, o->rows, o->in, 1e-5);
}

/* Its arrays begin as norm's do, which so tells the statistics; the output is dx then. */
static void run_norm_gradient(const struct bench *bench, const struct operation *o, void *const *a)
{
    float *gradients = a[4];
    bench->device->norm_gradient(bench->stream, bench->element, a[0], gradients, gradients + o->in, a[5], a[6], a[2],
                                 a[1], (float *)a[1] + o->rows, a[3], o->rows, o->in, o->accumulate);
}

static void run_convert(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->convert(bench->stream, bench->element, a[0], a[1], o->rows * o->in);
}

static void run_zero(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->zero(bench->stream, a[0], (size_t)(o->rows * o->in) * 4);
}

void speed_copy(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->copy(bench->stream, a[0], a[1], (size_t)o->rows * 4);
}

/* Operations over rows x width. */
void speed_rows(struct bench *bench)
{
    const int64_t rows = bench->rows, width = bench->size.hidden, ffn = bench->size.ffn, n = rows * width;
    const double each = (double)element_bytes(bench->element), bytes = (double)n * each;
    const double wide_bytes = (double)(rows * ffn) * each;
    const struct operation norm_gradient = {.name = "norm_gradient",
                                            .run = run_norm_gradient,
                                            .prepare = run_norm,
                                            .in = width,
                                            .arrays = {{ELEMENTS, n},
                                                       {FLOATS, 2 * rows},
                                                       {ELEMENTS, n},
                                                       {FLOATS, 2 * width},
                                                       {FLOATS, 2 * width},
                                                       {ELEMENTS, n},
                                                       {ELEMENTS, n}},
                                            .bytes = 4 * bytes};
    struct operation norm_gradient_adding = norm_gradient;
    norm_gradient_adding.accumulate = true;
    const struct operation list[] = {
        {.name = "gelu",
         .run = speed_gelu,
         .in = ffn,
         .arrays = {{ELEMENTS, rows * ffn}, {ELEMENTS, rows * ffn}},
         .bytes = 2 * wide_bytes},
        {.name = "gelu_gradient",
         .run = run_gelu_gradient,
         .in = ffn,
         .arrays = {{ELEMENTS, rows * ffn}, {ELEMENTS, rows * ffn}, {ELEMENTS, rows * ffn}},
         .bytes = 3 * wide_bytes},
        {.name = "column_sums",
         .run = run_column_sums,
         .in = ffn,
         .arrays = {{FLOATS, ffn}, {ELEMENTS, rows * ffn}},
         .bytes = wide_bytes},
        {.name = "column_sums",
         .run = run_column_sums,
         .in = width,
         .accumulate = true,
         .arrays = {{FLOATS, width}, {ELEMENTS, n}},
         .bytes = bytes},
        {.name = "add_residual",
         .run = run_add_residual,
         .in = width,
         .arrays = {{ELEMENTS, n}, {ELEMENTS, n}, {ELEMENTS, n}, {FLOATS, width}},
         .bytes = 3 * bytes},
        {.name = "norm",
         .run = run_norm,
         .in = width,
         .arrays = {{ELEMENTS, n}, {FLOATS, 2 * rows}, {ELEMENTS, n}, {FLOATS, 2 * width}},
         .bytes = 2 * bytes},
        {.name = "add_residual_norm",
         .run = run_add_residual_norm,
         .in = width,
         .arrays =
             {{ELEMENTS, n}, {FLOATS, 2 * rows}, {ELEMENTS, n}, {FLOATS, 3 * width}, {ELEMENTS, n}, {ELEMENTS, n}},
         .bytes = 4 * bytes},
        norm_gradient,
        norm_gradient_adding,
        {.name = "convert",
         .run = run_convert,
         .in = ffn,
         .arrays = {{ELEMENTS, rows * ffn}, {FLOATS, rows * ffn}},
         .bytes = (double)(rows * ffn) * 4 + wide_bytes},
        {.name = "zero",
         .run = run_zero,
         .in = ffn,
         .arrays = {{FLOATS, rows * ffn}},
         .bytes = (double)(rows * ffn) * 4},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct operation o = list[i];
        o.rows = rows;
        speed_measure(bench, &o);
    }
}
