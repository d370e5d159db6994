/* Attention, the vocabulary and the optimizer. */
#include <stdlib.h>

#include "base/error.h"
#include "base/memory.h"
#include "tests/speed.h"

enum {
    BLOCK_TENSORS = 16
};

/* Attention */

static struct attention_shape attention_of(const struct bench *bench)
{
    const struct size *size = &bench->size;
    return (struct attention_shape){.sequences = size->sequences,
                                    .length = size->length,
                                    .heads = (int)size->heads,
                                    .kv_heads = (int)size->heads,
                                    .head_size = (int)(size->hidden / size->heads)};
}

static void run_attention(const struct bench *bench, const struct operation *o, void *const *a)
{
    const struct attention_shape shape = attention_of(bench);
    (void)o;
    bench->device->attention(bench->stream, bench->element, a[0], a[1], a[2], &shape, a[3]);
}

static void run_attention_gradient(const struct bench *bench, const struct operation *o, void *const *a)
{
    const struct attention_shape shape = attention_of(bench);
    (void)o;
    bench->device->attention_gradient(bench->stream, bench->element, a[4], a[5], a[2], a[0], a[1], &shape, a[3]);
}

/* The arithmetic of two products of length x (length + 1) / 2 in a head, and of five in the gradient, however many a
 * device makes. */
void speed_attention(struct bench *bench)
{
    const struct size *size = &bench->size;
    const struct attention_shape shape = attention_of(bench);
    const int64_t rows = bench->rows, n = rows * size->hidden;
    const double each = (double)element_bytes(bench->element), statistics = 4.0 * (double)(rows * size->heads);
    const double product = (double)n * (double)(size->length + 1);
    const int64_t workspace = (int64_t)bench->device->attention_workspace(bench->element, &shape) / 4 + 1;
    struct operation o = {
        .name = "attention",
        .run = run_attention,
        .rows = size->sequences,
        .in = size->length,
        .out = size->hidden,
        .arrays = {{ELEMENTS, n}, {FLOATS, rows * size->heads}, {ELEMENTS, 3 * n}, {FLOATS, workspace}},
        .bytes = 4 * (double)n * each + statistics,
        .operations = 2 * product};
    speed_measure(bench, &o);
    o.name = "attention_gradient";
    o.prepare = run_attention;
    o.run = run_attention_gradient;
    o.arrays[4].content = o.arrays[5].content = ELEMENTS;
    o.arrays[4].count = 3 * n;
    o.arrays[5].count = n;
    o.bytes = 8 * (double)n * each + statistics;
    o.operations = 5 * product;
    speed_measure(bench, &o);
}

/* The vocabulary */

static void run_embedding(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->embedding(bench->stream, bench->element, a[0], a[1], a[2], a[3], o->rows, o->in, bench->size.length,
                             0, o->out);
}

static void run_embedding_gradient(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->embedding_gradient(bench->stream, bench->element, a[0], a[1], a[2], o->rows, o->in, 0, o->out,
                                      o->accumulate);
}

static void run_position_gradient(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->position_gradient(bench->stream, bench->element, a[0], a[1], o->rows, o->in, bench->size.length, 0,
                                     o->accumulate);
}

static void run_statistics(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->cross_entropy_statistics(bench->stream, bench->element, a[0], a[1], a[2], o->rows, 0, o->in, o->in);
}

static void run_cross_entropy(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->cross_entropy(bench->stream, bench->element, a[3], a[4], a[1], a[2], a[0], o->rows, 0, o->in, o->in,
                                 1, 1.0 / (double)o->rows);
}

