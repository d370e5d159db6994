/* Products of bfloat16 by oneDNN's matmul primitives: every thread has primitives of its own, one for each shape of its
 * rectangles, and runs them alone. They are made when a shape appears and kept, so that a step makes none. */
#include <omp.h>
#include <stdlib.h>
#ifdef HAVE_DNNL
#include <oneapi/dnnl/dnnl.h>
#endif

#include "base/error.h"
#include "base/memory.h"
#include "kernels/cpu/cpu_math.h"
#include "kernels/cpu/cpu_matmul.h"

#ifdef HAVE_DNNL

/* A model has about twenty-five shapes per thread; evaluation and generation add some. */
#define KEPT 128

/* What a primitive depends on. a is [m, k] in rows. */
struct shape {
    int64_t m, n, k, a_row, b_row, c_row;
    bool transpose_b, accumulate, bias;
    enum element result;
};

enum argument {
    A,
    B,
    C,
    BIAS,
    SCRATCHPAD,
    ARGUMENTS
};

/* A primitive and its arguments, which are pointed to other addresses before each run. */
struct multiplier {
    struct shape shape;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[ARGUMENTS]; /* NULL: not needed */
};

struct worker {
    dnnl_stream_t stream;
    struct multiplier kept[KEPT];
    int count, oldest;
    void *scratchpad; /* for any of them */
    size_t scratchpad_bytes;
};

/* One for each thread, made by the thread that calls the kernels. */
static dnnl_engine_t engine;
static struct worker **workers;
static int worker_count;

static void check(dnnl_status_t status, const char *what)
{
    if (status != dnnl_success)
        fatal("oneDNN cannot %s: status %d", what, (int)status);
}

/* Descriptions of matrices are structures up to version 2 and handles from version 3 on. */
#if DNNL_VERSION_MAJOR >= 3
#define DESCRIPTION(description) (description)
#else
#define DESCRIPTION(description) (&(description))
#endif

/* A matrix whose element [i, j] is at i * row + j * column. */
static dnnl_memory_desc_t describe(int64_t rows, int64_t columns, enum element element, int64_t row, int64_t column)
{
    const dnnl_dims_t sizes = {rows, columns}, strides = {row, column};
    const dnnl_data_type_t type = element == ELEMENT_BFLOAT16 ? dnnl_bf16 : dnnl_f32;
    dnnl_memory_desc_t description;
#if DNNL_VERSION_MAJOR >= 3
    check(dnnl_memory_desc_create_with_strides(&description, 2, sizes, type, strides), "describe a matrix");
#else
    check(dnnl_memory_desc_init_by_strides(&description, 2, sizes, type, strides), "describe a matrix");
#endif
    return description;
}

/* The scratchpad is ours, and c (+)= the product. */
static dnnl_primitive_attr_t attributes(bool accumulate)
{
    dnnl_primitive_attr_t attributes;
    check(dnnl_primitive_attr_create(&attributes), "set attributes");
    check(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user), "set attributes");
    if (!accumulate)
        return attributes;
    dnnl_post_ops_t sum;
    check(dnnl_post_ops_create(&sum), "set attributes");
#if DNNL_VERSION_MAJOR >= 3
    check(dnnl_post_ops_append_sum(sum, 1.0f, 0, dnnl_data_type_undef), "set attributes");
#else
    check(dnnl_post_ops_append_sum(sum, 1.0f), "set attributes");
#endif
    check(dnnl_primitive_attr_set_post_ops(attributes, sum), "set attributes");
    check(dnnl_post_ops_destroy(sum), "set attributes");
    return attributes;
}

