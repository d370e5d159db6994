/* Matmuls: the result is cut into one rectangle per thread, and every thread has its own computed by a library. So
 * nothing is added across threads, and there is one barrier. */
#include <cblas.h>
#include <limits.h>
#include <omp.h>
#include <stdio.h>
#ifdef HAVE_DNNL
#include <oneapi/dnnl/dnnl.h>
#endif

#include "base/error.h"
#include "kernels/cpu/cpu_math.h"
#include "kernels/cpu/cpu_matmul.h"

/* Both libraries keep to one thread within a parallel region of several. */
void cpu_multiply(const struct product *p, struct rectangle part)
{
    const int64_t m = part.rows.end - part.rows.begin, n = part.columns.end - part.columns.begin;
    if (m <= 0 || n <= 0)
        return;
    const float *a = (const float *)p->a + part.rows.begin * (p->transpose_a ? 1 : p->a_row);
    const float *b = (const float *)p->b + part.columns.begin * (p->transpose_b ? p->b_row : 1);
    float *c = (float *)p->c + part.rows.begin * p->c_row + part.columns.begin;
    const float beta = p->accumulate ? 1.0f : 0.0f;
#ifdef HAVE_DNNL
    const dnnl_status_t status = dnnl_sgemm(p->transpose_a ? 'T' : 'N', p->transpose_b ? 'T' : 'N', m, n, p->k, 1.0f, a,
                                            p->a_row, b, p->b_row, beta, c, p->c_row);
    if (status != dnnl_success)
        fatal("oneDNN matmul of %lld x %lld x %lld failed: status %d", (long long)m, (long long)n, (long long)p->k,
              (int)status);
#else
    cblas_sgemm(CblasRowMajor, p->transpose_a ? CblasTrans : CblasNoTrans, p->transpose_b ? CblasTrans : CblasNoTrans,
                (int)m, (int)n, (int)p->k, 1.0f, a, (int)p->a_row, b, (int)p->b_row, beta, c, (int)p->c_row);
#endif
}

/* Each thread packs the rows of op(a) and the columns of op(b) that it needs, so the cut that makes a rectangle's two
 * sides shortest in sum is taken. */
struct rectangle cpu_own_rectangle(int64_t m, int64_t n)
{
    enum {
        ROWS = 8,
        COLUMNS = 48
    }; /* multiples of the libraries' register tiles */
    const int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int best = 1; /* threads along the columns */
    for (int along = 1; along <= threads; along++)
        if (threads % along == 0 && m * along / threads + n / along < m * best / threads + n / best)
            best = along;
    return (struct rectangle){cpu_part(m, ROWS, thread / best, threads / best),
                              cpu_part(n, COLUMNS, thread % best, best), thread % best == 0};
}

static void check_sizes(int64_t rows, int64_t in, int64_t pitch)
{
    if (rows > INT_MAX || in > INT_MAX || pitch > INT_MAX)
        fatal("a matmul of %lld x %lld x %lld is beyond the libraries' 32-bit sizes", (long long)rows, (long long)in,
              (long long)pitch);
}

/* Zeros where there is nothing to sum over, which the libraries do not agree on. */
static void clear(const struct product *p, struct rectangle part)
{
    for (int64_t row = part.rows.begin; row < part.rows.end; row++)
        for (int64_t i = part.columns.begin; i < part.columns.end; i++)
            ((float *)p->c)[row * p->c_row + i] = 0.0f;
}

static void multiply_or_clear(const struct product *p, struct rectangle part)
{
    if (p->k > 0)
        cpu_multiply(p, part);
    else if (!p->accumulate)
        clear(p, part);
}

/* Bias and activation of a rectangle that the same thread has just written. */
static void finish(float *y, float *activated, const float *bias, struct rectangle part, int64_t pitch)
{
    for (int64_t row = part.rows.begin; row < part.rows.end; row++)
        for (int64_t i = part.columns.begin; i < part.columns.end; i += LANES) {
            const int64_t left = part.columns.end - i, at = row * pitch + i;
            vfloat sum = vload_next(y + at, left, 0.0f);
            if (bias != NULL) {
                sum += vload_next(bias + i, left, 0.0f);
                vstore_next(y + at, left, sum);
            }
            if (activated != NULL)
                vstore_next(activated + at, left, vgelu(sum));
        }
}

/* By the processor's instructions for bfloat16, or widened. */
static bool by_instructions;

static void multiply_bf16(struct stream *stream, const struct product *p)
{
    if (by_instructions && p->k > 0)
        cpu_multiply_bf16(stream, p);
    else
        cpu_multiply_widened(stream, p);
}

void cpu_linear(struct stream *stream, enum element element, void *y, void *activated, const void *x, const void *w,
                const float *bias, int64_t rows, int64_t in, int64_t out, int64_t pitch)
{
    check_sizes(rows, in, pitch);
    const struct product p = {.transpose_b = true,
                              .m = rows,
                              .n = out,
                              .k = in,
                              .a = x,
                              .a_row = in,
                              .b = w,
                              .b_row = in,
                              .c = y,
                              .c_row = pitch,
                              .result = element,
                              .bias = bias,
                              .activated = activated};
    if (element == ELEMENT_BFLOAT16) {
        multiply_bf16(stream, &p);
        return;
    }
#pragma omp parallel
    {
        const struct rectangle part = cpu_own_rectangle(rows, out);
        multiply_or_clear(&p, part);
        if (bias != NULL || activated != NULL)
            finish(y, activated, bias, part, pitch);
    }
}

