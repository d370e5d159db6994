/* Matmuls: the result is cut into one rectangle per thread, and every thread has its own computed by a library. So
 * nothing is added across threads, and there is one barrier. */
#include <cblas.h>
#include <limits.h>
#include <omp.h>
#include <stdio.h>
#ifdef HAVE_DNNL
#include <dnnl.h>
#endif

#include "base/error.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_math.h"

/* c [m, n] (+)= op(a) op(b) where op(a) is [m, k] and op(b) [k, n]; the leading dimensions (elements between rows) are
 * those of the matrices as they are stored. */
struct product {
    bool transpose_a, transpose_b, accumulate;
    int64_t m, n, k;
    const float *a, *b;
    float *c;
    int64_t a_row, b_row, c_row;
};

/* A rectangle of c. */
struct rectangle {
    struct share rows, columns;
    bool first; /* of those with the same rows */
};

/* The elements of one rectangle, by the calling thread alone: both libraries keep to one thread within a parallel
 * region of several. */
static void multiply(const struct product *p, struct rectangle part)
{
    const int64_t m = part.rows.end - part.rows.begin, n = part.columns.end - part.columns.begin;
    if (m <= 0 || n <= 0)
        return;
    const float *a = p->a + part.rows.begin * (p->transpose_a ? 1 : p->a_row);
    const float *b = p->b + part.columns.begin * (p->transpose_b ? p->b_row : 1);
    float *c = p->c + part.rows.begin * p->c_row + part.columns.begin;
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

/* The calling thread's rectangle. Each thread packs the rows of op(a) and the columns of op(b) that it needs, so the
 * cut that makes a rectangle's two sides shortest in sum is taken. */
static struct rectangle own_rectangle(int64_t m, int64_t n)
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

static void check_sizes(int64_t rows, int64_t in, int64_t out)
{
    if (rows > INT_MAX || in > INT_MAX || out > INT_MAX)
        fatal("a matmul of %lld x %lld x %lld is beyond the libraries' 32-bit sizes", (long long)rows, (long long)in,
              (long long)out);
}

/* Zeros where there is nothing to sum over, which the libraries do not agree on. */
static void clear(const struct product *p, struct rectangle part)
{
    for (int64_t row = part.rows.begin; row < part.rows.end; row++)
        for (int64_t i = part.columns.begin; i < part.columns.end; i++)
            p->c[row * p->c_row + i] = 0.0f;
}

static void multiply_or_clear(const struct product *p, struct rectangle part)
{
    if (p->k > 0)
        multiply(p, part);
    else if (!p->accumulate)
        clear(p, part);
}

/* Bias and activation of a rectangle that the same thread has just written. */
static void finish(float *y, float *activated, const float *bias, struct rectangle part, int64_t out)
{
    for (int64_t row = part.rows.begin; row < part.rows.end; row++)
        for (int64_t i = part.columns.begin; i < part.columns.end; i += LANES) {
            const int64_t left = part.columns.end - i, at = row * out + i;
            vfloat sum = vload_next(y + at, left, 0.0f);
            if (bias != NULL) {
                sum += vload_next(bias + i, left, 0.0f);
                vstore_next(y + at, left, sum);
            }
            if (activated != NULL)
                vstore_next(activated + at, left, vgelu(sum));
        }
}

void cpu_linear(struct stream *stream, float *y, float *activated, const float *x, const float *w, const float *bias,
                int64_t rows, int64_t in, int64_t out)
{
    (void)stream;
    check_sizes(rows, in, out);
    const struct product p = {.transpose_b = true,
                              .m = rows,
                              .n = out,
                              .k = in,
                              .a = x,
                              .a_row = in,
                              .b = w,
                              .b_row = in,
                              .c = y,
                              .c_row = out};
#pragma omp parallel
    {
        const struct rectangle part = own_rectangle(rows, out);
        multiply_or_clear(&p, part);
        if (bias != NULL || activated != NULL)
            finish(y, activated, bias, part, out);
    }
}

void cpu_linear_input_gradient(struct stream *stream, float *dx, const float *dy, const float *w, int64_t rows,
                               int64_t in, int64_t out)
{
    (void)stream;
    check_sizes(rows, in, out);
    const struct product p = {
        .m = rows, .n = in, .k = out, .a = dy, .a_row = out, .b = w, .b_row = in, .c = dx, .c_row = in};
#pragma omp parallel
    multiply_or_clear(&p, own_rectangle(rows, in));
}

/* Columns of dy that are copied, to be multiplied from there. */
#define PANEL 96

/* panel [rows, PANEL] = columns of dy, the last ones perhaps missing; dbias (+)= their sums, unless NULL. */
static void copy_panel(float *panel, float *dbias, const float *dy, int64_t rows, int64_t out, int64_t columns,
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
            const vfloat x = left > 0 ? vload_next(dy + row * out + i * LANES, left, 0.0f) : vset(0.0f);
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
void cpu_linear_weight_gradient(struct stream *stream, float *dw, float *dbias, const float *dy, const float *x,
                                int64_t rows, int64_t in, int64_t out, bool accumulate)
{
    check_sizes(rows, in, out);
    float *panels = cpu_scratch(stream, omp_get_max_threads() * rows * PANEL);
#pragma omp parallel
    {
        const struct rectangle part = own_rectangle(out, in);
        float *panel = panels + omp_get_thread_num() * rows * PANEL;
        for (int64_t at = part.rows.begin; at < part.rows.end; at += PANEL) {
            const int64_t columns = part.rows.end - at < PANEL ? part.rows.end - at : PANEL;
            copy_panel(panel, part.first && dbias != NULL ? dbias + at : NULL, dy + at, rows, out, columns, accumulate);
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

#pragma weak openblas_set_num_threads
void openblas_set_num_threads(int threads);

void cpu_matmul_open(void)
{
    if (openblas_set_num_threads != NULL)
        openblas_set_num_threads(1);
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