/* The library's plan for the shape; descriptions as by enum argument. */
static dnnl_primitive_desc_t plan(const struct shape *s, dnnl_memory_desc_t *d)
{
    dnnl_primitive_attr_t own = attributes(s->accumulate);
    dnnl_primitive_desc_t plan;
#if DNNL_VERSION_MAJOR >= 3
    const dnnl_status_t status =
        dnnl_matmul_primitive_desc_create(&plan, engine, d[A], d[B], s->bias ? d[BIAS] : NULL, d[C], own);
#else
    dnnl_matmul_desc_t matmul;
    check(dnnl_matmul_desc_init(&matmul, &d[A], &d[B], s->bias ? &d[BIAS] : NULL, &d[C]), "describe a matmul");
    const dnnl_status_t status = dnnl_primitive_desc_create(&plan, &matmul, own, engine, NULL);
#endif
    if (status != dnnl_success)
        fatal("oneDNN has no bfloat16 matmul of %lld x %lld x %lld: status %d", (long long)s->m, (long long)s->n,
              (long long)s->k, (int)status);
    check(dnnl_primitive_attr_destroy(own), "set attributes");
    return plan;
}

static void need_scratchpad(struct worker *worker, size_t bytes)
{
    if (bytes <= worker->scratchpad_bytes)
        return;
    free(worker->scratchpad);
    worker->scratchpad_bytes = (bytes + 4095) / 4096 * 4096;
    worker->scratchpad = aligned_alloc(4096, worker->scratchpad_bytes);
    if (worker->scratchpad == NULL)
        fatal("no memory for %zu bytes of a matmul's sums", bytes);
}

static void make(struct worker *worker, struct multiplier *multiplier, const struct shape *s)
{
    dnnl_memory_desc_t d[ARGUMENTS] = {
        [A] = describe(s->m, s->k, ELEMENT_BFLOAT16, s->a_row, 1),
        [B] = describe(s->k, s->n, ELEMENT_BFLOAT16, s->transpose_b ? 1 : s->b_row, s->transpose_b ? s->b_row : 1),
        [C] = describe(s->m, s->n, s->result, s->c_row, 1),
        [BIAS] = describe(1, s->n, ELEMENT_FLOAT32, s->n, 1)};
    dnnl_primitive_desc_t own = plan(s, d);
    *multiplier = (struct multiplier){.shape = *s};
    check(dnnl_primitive_create(&multiplier->primitive, own), "make a matmul");
    for (int i = A; i <= (s->bias ? BIAS : C); i++)
        check(dnnl_memory_create(&multiplier->memory[i], DESCRIPTION(d[i]), engine, DNNL_MEMORY_NONE), "name a matrix");
    const size_t bytes = dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(own, dnnl_query_scratchpad_md, 0));
    if (bytes > 0)
        check(dnnl_memory_create(&multiplier->memory[SCRATCHPAD],
                                 dnnl_primitive_desc_query_md(own, dnnl_query_scratchpad_md, 0), engine,
                                 DNNL_MEMORY_NONE),
              "name a scratchpad");
    need_scratchpad(worker, bytes);
    check(dnnl_primitive_desc_destroy(own), "forget a plan");
#if DNNL_VERSION_MAJOR >= 3
    for (int i = A; i <= BIAS; i++)
        check(dnnl_memory_desc_destroy(d[i]), "forget a description");
#endif
}

static void forget(struct multiplier *multiplier)
{
    for (int i = 0; i < ARGUMENTS; i++)
        if (multiplier->memory[i] != NULL)
            check(dnnl_memory_destroy(multiplier->memory[i]), "forget a matrix");
    check(dnnl_primitive_destroy(multiplier->primitive), "forget a matmul");
}

static bool same_shape(const struct shape *a, const struct shape *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->a_row == b->a_row && a->b_row == b->b_row &&
           a->c_row == b->c_row && a->transpose_b == b->transpose_b && a->accumulate == b->accumulate &&
           a->bias == b->bias && a->result == b->result;
}

/* The primitive for a shape; a new one takes the oldest one's place when all are taken. */
static struct multiplier *multiplier_for(struct worker *worker, const struct shape *shape)
{
    for (int i = 0; i < worker->count; i++)
        if (same_shape(&worker->kept[i].shape, shape))
            return &worker->kept[i];
    struct multiplier *multiplier = &worker->kept[worker->oldest];
    if (worker->count == KEPT)
        forget(multiplier);
    else
        worker->count++;
    worker->oldest = (worker->oldest + 1) % KEPT;
    make(worker, multiplier, shape);
    return multiplier;
}

