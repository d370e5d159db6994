/* Attention in blocks of 64 queries by 64 keys with an online softmax (Milakov and Gimelshein, 2018; Dao et al., 2022).
 * Blocks above the diagonal are skipped, and so are the tiles above it within a block.
 *
 * A piece of work is one key/value head of one sequence with all its query heads, or, where these are too few for the
 * threads, a share of its blocks. Pieces write elements of their own; the one sum over pieces, of the queries'
 * gradients, is made afterwards in their order. So the bits follow from shape and number of threads.
 *
 * Elements become float32 when they are copied into panels, and results are rounded when they are copied back. */
#include <omp.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_tile.h"

#define BLOCK 64

/* One call, seen by every piece. */
struct attention {
    enum element element;
    int64_t sequences, length, blocks;
    int64_t heads, kv_heads, group; /* group: query heads of a key/value head */
    int64_t size, padded;           /* of a head; rounded up to whole vectors */
    int64_t qkv_row, output_row;    /* elements of a row */
    int64_t panel;                  /* elements of one head's [length, size], padded to whole blocks */
    int pieces;                     /* of the blocks of one key/value head */
    float scale;
};

static int64_t minimum(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static struct attention describe(enum element element, const struct attention_shape *shape)
{
    const int64_t size = shape->head_size, padded = (size + LANES - 1) / LANES * LANES;
    struct attention a = {
        .element = element,
        .sequences = shape->sequences,
        .length = shape->length,
        .blocks = (shape->length + BLOCK - 1) / BLOCK,
        .heads = shape->heads,
        .kv_heads = shape->kv_heads,
        .group = shape->heads / shape->kv_heads,
        .size = size,
        .padded = padded,
        .qkv_row = (shape->heads + 2 * (int64_t)shape->kv_heads) * size,
        .output_row = shape->heads * size,
        .pieces = 1,
        .scale = (float)(1.0 / sqrt((double)size)),
    };
    a.panel = a.blocks * BLOCK * padded;
    /* Enough pieces for all threads to be busy nearly all the time. */
    const int64_t items = a.sequences * a.kv_heads;
    const int threads = omp_get_max_threads();
    while (items > 0 && a.pieces < a.blocks && items * a.pieces % threads != 0 && items * a.pieces < 4 * threads)
        a.pieces++;
    return a;
}

/* Elements of memory that one thread needs in each direction, and that all share. */
static int64_t forward_floats(const struct attention *a)
{
    return 2 * a->panel + 3 * BLOCK * a->padded + TILE_ROWS * BLOCK;
}

static int64_t gradient_floats(const struct attention *a)
{
    return 5 * a->panel + 4 * BLOCK * a->padded + 2 * BLOCK * BLOCK + 2 * a->blocks * BLOCK;
}

static int64_t partial_floats(const struct attention *a)
{
    return a->pieces > 1 ? a->pieces * a->sequences * a->heads * a->panel : 0;
}

size_t cpu_attention_workspace(enum element element, const struct attention_shape *shape)
{
    const struct attention a = describe(element, shape);
    const int64_t forward = forward_floats(&a), gradient = gradient_floats(&a);
    const int64_t most = forward > gradient ? forward : gradient;
    return (size_t)(partial_floats(&a) + omp_get_max_threads() * most) * sizeof(float);
}

/* The next `count` floats of a thread's memory. */
static float *take(float **memory, int64_t count)
{
    float *taken = *memory;
    *memory += count;
    return taken;
}

/* Rows of block `block` that exist. */
static int64_t block_rows(const struct attention *a, int64_t block)
{
    return minimum(a->length - block * BLOCK, BLOCK);
}

/* How many columns of a block are needed for a tile of rows that starts at `row` of it: all, or on the diagonal those
 * up to the tile's last row. */
static int64_t visible(bool diagonal, int64_t row)
{
    return diagonal ? row + TILE_ROWS : BLOCK;
}

static int64_t whole_vectors(int64_t columns)
{
    return (columns + LANES - 1) / LANES * LANES;
}

/* One row of scores becomes exp(score - largest) over `columns` columns, of which the first `seen` are visible; the
 * running largest and sum are updated, and what was summed with the old largest is rescaled: the sum and the output
 * row. */
static void softmax_row(float *scores, int64_t columns, int64_t seen, float *largest, float *sum, float *output,
                        int64_t padded)
{
    vfloat most = vset(*largest);
    for (int64_t i = 0; i < columns; i += LANES) {
        const vfloat x = vfirst(vload(scores + i), seen - i, -INFINITY);
        vstore(scores + i, x);
        most = vmax(x, most);
    }
    const float now = vlargest(most);
    vfloat total = {0};
    for (int64_t i = 0; i < columns; i += LANES) {
        const vfloat p = vexp(vload(scores + i) - now);
        vstore(scores + i, p);
        total += p;
    }
    const vfloat shrink = vexp(vset(*largest) - now);
    for (int64_t i = 0; i < padded; i += LANES)
        vstore(output + i, vload(output + i) * shrink);
    *sum = *sum * shrink[0] + vsum(total);
    *largest = now;
}

/* Output and logsumexp of one block of queries of one head, whose first elements are output0 and query0. keys: blocks
 * of [padded, BLOCK]; values [length, padded]; `memory` holds the queries, the output and the scores of a tile. */
static void attend_block(const struct attention *a, void *output, int64_t output0, float *logsumexp, const void *qkv,
                         int64_t query0, const float *keys, const float *values, int64_t block, float *memory)
{
    float *q = take(&memory, BLOCK * a->padded), *o = take(&memory, BLOCK * a->padded);
    float *scores = take(&memory, TILE_ROWS * BLOCK);
    float largest[BLOCK], sum[BLOCK];
    const int64_t rows = block_rows(a, block);
    copy_padded(a->element, q, qkv, query0 + block * BLOCK * a->qkv_row, a->qkv_row, rows, a->size, BLOCK, a->padded,
                a->scale);
    memset(o, 0, (size_t)(BLOCK * a->padded) * sizeof(float));
    for (int64_t row = 0; row < BLOCK; row++) {
        largest[row] = -INFINITY;
        sum[row] = 0.0f;
    }
    for (int64_t j = 0; j <= block; j++) {
        const float *k = keys + j * BLOCK * a->padded, *v = values + j * BLOCK * a->padded;
        for (int64_t row = 0; row < rows; row += TILE_ROWS) {
            const int64_t seen = visible(j == block, row), columns = whole_vectors(seen);
            tile_product(scores, BLOCK, q + row * a->padded, a->padded, k, BLOCK, a->size, columns);
            for (int64_t r = 0; r < TILE_ROWS; r++)
                softmax_row(scores + r * BLOCK, columns, j == block ? row + r + 1 : BLOCK, &largest[row + r],
                            &sum[row + r], o + (row + r) * a->padded, a->padded);
            tile_add_product(o + row * a->padded, a->padded, scores, BLOCK, v, a->padded, seen, a->padded);
        }
    }
    for (int64_t row = 0; row < rows; row++) {
        float *normed = o + row * a->padded;
        for (int64_t i = 0; i < a->padded; i += LANES)
            vstore(normed + i, vload(normed + i) / sum[row]);
        logsumexp[block * BLOCK + row] = largest[row] + logf(sum[row]);
    }
    copy_back(a->element, output, output0 + block * BLOCK * a->output_row, a->output_row, o, rows, a->size, a->padded,
              1.0f);
}

/* Piece `piece` of key/value head `kv` of one sequence. */
static void attend(const struct attention *a, void *output, float *logsumexp, const void *qkv, int64_t sequence,
                   int64_t kv, int64_t piece, float *memory)
{
    float *keys = take(&memory, a->panel), *values = take(&memory, a->panel);
    float *rows = take(&memory, BLOCK * a->padded);
    const int64_t row0 = sequence * a->length, key0 = row0 * a->qkv_row + (a->heads + kv) * a->size;
    const int64_t value0 = key0 + a->kv_heads * a->size;
    for (int64_t block = 0; block < a->blocks; block++) {
        const int64_t at = block * BLOCK * a->qkv_row, to = block * BLOCK * a->padded, count = block_rows(a, block);
        copy_padded(a->element, rows, qkv, key0 + at, a->qkv_row, count, a->size, BLOCK, a->padded, 1.0f);
        copy_transposed(keys + to, rows, BLOCK, a->padded);
        copy_padded(a->element, values + to, qkv, value0 + at, a->qkv_row, count, a->size, BLOCK, a->padded, 1.0f);
    }
    for (int64_t head = kv * a->group; head < (kv + 1) * a->group; head++)
        for (int64_t block = piece; block < a->blocks; block += a->pieces)
            attend_block(a, output, row0 * a->output_row + head * a->size,
                         logsumexp + (sequence * a->heads + head) * a->length, qkv, row0 * a->qkv_row + head * a->size,
                         keys, values, block, memory);
}

void cpu_attention(struct stream *stream, enum element element, void *output, float *logsumexp, const void *qkv,
                   const struct attention_shape *shape, void *workspace)
{
    (void)stream;
    const struct attention a = describe(element, shape);
    const int64_t floats = forward_floats(&a);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < a.sequences * a.kv_heads * a.pieces; i++) {
        const int64_t item = i / a.pieces;
        attend(&a, output, logsumexp, qkv, item / a.kv_heads, item % a.kv_heads, i % a.pieces,
               (float *)workspace + omp_get_thread_num() * floats);
    }
}

