/* Embeddings. In the gradients every thread has columns or positions of its own and takes the rows in their order, so
 * the number of threads does not matter to the results. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_math.h"

VECTOR_FUNCTION void embed_rows(enum element element, void *y, const int32_t *tokens, const void *table,
                                const void *position, struct share own, int64_t width, int64_t length, int64_t first,
                                int64_t count)
{
    for (int64_t row = own.begin; row < own.end; row++) {
        const int64_t entry = tokens[row] - first, place = position == NULL ? 0 : row % length;
        const bool known = entry >= 0 && entry < count;
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t left = width - i;
            vfloat sum = {0};
            if (known)
                sum = vload_next_as(element, table, entry * width + i, left, 0.0f);
            if (position != NULL)
                sum += vload_next_as(element, position, place * width + i, left, 0.0f);
            vstore_next_as(element, y, row * width + i, left, sum);
        }
    }
}

void cpu_embedding(struct stream *stream, enum element element, void *y, const int32_t *tokens, const void *table,
                   const void *position, int64_t rows, int64_t width, int64_t length, int64_t first, int64_t count)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    FOR_ELEMENT(element, embed_rows, y, tokens, table, position, cpu_share(rows, 1), width, length, first, count);
}

/* to[i] += from[at + i] */
VECTOR_FUNCTION void add_part(enum element element, float *to, const void *from, int64_t at, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t left = count - i;
        vstore_next(to + i, left, vload_next(to + i, left, 0.0f) + vload_next_as(element, from, at + i, left, 0.0f));
    }
}

/* The columns of `own`. */
VECTOR_FUNCTION void add_to_entries(enum element element, float *dtable, const void *dy, const int32_t *tokens,
                                    int64_t rows, int64_t width, int64_t first, int64_t count, struct share own)
{
    for (int64_t row = 0; row < rows; row++) {
        const int64_t entry = tokens[row] - first;
        if (entry >= 0 && entry < count)
            add_part(element, dtable + entry * width + own.begin, dy, row * width + own.begin, own.end - own.begin);
    }
}

void cpu_embedding_gradient(struct stream *stream, enum element element, float *dtable, const void *dy,
                            const int32_t *tokens, int64_t rows, int64_t width, int64_t first, int64_t count,
                            bool accumulate)
{
    (void)stream;
#pragma omp parallel if ((rows + count) * width >= CPU_PARALLEL_FROM)
    {
        if (!accumulate) {
            const struct share cleared = cpu_share(count * width, LANES);
            if (cleared.end > cleared.begin)
                memset(dtable + cleared.begin, 0, (size_t)(cleared.end - cleared.begin) * sizeof(float));
#pragma omp barrier
        }
        FOR_ELEMENT(element, add_to_entries, dtable, dy, tokens, rows, width, first, count, cpu_share(width, LANES));
    }
}

/* The positions of `own`. */
VECTOR_FUNCTION void add_to_positions(enum element element, float *dposition, const void *dy, int64_t rows,
                                      int64_t width, int64_t length, int64_t row_offset, bool accumulate,
                                      struct share own)
{
    for (int64_t place = own.begin; place < own.end; place++) {
        float *to = dposition + place * width;
        if (!accumulate)
            memset(to, 0, (size_t)width * sizeof(float));
        const int64_t first = ((place - row_offset) % length + length) % length;
        for (int64_t row = first; row < rows; row += length)
            add_part(element, to, dy, row * width, width);
    }
}

void cpu_position_gradient(struct stream *stream, enum element element, float *dposition, const void *dy, int64_t rows,
                           int64_t width, int64_t length, int64_t row_offset, bool accumulate)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    FOR_ELEMENT(element, add_to_positions, dposition, dy, rows, width, length, row_offset, accumulate,
                cpu_share(length, 1));
}