/* oneDNN promises to write to none but c and the scratchpad. */
static void *address(const void *constant)
{
    union {
        const void *constant;
        void *plain;
    } same = {constant};
    return same.plain;
}

static void run(struct worker *worker, const struct shape *shape, const void *a, const void *b, const float *bias,
                void *c)
{
    static const int names[] = {[A] = DNNL_ARG_SRC,
                                [B] = DNNL_ARG_WEIGHTS,
                                [C] = DNNL_ARG_DST,
                                [BIAS] = DNNL_ARG_BIAS,
                                [SCRATCHPAD] = DNNL_ARG_SCRATCHPAD};
    const struct multiplier *multiplier = multiplier_for(worker, shape);
    void *const at[] = {
        [A] = address(a), [B] = address(b), [C] = c, [BIAS] = address(bias), [SCRATCHPAD] = worker->scratchpad};
    dnnl_exec_arg_t arguments[ARGUMENTS];
    int count = 0;
    for (int i = 0; i < ARGUMENTS; i++)
        if (multiplier->memory[i] != NULL) {
            check(dnnl_memory_set_data_handle(multiplier->memory[i], at[i]), "point to a matrix");
            arguments[count++] = (dnnl_exec_arg_t){names[i], multiplier->memory[i]};
        }
    check(dnnl_primitive_execute(multiplier->primitive, worker->stream, count, arguments), "multiply");
    check(dnnl_stream_wait(worker->stream), "multiply");
}

/* Makes workers for all threads. */
static void need_workers(int count)
{
    if (count <= worker_count)
        return;
    if (engine == NULL)
        check(dnnl_engine_create(&engine, dnnl_cpu, 0), "use the processor");
    struct worker **more = allocate((size_t)count, sizeof(struct worker *));
    for (int i = 0; i < count; i++) {
        more[i] = i < worker_count ? workers[i] : allocate(1, sizeof(struct worker));
        if (i >= worker_count)
            check(dnnl_stream_create(&more[i]->stream, engine, dnnl_stream_default_flags), "make a stream");
    }
    free(workers);
    workers = more;
    worker_count = count;
}

static void activate(const struct product *p, struct rectangle part)
{
    for (int64_t row = part.rows.begin; row < part.rows.end; row++)
        for (int64_t i = part.columns.begin; i < part.columns.end; i += LANES) {
            const int64_t left = part.columns.end - i, at = row * p->c_row + i;
            const vfloat y = vload_next_as(ELEMENT_BFLOAT16, p->c, at, left, 0.0f);
            vstore_next_as(ELEMENT_BFLOAT16, p->activated, at, left, vgelu(y));
        }
}

static void multiply_rectangle(struct worker *worker, const struct product *p, struct rectangle part)
{
    const int64_t row = part.rows.begin, column = part.columns.begin;
    const struct shape shape = {.m = part.rows.end - row,
                                .n = part.columns.end - column,
                                .k = p->k,
                                .a_row = p->a_row,
                                .b_row = p->b_row,
                                .c_row = p->c_row,
                                .transpose_b = p->transpose_b,
                                .bias = p->bias != NULL,
                                .result = p->result};
    if (shape.m == 0 || shape.n == 0)
        return;
    run(worker, &shape, (const uint16_t *)p->a + row * p->a_row,
        (const uint16_t *)p->b + column * (p->transpose_b ? p->b_row : 1), p->bias != NULL ? p->bias + column : NULL,
        (uint16_t *)p->c + row * p->c_row + column);
    if (p->activated != NULL)
        activate(p, part);
}

/* Columns of a that are transposed at a time: a multiple of vectors. */
#define PANEL 384

/* panel [columns, k] = columns of a, transposed; sums [columns] = theirs, rows in their order. A line of memory of the
 * panel is filled at once. */