/* What the gradient of one key/value head works on; panels are [length, padded]. */
struct gradient {
    float *queries, *doutput, *dqueries; /* of one query head; the queries scaled */
    float *dkeys, *dvalues;
    float *keys, *keys_t, *values_t, *values; /* one block; _t: [padded, BLOCK] */
    float *weights, *dscores;                 /* one block [BLOCK, BLOCK] */
    float *logsumexp, *delta;                 /* [length]; delta = sum of output * doutput over a row */
};

static struct gradient lay_out(const struct attention *a, float *memory)
{
    struct gradient g;
    g.queries = take(&memory, a->panel);
    g.doutput = take(&memory, a->panel);
    g.dqueries = take(&memory, a->panel);
    g.dkeys = take(&memory, a->panel);
    g.dvalues = take(&memory, a->panel);
    g.keys = take(&memory, BLOCK * a->padded);
    g.keys_t = take(&memory, BLOCK * a->padded);
    g.values = take(&memory, BLOCK * a->padded);
    g.values_t = take(&memory, BLOCK * a->padded);
    g.weights = take(&memory, BLOCK * BLOCK);
    g.dscores = take(&memory, BLOCK * BLOCK);
    g.logsumexp = take(&memory, a->blocks * BLOCK);
    g.delta = take(&memory, a->blocks * BLOCK);
    return g;
}

