/* Products of bfloat16 for processors without instructions for them: blocks of the matrices are widened to float32 and
 * multiplied by the float32 library, and the result is rounded when it is whole. The cut into blocks follows from the
 * shape alone. */
#include <omp.h>

#include "kernels/cpu/cpu_math.h"
#include "kernels/cpu/cpu_matmul.h"

/* An element that is widened meets M_BLOCK or N_BLOCK others, against which its widening costs little, and the blocks
 * of one thread stay in its cache. Multiples of the libraries' register tiles. */
enum {
    M_BLOCK = 512,
    N_BLOCK = 384,
    K_BLOCK = 512,
    M_TILE = 8,
    N_TILE = 48,
    GAP = LANES /* elements between the rows of a block, so that rows do not compete for the same lines of a cache */
};

/* One thread's memory. */
struct blocks {
    float *a, *b, *c; /* a as it is stored; op(b); of c only where it is rounded */
    float *sums;      /* of the rows of op(a) */
};

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t length(struct share share)
{
    return share.end - share.begin;
}

/* Elements between the rows of a block. */
static int64_t block_row(struct share columns)
{
    return (length(columns) + LANES - 1) / LANES * LANES + GAP;
}

static int64_t matrix_elements(int64_t rows, int64_t columns)
{
    return rows * block_row((struct share){0, columns});
}

/* to = rows and columns of `from`; unless it is NULL, sums [columns] += theirs, rows in their order. */
static void widen(float *to, float *sums, const void *from, int64_t from_row, struct share rows, struct share columns)
{
    const int64_t to_row = block_row(columns);
    for (int64_t row = rows.begin; row < rows.end; row++, to += to_row)
        for (int64_t i = columns.begin; i < columns.end; i += LANES) {
            const vfloat x = vload_next_as(ELEMENT_BFLOAT16, from, row * from_row + i, columns.end - i, 0.0f);
            vstore(to + i - columns.begin, x);
            if (sums != NULL)
                vstore(sums + i - columns.begin, vload(sums + i - columns.begin) + x);
        }
}

/* to [columns, rows] = rows and columns of `from`, transposed: the library is slow to do that itself. */
static void widen_transposed(float *to, const void *from, int64_t from_row, struct share rows, struct share columns)
{
    const int64_t to_row = block_row(rows);
    for (int64_t row = rows.begin; row < rows.end; row += LANES)
        for (int64_t column = columns.begin; column < columns.end; column += LANES) {
            const int64_t left = columns.end - column;
            vfloat square[LANES];
#pragma GCC unroll 16
            for (int64_t i = 0; i < LANES; i++)
                square[i] = row + i < rows.end
                                ? vload_next_as(ELEMENT_BFLOAT16, from, (row + i) * from_row + column, left, 0.0f)
                                : vset(0.0f);
            vtranspose(square);
            float *place = to + (column - columns.begin) * to_row + row - rows.begin;
            for (int64_t i = 0; i < LANES && i < left; i++)
                vstore(place + i * to_row, square[i]);
        }
}

static void widen_b(float *to, const struct product *p, struct share k, struct share n)
{
    if (p->transpose_b)
        widen_transposed(to, p->b, p->b_row, n, k);
    else
        widen(to, NULL, p->b, p->b_row, k, n);
}

static void clear(float *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = 0.0f;
}

/* A finished block of c: bias, rounding, activation of what was rounded. */
static void finish(const struct product *p, const float *block, struct share m, struct share n)
{
    const int64_t block_of_c = block_row(n);
    for (int64_t row = m.begin; row < m.end; row++, block += block_of_c)
        for (int64_t i = n.begin; i < n.end; i += LANES) {
            const int64_t left = n.end - i, at = row * p->c_row + i;
            vfloat sum = vload(block + i - n.begin);
            if (p->bias != NULL)
                sum += vload_next(p->bias + i, left, 0.0f);
            vstore_next_as(ELEMENT_BFLOAT16, p->c, at, left, sum);
            if (p->activated != NULL)
                vstore_next_as(ELEMENT_BFLOAT16, p->activated, at, left,
                               vgelu(vload_next_as(ELEMENT_BFLOAT16, p->c, at, left, 0.0f)));
        }
}