void speed_vocabulary(struct bench *bench)
{
    const int64_t rows = bench->rows, width = bench->size.hidden, words = bench->size.vocabulary, n = rows * width;
    const int64_t length = bench->size.length;
    const double each = (double)element_bytes(bench->element), bytes = (double)n * each, row = 4.0 * (double)width;
    const double zipf = speed_distinct(bench, TOKENS), even = speed_distinct(bench, EVEN_TOKENS);
    const double logits = (double)(rows * words) * each;
    const struct operation list[] = {
        {.name = "embedding",
         .run = run_embedding,
         .in = width,
         .out = words,
         .arrays = {{ELEMENTS, n}, {TOKENS, rows}, {ELEMENTS, words * width}, {ELEMENTS, length * width}},
         .bytes = bytes + (zipf + (double)length) * (double)width * each},
        {.name = "embedding_gradient",
         .run = run_embedding_gradient,
         .in = width,
         .out = words,
         .arrays = {{FLOATS, words * width}, {ELEMENTS, n}, {TOKENS, rows}},
         .bytes = bytes + (double)words * row},
        {.name = "embedding_gradient",
         .run = run_embedding_gradient,
         .in = width,
         .out = words,
         .accumulate = true,
         .arrays = {{FLOATS, words * width}, {ELEMENTS, n}, {TOKENS, rows}},
         .bytes = bytes + 2 * zipf * row},
        {.name = "embedding_gradient",
         .use = "even tokens",
         .run = run_embedding_gradient,
         .in = width,
         .out = words,
         .accumulate = true,
         .arrays = {{FLOATS, words * width}, {ELEMENTS, n}, {EVEN_TOKENS, rows}},
         .bytes = bytes + 2 * even * row},
        {.name = "position_gradient",
         .run = run_position_gradient,
         .in = width,
         .arrays = {{FLOATS, length * width}, {ELEMENTS, n}},
         .bytes = bytes + (double)length * row},
        {.name = "cross_entropy_statistics",
         .run = run_statistics,
         .in = words,
         .arrays = {{FLOATS, 3 * rows}, {ELEMENTS, rows * words}, {TOKENS, rows}},
         .bytes = logits},
        {.name = "cross_entropy",
         .run = run_cross_entropy,
         .prepare = run_statistics,
         .in = words,
         .arrays =
             {{FLOATS, 3 * rows}, {ELEMENTS, rows * words}, {TOKENS, rows}, {FLOATS, rows}, {ELEMENTS, rows * words}},
         .bytes = 2 * logits},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct operation o = list[i];
        o.rows = rows;
        speed_measure(bench, &o);
    }
}

/* The optimizer: all parameters of the model, as one range or as one of each tensor. */

static void run_squares(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->squares(bench->stream, ELEMENT_FLOAT32, bench->blocks, a[0], o->rows);
}

static void run_adamw(const struct bench *bench, const struct operation *o, void *const *a)
{
    const struct adamw step = {.learning_rate = 1e-4,
                               .beta1 = 0.9,
                               .beta2 = 0.95,
                               .epsilon = 1e-8,
                               .weight_decay = 0.1,
                               .correction1 = 0.5,
                               .correction2 = 0.5,
                               .scale = 1};
    const struct optimizer_range all = {.count = o->rows, .element = bench->element, .decay = true};
    bench->device->adamw(bench->stream, a[0], a[1], a[2], a[3], a[4], o->in > 0 ? bench->ranges : &all,
                         o->in > 0 ? o->in : 1, &step);
}

/* Second moments are never negative. */
static void clear_moments(const struct bench *bench, const struct operation *o, void *const *a)
{
    bench->device->zero(bench->stream, a[2], (size_t)o->rows * 4);
    run_adamw(bench, o, a);
}

static void add_range(struct bench *bench, int64_t count)
{
    if (bench->range_count == RANGES)
        fatal("more than %d tensors", RANGES);
    bench->ranges[bench->range_count++] =
        (struct optimizer_range){.count = count,
                                 .weight = bench->parameters,
                                 .moment = bench->parameters,
                                 .gradient = bench->parameters,
                                 .computed = bench->parameters * (int64_t)element_bytes(bench->element),
                                 .element = bench->element,
                                 .decay = count > bench->size.ffn};
    bench->parameters += count;
}

/* The tensors of GPT-2. */
static void list_parameters(struct bench *bench)
{
    const int64_t h = bench->size.hidden, f = bench->size.ffn;
    const int64_t block[BLOCK_TENSORS] = {h, h, h * h, h * h, h * h, h, h, h, h * h, h, h, h, f * h, f, h * f, h};
    add_range(bench, bench->size.vocabulary * h);
    add_range(bench, bench->size.length * h);
    for (int64_t layer = 0; layer < bench->size.layers; layer++)
        for (int i = 0; i < BLOCK_TENSORS; i++)
            add_range(bench, block[i]);
    add_range(bench, h);
    add_range(bench, h);
}

void speed_optimizer(struct bench *bench)
{
    list_parameters(bench);
    const int64_t n = bench->parameters;
    const size_t bytes = (size_t)(n / SQUARES_BLOCK + 1) * sizeof *bench->blocks;
    bench->blocks = bench->device->host_allocate(bytes);
    if (bench->blocks == NULL)
        fatal("not enough memory");
    struct operation o = {.name = "squares",
                          .use = "and their way to the host",
                          .run = run_squares,
                          .rows = n,
                          .arrays = {{FLOATS, n}},
                          .bytes = 4.0 * (double)n};
    speed_measure(bench, &o);
    o = (struct operation){.name = "adamw",
                           .use = "one range",
                           .run = run_adamw,
                           .prepare = clear_moments,
                           .rows = n,
                           .arrays = {{FLOATS, n}, {FLOATS, n}, {FLOATS, n}, {FLOATS, n}, {ELEMENTS, n}},
                           .bytes = (double)n * (28.0 + (double)element_bytes(bench->element))};
    speed_measure(bench, &o);
    o.use = "ranges of tensors";
    o.in = bench->range_count;
    speed_measure(bench, &o);
    bench->device->host_release(bench->blocks, bytes);
}