/* Scores of a tile of queries become softmax weights, in place; the weights' gradients become the scores'. */
static void gradient_row(float *weights, float *dscores, int64_t columns, int64_t seen, float logsumexp, float delta)
{
    for (int64_t i = 0; i < columns; i += LANES) {
        const vfloat p = vfirst(vexp(vload(weights + i) - logsumexp), seen - i, 0.0f);
        vstore(weights + i, p);
        vstore(dscores + i, p * (vload(dscores + i) - delta));
    }
}

/* Adds what block `block` of the queries and block `j` of the keys give each other. */
static void gradient_block(const struct attention *a, const struct gradient *g, int64_t block, int64_t j)
{
    const bool diagonal = block == j;
    const int64_t padded = a->padded, at = block * BLOCK * padded;
    const float *q = g->queries + at, *d = g->doutput + at;
    for (int64_t row = 0; row < BLOCK; row += TILE_ROWS) {
        const int64_t seen = visible(diagonal, row), columns = whole_vectors(seen);
        float *weights = g->weights + row * BLOCK, *dscores = g->dscores + row * BLOCK;
        tile_product(weights, BLOCK, q + row * padded, padded, g->keys_t, BLOCK, a->size, columns);
        tile_product(dscores, BLOCK, d + row * padded, padded, g->values_t, BLOCK, a->size, columns);
        for (int64_t r = 0; r < TILE_ROWS; r++)
            gradient_row(weights + r * BLOCK, dscores + r * BLOCK, columns, diagonal ? row + r + 1 : BLOCK,
                         g->logsumexp[block * BLOCK + row + r], g->delta[block * BLOCK + row + r]);
        tile_add_product(g->dqueries + at + row * padded, padded, dscores, BLOCK, g->keys, padded, seen, padded);
    }
    for (int64_t key = 0; key < BLOCK; key += TILE_ROWS) {
        const int64_t from = diagonal ? key : 0; /* the first query that sees the key */
        const int64_t to = (j * BLOCK + key) * padded;
        tile_add_transposed_product(g->dvalues + to, padded, g->weights + from * BLOCK + key, BLOCK, d + from * padded,
                                    padded, BLOCK - from, padded);
        tile_add_transposed_product(g->dkeys + to, padded, g->dscores + from * BLOCK + key, BLOCK, q + from * padded,
                                    padded, BLOCK - from, padded);
    }
}

/* The sums of output * doutput over each row of a query head. */
VECTOR_FUNCTION void sum_products(enum element element, const struct attention *a, const struct gradient *g,
                                  const void *output, int64_t output0)
{
    for (int64_t row = 0; row < a->blocks * BLOCK; row++) {
        vfloat sum = {0};
        for (int64_t i = 0; row < a->length && i < a->size; i += LANES)
            sum += vload(g->doutput + row * a->padded + i) *
                   vload_next_as(element, output, output0 + row * a->output_row + i, a->size - i, 0.0f);
        g->delta[row] = vsum(sum);
    }
}

/* Fetches one query head: its scaled queries, the output's gradient and the rows' sums. */
static void fetch_head(const struct attention *a, const struct gradient *g, const void *doutput, const void *qkv,
                       const void *output, int64_t output0, int64_t query0, const float *logsumexp)
{
    const int64_t rows = a->blocks * BLOCK;
    copy_padded(a->element, g->queries, qkv, query0, a->qkv_row, a->length, a->size, rows, a->padded, a->scale);
    copy_padded(a->element, g->doutput, doutput, output0, a->output_row, a->length, a->size, rows, a->padded, 1.0f);
    FOR_ELEMENT(a->element, sum_products, a, g, output, output0);
    for (int64_t row = 0; row < rows; row++)
        g->logsumexp[row] = row < a->length ? logsumexp[row] : 0.0f;
}

