/* Embeddings. In the gradients every thread has columns or positions of its own and takes the rows in their order, so
 * the number of threads does not matter to the results. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_math.h"

void cpu_embedding(struct stream *stream, float *y, const int32_t *tokens, const float *table, const float *position,
                   int64_t rows, int64_t width, int64_t length, int64_t first, int64_t count)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(rows, 1);
        for (int64_t row = own.begin; row < own.end; row++) {
            const int64_t entry = tokens[row] - first;
            const float *value = entry >= 0 && entry < count ? table + entry * width : NULL;
            const float *place = position == NULL ? NULL : position + row % length * width;
            for (int64_t i = 0; i < width; i += LANES) {
                const int64_t left = width - i;
                vfloat sum = {0};
                if (value != NULL)
                    sum = vload_next(value + i, left, 0.0f);
                if (place != NULL)
                    sum += vload_next(place + i, left, 0.0f);
                vstore_next(y + row * width + i, left, sum);
            }
        }
    }
}

/* to[i] += from[i] */
static void add_part(float *to, const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t left = count - i;
        vstore_next(to + i, left, vload_next(to + i, left, 0.0f) + vload_next(from + i, left, 0.0f));
    }
}

void cpu_embedding_gradient(struct stream *stream, float *dtable, const float *dy, const int32_t *tokens, int64_t rows,
                            int64_t width, int64_t first, int64_t count, bool accumulate)
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
        const struct share own = cpu_share(width, LANES);
        for (int64_t row = 0; row < rows; row++) {
            const int64_t entry = tokens[row] - first;
            if (entry >= 0 && entry < count)
                add_part(dtable + entry * width + own.begin, dy + row * width + own.begin, own.end - own.begin);
        }
    }
}

void cpu_position_gradient(struct stream *stream, float *dposition, const float *dy, int64_t rows, int64_t width,
                           int64_t length, int64_t row_offset, bool accumulate)
{
    (void)stream;
#pragma omp parallel if (rows * width >= CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share(length, 1);
        for (int64_t place = own.begin; place < own.end; place++) {
            float *to = dposition + place * width;
            if (!accumulate)
                memset(to, 0, (size_t)width * sizeof(float));
            const int64_t first = ((place - row_offset) % length + length) % length;
            for (int64_t row = first; row < rows; row += length)
                add_part(to, dy + row * width, width);
        }
    }
}