void cpu_linear_input_gradient(struct stream *stream, enum element element, void *dx, const void *dy, const void *w,
                               int64_t rows, int64_t in, int64_t out, int64_t pitch)
{
    check_sizes(rows, in, pitch);
    const struct product p = {.m = rows,
                              .n = in,
                              .k = out,
                              .a = dy,
                              .a_row = pitch,
                              .b = w,
                              .b_row = in,
                              .c = dx,
                              .c_row = in,
                              .result = element};
    if (element == ELEMENT_BFLOAT16) {
        multiply_bf16(stream, &p);
        return;
    }
#pragma omp parallel
    multiply_or_clear(&p, cpu_own_rectangle(rows, in));
}

/* Columns of dy that are copied, to be multiplied from there. */
#define PANEL 96

/* panel [rows, PANEL] = columns of dy, the last ones perhaps missing; dbias (+)= their sums, unless NULL. */
static void copy_panel(float *panel, float *dbias, const float *dy, int64_t rows, int64_t pitch, int64_t columns,
                       bool accumulate)
{
    enum {
        VECTORS = PANEL / LANES
    };
    vfloat sums[VECTORS] = {{0}};
    for (int64_t row = 0; row < rows; row++)
#pragma GCC unroll 24
        for (int i = 0; i < VECTORS; i++) {
            const int64_t left = columns - i * LANES;
            const vfloat x = left > 0 ? vload_next(dy + row * pitch + i * LANES, left, 0.0f) : vset(0.0f);
            vstore(panel + row * PANEL + i * LANES, x);
            sums[i] += x;
        }
    for (int64_t i = 0; dbias != NULL && i * LANES < columns; i++) {
        const int64_t left = columns - i * LANES;
        float *to = dbias + i * LANES;
        vstore_next(to, left, accumulate ? vload_next(to, left, 0.0f) + sums[i] : sums[i]);
    }
}

/* The libraries are slow to gather columns of a matrix whose rows are far apart in memory: a panel of columns is copied
 * first, which reads dy once for both results. */
static void weight_gradient(struct stream *stream, float *dw, float *dbias, const float *dy, const float *x,
                            int64_t rows, int64_t in, int64_t out, int64_t pitch, bool accumulate)
{
    float *panels = cpu_scratch(stream, omp_get_max_threads() * rows * PANEL);
#pragma omp parallel
    {
        const struct rectangle part = cpu_own_rectangle(out, in);
        float *panel = panels + omp_get_thread_num() * rows * PANEL;
        for (int64_t at = part.rows.begin; at < part.rows.end; at += PANEL) {
            const int64_t columns = part.rows.end - at < PANEL ? part.rows.end - at : PANEL;
            copy_panel(panel, part.first && dbias != NULL ? dbias + at : NULL, dy + at, rows, pitch, columns,
                       accumulate);
            const struct product p = {.transpose_a = true,
                                      .accumulate = accumulate,
                                      .m = columns,
                                      .n = in,
                                      .k = rows,
                                      .a = panel,
                                      .a_row = PANEL,
                                      .b = x,
                                      .b_row = in,
                                      .c = dw + at * in,
                                      .c_row = in};
            multiply_or_clear(&p, (struct rectangle){{0, columns}, part.columns, part.first});
        }
    }
}

void cpu_linear_weight_gradient(struct stream *stream, enum element element, float *dw, float *dbias, const void *dy,
                                const void *x, int64_t rows, int64_t in, int64_t out, int64_t pitch, bool accumulate)
{
    check_sizes(rows, in, pitch);
    if (element == ELEMENT_FLOAT32) {
        weight_gradient(stream, dw, dbias, dy, x, rows, in, out, pitch, accumulate);
        return;
    }
    const struct product p = {.transpose_a = true,
                              .accumulate = accumulate,
                              .m = out,
                              .n = in,
                              .k = rows,
                              .a = dy,
                              .a_row = pitch,
                              .b = x,
                              .b_row = in,
                              .c = dw,
                              .c_row = in,
                              .result = ELEMENT_FLOAT32,
                              .sums = dbias};
    multiply_bf16(stream, &p);
}

#pragma weak openblas_set_num_threads
void openblas_set_num_threads(int threads);

void cpu_matmul_open(void)
{
    static bool open;
    if (open)
        return;
    open = true;
    if (openblas_set_num_threads != NULL)
        openblas_set_num_threads(1);
    by_instructions = cpu_bf16_instructions() != NULL;
}

bool cpu_matmul_choose(bool instructions)
{
    cpu_matmul_open();
    by_instructions = instructions && cpu_bf16_possible();
    return by_instructions == instructions;
}

const char *device_cpu_bf16(void)
{
    static char text[64];
    cpu_matmul_open();
    if (by_instructions)
        snprintf(text, sizeof text, "oneDNN, %s", cpu_bf16_instructions());
    else
        snprintf(text, sizeof text, "widened to float32: %s",
                 cpu_bf16_possible() ? "this processor has no bf16 instructions" : "built without oneDNN");
    return text;
}

#ifndef OPENBLAS_VERSION /* a text between blanks */
#define OPENBLAS_VERSION " CBLAS "
#endif
#ifdef HAVE_DNNL
#define TEXT_OF(number) #number
#define VERSION_TEXT(major, minor, patch) TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)
#define DNNL_TEXT "with oneDNN " VERSION_TEXT(DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, DNNL_VERSION_PATCH)
#else
#define DNNL_TEXT "without oneDNN"
#endif

const char *device_cpu_libraries(void)
{
    static const char text[] = OPENBLAS_VERSION DNNL_TEXT;
    return text + 1;
}