/* Piece `piece` of key/value head `kv` of one sequence. The queries' gradients go to `partial`
 * [sequences, heads][length, padded] unless it is NULL, else to dqkv. */
static void attend_gradient(const struct attention *a, void *dqkv, float *partial, const void *doutput, const void *qkv,
                            const void *output, const float *logsumexp, int64_t sequence, int64_t kv, int64_t piece,
                            struct gradient g)
{
    const int64_t row0 = sequence * a->length, key0 = row0 * a->qkv_row + (a->heads + kv) * a->size;
    const int64_t value0 = key0 + a->kv_heads * a->size;
    memset(g.dkeys, 0, (size_t)a->panel * sizeof(float));
    memset(g.dvalues, 0, (size_t)a->panel * sizeof(float));
    for (int64_t head = kv * a->group; head < (kv + 1) * a->group; head++) {
        const int64_t query0 = row0 * a->qkv_row + head * a->size, output0 = row0 * a->output_row + head * a->size;
        fetch_head(a, &g, doutput, qkv, output, output0, query0, logsumexp + (sequence * a->heads + head) * a->length);
        if (partial != NULL)
            g.dqueries = partial + (sequence * a->heads + head) * a->panel;
        memset(g.dqueries, 0, (size_t)a->panel * sizeof(float));
        for (int64_t j = piece; j < a->blocks; j += a->pieces) {
            const int64_t at = j * BLOCK * a->qkv_row, rows = block_rows(a, j);
            copy_padded(a->element, g.keys, qkv, key0 + at, a->qkv_row, rows, a->size, BLOCK, a->padded, 1.0f);
            copy_transposed(g.keys_t, g.keys, BLOCK, a->padded);
            copy_padded(a->element, g.values, qkv, value0 + at, a->qkv_row, rows, a->size, BLOCK, a->padded, 1.0f);
            copy_transposed(g.values_t, g.values, BLOCK, a->padded);
            for (int64_t block = j; block < a->blocks; block++)
                gradient_block(a, &g, block, j);
        }
        if (partial == NULL)
            copy_back(a->element, dqkv, query0, a->qkv_row, g.dqueries, a->length, a->size, a->padded, a->scale);
    }
    for (int64_t j = piece; j < a->blocks; j += a->pieces) {
        const int64_t at = j * BLOCK * a->qkv_row, from = j * BLOCK * a->padded, rows = block_rows(a, j);
        copy_back(a->element, dqkv, key0 + at, a->qkv_row, g.dkeys + from, rows, a->size, a->padded, 1.0f);
        copy_back(a->element, dqkv, value0 + at, a->qkv_row, g.dvalues + from, rows, a->size, a->padded, 1.0f);
    }
}

/* The queries' gradients of one head, from all pieces. */
static void join_pieces(const struct attention *a, void *dqkv, float *partial, int64_t sequence, int64_t head)
{
    float *sum = partial + (sequence * a->heads + head) * a->panel;
    for (int64_t piece = 1; piece < a->pieces; piece++) {
        const float *more = sum + piece * a->sequences * a->heads * a->panel;
        for (int64_t i = 0; i < a->panel; i += LANES)
            vstore(sum + i, vload(sum + i) + vload(more + i));
    }
    copy_back(a->element, dqkv, sequence * a->length * a->qkv_row + head * a->size, a->qkv_row, sum, a->length, a->size,
              a->padded, a->scale);
}

void cpu_attention_gradient(struct stream *stream, enum element element, void *dqkv, const void *doutput,
                            const void *qkv, const void *output, const float *logsumexp,
                            const struct attention_shape *shape, void *workspace)
{
    (void)stream;
    const struct attention a = describe(element, shape);
    const int64_t items = a.sequences * a.kv_heads, floats = gradient_floats(&a);
    float *partial = workspace, *memory = partial + partial_floats(&a);
#pragma omp parallel
    {
        const struct gradient own = lay_out(&a, memory + omp_get_thread_num() * floats);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < items * a.pieces; i++) {
            const int64_t item = i / a.pieces, piece = i % a.pieces;
            float *to = a.pieces > 1 ? partial + piece * a.sequences * a.heads * a.panel : NULL;
            attend_gradient(&a, dqkv, to, doutput, qkv, output, logsumexp, item / a.kv_heads, item % a.kv_heads, piece,
                            own);
        }
        if (a.pieces > 1)
#pragma omp for
            for (int64_t i = 0; i < a.sequences * a.heads; i++)
                join_pieces(&a, dqkv, partial, i / a.heads, i % a.heads);
    }
}