static void transpose_panel(uint16_t *panel, float *sums, const struct product *p, int64_t first, int64_t columns)
{
    const int64_t k = p->k;
    for (int64_t i = 0; i < columns; i++)
        sums[i] = 0.0f;
    for (int64_t line = 0; line < k; line += 2 * LANES)
        for (int64_t column = 0; column < columns; column += LANES)
            for (int64_t row = line; row < k && row < line + 2 * LANES; row += LANES) {
                const int64_t left = columns - column;
                vfloat square[LANES], sum = vload_next(sums + column, left, 0.0f);
#pragma GCC unroll 16
                for (int64_t i = 0; i < LANES; i++) {
                    square[i] = row + i < k ? vload_next_as(ELEMENT_BFLOAT16, p->a,
                                                            (row + i) * p->a_row + first + column, left, 0.0f)
                                            : vset(0.0f);
                    sum += square[i];
                }
                vstore_next(sums + column, left, sum);
                vtranspose(square);
                for (int64_t i = 0; i < LANES && i < left; i++)
                    vstore_next_as(ELEMENT_BFLOAT16, panel, (column + i) * k + row, k - row, square[i]);
            }
}

/* The library wants the numbers that are added together to follow one another: columns of a are transposed first, which
 * reads a once for both results. */
static void multiply_transposed(struct worker *worker, const struct product *p, struct rectangle part, uint16_t *panel)
{
    float sums[PANEL];
    for (int64_t at = part.rows.begin; at < part.rows.end; at += PANEL) {
        const int64_t columns = part.rows.end - at < PANEL ? part.rows.end - at : PANEL;
        transpose_panel(panel, sums, p, at, columns);
        const struct shape shape = {.m = columns,
                                    .n = part.columns.end - part.columns.begin,
                                    .k = p->k,
                                    .a_row = p->k,
                                    .b_row = p->b_row,
                                    .c_row = p->c_row,
                                    .accumulate = p->accumulate,
                                    .result = p->result};
        if (shape.n > 0)
            run(worker, &shape, panel, (const uint16_t *)p->b + part.columns.begin, NULL,
                (float *)p->c + at * p->c_row + part.columns.begin);
        for (int64_t i = 0; i < columns && part.first && p->sums != NULL; i++)
            p->sums[at + i] = p->accumulate ? p->sums[at + i] + sums[i] : sums[i];
    }
}

void cpu_multiply_bf16(struct stream *stream, const struct product *p)
{
    const int64_t panel_floats = p->transpose_a ? PANEL * ((p->k + 1) / 2) : 0;
    float *panels = cpu_scratch(stream, omp_get_max_threads() * panel_floats);
    need_workers(omp_get_max_threads());
#pragma omp parallel
    {
        const int thread = omp_get_thread_num();
        const struct rectangle part = cpu_own_rectangle(p->m, p->n);
        omp_set_num_threads(1); /* within the region: the library plans for this thread alone */
        if (p->transpose_a)
            multiply_transposed(workers[thread], p, part, (uint16_t *)(panels + thread * panel_floats));
        else
            multiply_rectangle(workers[thread], p, part);
    }
}

bool cpu_bf16_possible(void)
{
    return true;
}

const char *cpu_bf16_instructions(void)
{
    const int isa = (int)dnnl_get_effective_cpu_isa(), amx = dnnl_cpu_isa_avx512_core_amx,
              avx512 = dnnl_cpu_isa_avx512_core_bf16;
    if ((isa & amx) == amx)
        return "avx512_core_amx";
    return (isa & avx512) == avx512 ? "avx512_core_bf16" : NULL;
}

#else

void cpu_multiply_bf16(struct stream *stream, const struct product *p)
{
    (void)stream;
    fatal("built without oneDNN: no bfloat16 matmul of %lld x %lld x %lld", (long long)p->m, (long long)p->n,
          (long long)p->k);
}

bool cpu_bf16_possible(void)
{
    return false;
}

const char *cpu_bf16_instructions(void)
{
    return NULL;
}

#endif