static void add_sums(const struct product *p, const float *sums, struct share m)
{
    for (int64_t i = m.begin; i < m.end; i++)
        p->sums[i] = p->accumulate ? p->sums[i] + sums[i - m.begin] : sums[i - m.begin];
}

/* The block of c with these rows and columns. b's block stays from call to call where `b_kept` is set. */
static void multiply_block(const struct product *p, const struct blocks *blocks, struct share m, struct share n,
                           bool first, bool b_kept)
{
    const bool rounded = p->result == ELEMENT_BFLOAT16;
    float *sums = first && p->sums != NULL ? blocks->sums : NULL;
    struct product block = {.transpose_a = p->transpose_a,
                            .accumulate = p->accumulate,
                            .m = length(m),
                            .n = length(n),
                            .a = blocks->a,
                            .b = blocks->b,
                            .c = rounded ? blocks->c : (float *)p->c + m.begin * p->c_row + n.begin,
                            .c_row = rounded ? block_row(n) : p->c_row};
    const struct rectangle whole = {{0, block.m}, {0, block.n}, true};
    if (sums != NULL)
        clear(sums, block_row(m));
    const int parts = (int)((p->k + K_BLOCK - 1) / K_BLOCK);
    for (int part = 0; part < parts; part++) {
        const struct share k = cpu_part(p->k, LANES, part, parts);
        const struct share a_columns = p->transpose_a ? m : k;
        widen(blocks->a, sums, p->a, p->a_row, p->transpose_a ? k : m, a_columns);
        if (!b_kept || parts > 1)
            widen_b(blocks->b, p, k, n);
        block.k = length(k);
        block.a_row = block_row(a_columns);
        block.b_row = block_row(n);
        cpu_multiply(&block, whole);
        block.accumulate = true;
    }
    if (parts == 0 && !p->accumulate)
        for (int64_t row = 0; row < block.m; row++)
            clear((float *)block.c + row * block.c_row, block.n);
    if (rounded)
        finish(p, blocks->c, m, n);
    if (sums != NULL)
        add_sums(p, sums, m);
}

static void multiply_rectangle(const struct product *p, const struct blocks *blocks, struct rectangle part)
{
    const int64_t rows = length(part.rows), columns = length(part.columns);
    const int m_parts = (int)((rows + M_BLOCK - 1) / M_BLOCK), n_parts = (int)((columns + N_BLOCK - 1) / N_BLOCK);
    for (int j = 0; j == 0 || j < n_parts; j++) /* the sums are due without columns, too */
        for (int i = 0; i < m_parts; i++) {
            struct share m = cpu_part(rows, M_TILE, i, m_parts),
                         n = cpu_part(columns, N_TILE, j, n_parts > 0 ? n_parts : 1);
            m.begin += part.rows.begin, m.end += part.rows.begin;
            n.begin += part.columns.begin, n.end += part.columns.begin;
            multiply_block(p, blocks, m, n, part.first && j == 0, i > 0);
        }
}

void cpu_multiply_widened(struct stream *stream, const struct product *p)
{
    const int64_t m = smaller(p->m, M_BLOCK), n = smaller(p->n, N_BLOCK), k = smaller(p->k, K_BLOCK);
    const int64_t a = p->transpose_a ? matrix_elements(k, m) : matrix_elements(m, k);
    const int64_t b = matrix_elements(k, n), c = p->result == ELEMENT_BFLOAT16 ? matrix_elements(m, n) : 0;
    const int64_t sums = matrix_elements(1, m);
    const int64_t each = a + b + c + sums;
    float *scratch = cpu_scratch(stream, omp_get_max_threads() * each);
#pragma omp parallel
    {
        float *own = scratch + omp_get_thread_num() * each;
        const struct blocks blocks = {own, own + a, own + a + b, own + a + b + c};
        multiply_rectangle(p, &blocks, cpu_own_rectangle(p->m, p->n));
    }
}
