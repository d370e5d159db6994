/* Small matrix products in registers, and the copies that prepare their operands: the parts of blocked attention.
 * Operands lie in panels that are padded with zeros to whole tiles, so the products know no edges. */
#ifndef KERNELS_CPU_CPU_TILE_H
#define KERNELS_CPU_CPU_TILE_H

#include "kernels/cpu/cpu_math.h"

/* Rows and vectors of a tile: its sums, two vectors of b and one broadcast element of a fit the registers. */
#if LANES == 16
#define TILE_ROWS 8
#else
#define TILE_ROWS 4
#endif
#define TILE_VECTORS 2

/* c [TILE_ROWS, vectors * LANES] (+)= a b over `steps`; a's element (r, s) is a[r * a_row + s * a_step]. */
VECTOR_FUNCTION void tile(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_step, const float *b,
                          int64_t b_row, int64_t steps, int vectors, bool accumulate)
{
    vfloat sums[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sums[r][v] = accumulate ? vload(c + r * c_row + v * LANES) : vset(0.0f);
    for (int64_t s = 0; s < steps; s++) {
        vfloat right[TILE_VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            right[v] = vload(b + s * b_row + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; r++) {
            const vfloat left = vset(a[r * a_row + s * a_step]);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                sums[r][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            vstore(c + r * c_row + v * LANES, sums[r][v]);
}

VECTOR_FUNCTION void tiles(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_step, const float *b,
                           int64_t b_row, int64_t steps, int64_t columns, bool accumulate)
{
    int64_t i = 0;
    for (; i + TILE_VECTORS * LANES <= columns; i += TILE_VECTORS * LANES)
        tile(c + i, c_row, a, a_row, a_step, b + i, b_row, steps, TILE_VECTORS, accumulate);
    if (i < columns)
        tile(c + i, c_row, a, a_row, a_step, b + i, b_row, steps, 1, accumulate);
}

/* c [TILE_ROWS, columns] = a b with a [TILE_ROWS, steps], b [steps, columns]; columns is a multiple of LANES. */
static inline __attribute__((unused)) void tile_product(float *c, int64_t c_row, const float *a, int64_t a_row,
                                                        const float *b, int64_t b_row, int64_t steps, int64_t columns)
{
    tiles(c, c_row, a, a_row, 1, b, b_row, steps, columns, false);
}

/* The same added to c. */
static inline __attribute__((unused)) void tile_add_product(float *c, int64_t c_row, const float *a, int64_t a_row,
                                                            const float *b, int64_t b_row, int64_t steps,
                                                            int64_t columns)
{
    tiles(c, c_row, a, a_row, 1, b, b_row, steps, columns, true);
}

/* c [TILE_ROWS, columns] += a^T b with a [steps, TILE_ROWS of a_step]. */
static inline __attribute__((unused)) void tile_add_transposed_product(float *c, int64_t c_row, const float *a,
                                                                       int64_t a_step, const float *b, int64_t b_row,
                                                                       int64_t steps, int64_t columns)
{
    tiles(c, c_row, a, 1, a_step, b, b_row, steps, columns, true);
}

/* The copies between panels, which are float32, and arrays of elements, from element `at` of these on; rows of an array
 * are from_row or to_row elements apart. */
VECTOR_FUNCTION void copy_rows_in(enum element element, float *to, const void *from, int64_t at, int64_t from_row,
                                  int64_t rows, int64_t width, int64_t padded, float scale)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < width; i += LANES)
            vstore(to + row * padded + i,
                   vload_next_as(element, from, at + row * from_row + i, width - i, 0.0f) * scale);
}

VECTOR_FUNCTION void copy_rows_out(enum element element, void *to, int64_t at, int64_t to_row, const float *from,
                                   int64_t rows, int64_t width, int64_t padded, float scale)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < width; i += LANES)
            vstore_next_as(element, to, at + row * to_row + i, width - i, vload(from + row * padded + i) * scale);
}

/* to [padded_rows, padded] = scale * from [rows, width], zeros elsewhere; `padded` >= width is a multiple of LANES. */
static inline __attribute__((unused)) void copy_padded(enum element element, float *to, const void *from, int64_t at,
                                                       int64_t from_row, int64_t rows, int64_t width,
                                                       int64_t padded_rows, int64_t padded, float scale)
{
    FOR_ELEMENT(element, copy_rows_in, to, from, at, from_row, rows, width, padded, scale);
    if (padded_rows > rows)
        memset(to + rows * padded, 0, (size_t)((padded_rows - rows) * padded) * sizeof(float));
}

/* to [rows, width] = scale * from [rows, padded], rounded. */
static inline __attribute__((unused)) void copy_back(enum element element, void *to, int64_t at, int64_t to_row,
                                                     const float *from, int64_t rows, int64_t width, int64_t padded,
                                                     float scale)
{
    FOR_ELEMENT(element, copy_rows_out, to, at, to_row, from, rows, width, padded, scale);
}

/* to [width, rows] = from [rows, width] transposed; both counts are multiples of LANES. */
static inline __attribute__((unused)) void copy_transposed(float *to, const float *from, int64_t rows, int64_t width)
{
    for (int64_t row = 0; row < rows; row += LANES)
        for (int64_t column = 0; column < width; column += LANES) {
            vfloat square[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                square[i] = vload(from + (row + i) * width + column);
            vtranspose(square);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                vstore(to + (column + i) * rows + row, square[i]);
        }
}

#endif
