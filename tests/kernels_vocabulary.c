/* The device table's kernels around the vocabulary: embedding, cross-entropy; and those of the optimizer. */
#include "tests/kernel_run.h"

/* rows, width, vocabulary, length */
static const int64_t table_shapes[][4] = {{0, 48, 5, 3},      {1, 1, 1, 1},        {5, 3, 7, 5},      {23, 101, 3, 23},
                                          {100, 48, 257, 23}, {100, 257, 101, 65}, {23, 48, 1000, 1}, {5, 3000, 5, 130},
                                          {1100, 5, 3, 7},    {2100, 3, 40, 65},   {3, 5, 9001, 7}};

static int32_t token_at(int64_t row, int64_t vocabulary)
{
    return (int32_t)((double)(number_at(99, row) + 1.0f) * 0.4999 * (double)vocabulary);
}

static const int32_t *give_tokens(struct run *r, int64_t rows, int64_t vocabulary)
{
    int32_t *tokens = allocate((size_t)rows + 1, sizeof *tokens);
    for (int64_t i = 0; i < rows; i++)
        tokens[i] = token_at(i, vocabulary);
    const int32_t *given = give(r, rows, tokens);
    free(tokens);
    return given;
}

/* The share of the vocabulary that a rank in the middle has; it may be empty. */
static void share_of(int64_t vocabulary, int64_t *first, int64_t *count)
{
    *first = vocabulary / 3;
    *count = 2 * vocabulary / 3 - *first;
}

static void embedding(struct run *r, const int64_t *shape)
{
    const int64_t rows = shape[0], width = shape[1], vocabulary = shape[2], length = shape[3];
    int64_t first, count;
    share_of(vocabulary, &first, &count);
    void *whole = give_elements(r, rows * width, NAN), *part = give_elements(r, rows * width, NAN);
    const char *table = give_elements(r, vocabulary * width, 1.0), *position = give_elements(r, length * width, 1.0);
    const int32_t *tokens = give_tokens(r, rows, vocabulary);
    const char *share = table + (size_t)(first * width) * element_bytes(r->element);
    r->device->embedding(r->stream, r->element, whole, tokens, table, position, rows, width, length, 0, vocabulary);
    r->device->embedding(r->stream, r->element, part, tokens, share, NULL, rows, width, length, first, count);
    take_back(r);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < width; i++) {
            const int64_t token = token_at(row, vocabulary);
            const float entry = r->array[2].before[token * width + i];
            expect(r, 0, row * width + i, (double)entry + (double)r->array[3].before[row % length * width + i], 2e-7);
            expect_equal(r, 1, row * width + i, token >= first && token < first + count ? entry : 0.0f);
        }
}

static void embedding_gradient(struct run *r, const int64_t *shape)
{
    const int64_t rows = shape[0], width = shape[1], vocabulary = shape[2];
    int64_t first, count;
    share_of(vocabulary, &first, &count);
    float *whole = give_numbers(r, vocabulary * width, NAN), *part = give_numbers(r, count * width, 1.0);
    const void *dy = give_elements(r, rows * width, 1.0);
    const int32_t *tokens = give_tokens(r, rows, vocabulary);
    r->device->embedding_gradient(r->stream, r->element, whole, dy, tokens, rows, width, 0, vocabulary, false);
    r->device->embedding_gradient(r->stream, r->element, part, dy, tokens, rows, width, first, count, true);
    take_back(r);
    double *sums = allocate((size_t)(vocabulary * width), sizeof *sums), *hdy = before(r, 2);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < width; i++)
            sums[token_at(row, vocabulary) * width + i] += hdy[row * width + i];
    expect_all(r, 0, sums, 1e-5);
    for (int64_t i = 0; i < count * width; i++)
        expect(r, 1, i, sums[first * width + i] + (double)r->array[1].before[i], 1e-5);
    free(sums), free(hdy);
}

static void position_gradient(struct run *r, const int64_t *shape)
{
    const int64_t rows = shape[0], width = shape[1], length = shape[3];
    float *now = give_numbers(r, length * width, NAN), *later = give_numbers(r, length * width, 1.0);
    const void *dy = give_elements(r, rows * width, 1.0);
    r->device->position_gradient(r->stream, r->element, now, dy, rows, width, length, 0, false);
    r->device->position_gradient(r->stream, r->element, later, dy, rows, width, length, 2 * length + length / 2, true);
    take_back(r);
    double *sums = allocate((size_t)(length * width), sizeof *sums), *hdy = before(r, 2), *more = before(r, 1);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < width; i++) {
            sums[row % length * width + i] += hdy[row * width + i];
            more[(row + length / 2) % length * width + i] += hdy[row * width + i];
        }
    expect_all(r, 0, sums, 1e-5);
    expect_all(r, 1, more, 1e-5);
    free(sums), free(hdy), free(more);
}

/* -log softmax(x)[target] and, unless NULL, its gradient. */
static double cross_entropy(double *gradient, const double *x, int64_t count, int64_t target)
{
    double largest = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < count; i++)
        largest = fmax(largest, x[i]);
    for (int64_t i = 0; i < count; i++)
        sum += exp(x[i] - largest);
    for (int64_t i = 0; gradient != NULL && i < count; i++)
        gradient[i] = exp(x[i] - largest) / sum - (i == target ? 1.0 : 0.0);
    return largest + log(sum) - x[target];
}

/* Over one rank, in place, and over three of which the middle one may have no tokens. Logits of up to 40 make most
 * probabilities vanish. */
static void loss(struct run *r, const int64_t *shape)
{
    enum {
        PARTS = 3
    };
    const int64_t rows = shape[0], vocabulary = shape[2];
    const double scale = 0.125;
    const int64_t pitch = vocabulary % 2 == 0 ? vocabulary : vocabulary + 7, gap = vocabulary % 3; /* of the parts */
    const struct device *d = r->device;
    int64_t first[PARTS + 1] = {0, vocabulary / 2, vocabulary == 7 ? 3 : 2 * vocabulary / 3, vocabulary};
    void *logits = give_rows(r, rows, vocabulary, pitch, 40.0);
    float *losses = give_numbers(r, rows, NAN);
    float *statistics = give_numbers(r, rows * 3, NAN), *joint = give_numbers(r, rows, NAN);
    float *parts = give_numbers(r, PARTS * rows * 3, NAN);
    const int32_t *targets = give_tokens(r, rows, vocabulary);
    void *part[PARTS], *gradient[PARTS];
    const int logits_at = r->arrays;
    for (int p = 0; p < PARTS; p++) {
        const int64_t count = first[p + 1] - first[p];
        const int64_t row = count + gap;
        float *values = allocate((size_t)(rows * row) + 1, sizeof *values);
        for (int64_t i = 0; i < rows * row; i++)
            values[i] = i % row < count ? r->array[0].before[i / row * pitch + first[p] + i % row] : NAN;
        part[p] = give_as(r, r->element, rows * row, values);
        gradient[p] = give_elements(r, rows * row, NAN);
        free(values);
        d->cross_entropy_statistics(r->stream, r->element, parts + p * rows * 3, part[p], targets, rows, first[p],
                                    count, row);
    }
    for (int p = 0; p < PARTS; p++)
        d->cross_entropy(r->stream, r->element, joint, gradient[p], part[p], targets, parts, rows, first[p],
                         first[p + 1] - first[p], first[p + 1] - first[p] + gap, PARTS, scale);
    d->cross_entropy_statistics(r->stream, r->element, statistics, logits, targets, rows, 0, vocabulary, pitch);
    d->cross_entropy(r->stream, r->element, losses, NULL, logits, targets, statistics, rows, 0, vocabulary, pitch, 1,
                     scale);
    d->cross_entropy(r->stream, r->element, losses, logits, logits, targets, statistics, rows, 0, vocabulary, pitch, 1,
                     scale);
    take_back(r);
    double *x = before(r, 0), *expected = allocate((size_t)vocabulary, sizeof *expected);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t target = token_at(row, vocabulary);
        const double should_be = cross_entropy(expected, x + row * pitch, vocabulary, target);
        expect(r, 1, row, should_be, 1e-5);
        expect(r, 3, row, should_be, 1e-5);
        for (int64_t i = 0; i < vocabulary; i++) {
            int p = 0;
            while (i >= first[p + 1])
                p++;
            const int64_t part_row = first[p + 1] - first[p] + gap;
            expect(r, 0, row * pitch + i, scale * expected[i], 1e-7);
            expect(r, logits_at + 2 * p + 1, row * part_row + i - first[p], scale * expected[i], 1e-7);
        }
    }
    expect_gaps(r, 0, vocabulary, pitch);
    for (int p = 0; p < PARTS; p++)
        expect_gaps(r, logits_at + 2 * p + 1, first[p + 1] - first[p], first[p + 1] - first[p] + gap);
    free(x), free(expected);
}

static void test_statistics(void)
{
    const struct device *d = device_of(2);
    struct stream *stream = d->stream_open();
    const float in[6] = {1.0f, 3.0f, 2.0f, NAN, 0.0f, 0.0f};
    const int32_t hit[2] = {11, 12};
    float *logits = d->allocate(sizeof in), *statistics = d->allocate(64), out[6];
    int32_t *targets = d->allocate(sizeof hit);
    d->copy(stream, logits, in, sizeof in);
    d->copy(stream, targets, hit, sizeof hit);
    d->cross_entropy_statistics(stream, ELEMENT_FLOAT32, statistics, logits, targets, 2, 10, 3, 3);
    d->copy(stream, out, statistics, sizeof out);
    d->stream_wait(stream);
    ok(out[0] == 3.0f && out[2] == 3.0f, "statistics have the largest logit and the target's");
    is_near((double)out[1], 1.0 + exp(-1.0) + exp(-2.0), 2e-7, "and the sum of exponentials");
    ok(isnan(out[4]), "a logit that is NaN shows in the sum");
    d->cross_entropy_statistics(stream, ELEMENT_FLOAT32, statistics, logits, targets, 2, 20, 0, 0);
    d->copy(stream, out, statistics, sizeof out);
    d->stream_wait(stream);
    ok(isinf(out[0]) && out[0] < 0.0f && out[1] == 0.0f && out[2] == 0.0f, "a rank without tokens has -inf, 0, 0");
    d->release(logits, sizeof in);
    d->release(statistics, 64);
    d->release(targets, sizeof hit);
    d->stream_close(stream);

    double x[5] = {0.3, -1.0, 2.0, 0.5, 0.0}, gradient[5], worst = 0.0;
    cross_entropy(gradient, x, 5, 3);
    for (int i = 0; i < 5; i++) {
        x[i] += 1e-5;
        double change = cross_entropy(NULL, x, 5, 3);
        x[i] -= 2e-5;
        change -= cross_entropy(NULL, x, 5, 3);
        x[i] += 1e-5;
        worst = fmax(worst, fabs(change / 2e-5 - gradient[i]));
    }
    ok(worst < 1e-9, "the reference's gradient is that of finite differences (%g)", worst);
}

static void test_squares(enum element element)
{
    const char *type = element == ELEMENT_FLOAT32 ? "float32" : "bfloat16";
    const int64_t count = 5 * SQUARES_BLOCK + 77;
    const size_t size = element_bytes(element);
    float *host = allocate((size_t)count, sizeof *host);
    for (int64_t i = 0; i < count; i++)
        host[i] = (float)rounded_to(element, number_at(0, i) * 1e-3f);
    double blocks[3][6];
    for (int threads = 1; threads <= 3; threads++) {
        const struct device *d = device_of(threads);
        struct stream *stream = d->stream_open();
        float *numbers = d->allocate((size_t)count * sizeof *numbers);
        char *memory = d->allocate((size_t)(count + 3) * size), *x = memory + (size_t)threads * size;
        d->copy(stream, numbers, host, (size_t)count * sizeof *numbers);
        d->convert(stream, element, x, numbers, count);
        double *found = d->host_allocate(sizeof blocks[0]);
        d->squares(stream, element, found, x, count);
        d->stream_wait(stream);
        memcpy(blocks[threads - 1], found, sizeof blocks[0]);
        d->squares(stream, element, found, x, 0);
        d->host_release(found, sizeof blocks[0]);
        d->release(memory, (size_t)(count + 3) * size);
        d->release(numbers, (size_t)count * sizeof *numbers);
        d->stream_close(stream);
    }
    double worst = 0.0;
    for (int block = 0; block < 6; block++) {
        double sum = 0.0;
        for (int64_t i = block * SQUARES_BLOCK; i < count && i < (block + 1) * SQUARES_BLOCK; i++)
            sum += (double)host[i] * (double)host[i];
        worst = worse(worst, fabs(blocks[0][block] / sum - 1.0));
    }
    ok(worst < 1e-13, "sums of squares of %s are right in float64 (%g)", type, worst);
    ok(most_threads() == 1 ||
           (memcmp(blocks[0], blocks[1], sizeof blocks[0]) == 0 && memcmp(blocks[0], blocks[2], sizeof blocks[0]) == 0),
       "and the same bits with any number of threads, at any address");
    free(host);
}

/* A range that lies at the same place in all arenas of float32. */
static struct optimizer_range range_at(int64_t begin, int64_t count, bool decay)
{
    return (struct optimizer_range){
        .count = count, .weight = begin, .moment = begin, .gradient = begin, .decay = decay};
}

/* elements, gap between the ranges */
static const int64_t adamw_shapes[][2] = {{0, 1}, {1, 0}, {48, 3}, {101, 1}, {30001, 7}};

/* Three steps over two ranges with a gap, which stays as it is; the second decays. The weights for computations lie in
 * the other order. */
static void adamw(struct run *r, const int64_t *shape)
{
    const int64_t count = shape[0], gap = shape[1], all = 2 * count + gap;
    float *w = give_numbers(r, all, 1.0), *m = give_numbers(r, all, 0.0), *v = give_numbers(r, all, 0.0);
    const float *g[3] = {give_numbers(r, all, 1.0), give_numbers(r, all, 1e-3), give_numbers(r, all, 1e-6)};
    void *computed = give_elements(r, all, 5.0);
    struct optimizer_range ranges[] = {range_at(0, count, false), range_at(count + gap, count, true)};
    ranges[0].computed = (count + gap) * (int64_t)element_bytes(r->element);
    ranges[0].element = ranges[1].element = r->element;
    struct adamw step = {.learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1};
    step.scale = 0.7;
    double *hw = before(r, 0), *hm = allocate((size_t)all + 1, sizeof *hm), *hv = allocate((size_t)all + 1, sizeof *hv);
    for (int n = 1; n <= 3; n++) {
        step.correction1 = 1.0 - pow(step.beta1, n);
        step.correction2 = 1.0 - pow(step.beta2, n);
        r->device->adamw(r->stream, w, m, v, g[n - 1], n == 1 ? NULL : computed, ranges, 2, &step);
        for (int64_t i = 0; i < all; i++) {
            if (i >= count && i < count + gap)
                continue;
            const double gradient = step.scale * (double)r->array[2 + n].before[i];
            hw[i] *= i < count ? 1.0 : 1.0 - step.learning_rate * step.weight_decay;
            hm[i] = step.beta1 * hm[i] + (1.0 - step.beta1) * gradient;
            hv[i] = step.beta2 * hv[i] + (1.0 - step.beta2) * gradient * gradient;
            hw[i] -= step.learning_rate * (hm[i] / step.correction1) / (sqrt(hv[i] / step.correction2) + step.epsilon);
        }
    }
    take_back(r);
    for (int64_t i = 0; i < all; i++) {
        expect(r, 0, i, hw[i], 3e-7);
        expect(r, 1, i, hm[i], 1e-6 * fabs(hm[i]) + 1e-9);
        expect(r, 2, i, hv[i], 1e-6 * hv[i] + 1e-30);
        const bool stored = i < count || i >= count + gap;
        const int64_t from = i < count ? i + count + gap : i - count - gap;
        expect_equal(r, 6, i, stored ? rounded_to(r->element, r->array[0].after[from]) : r->array[6].before[i]);
    }
    free(hw), free(hm), free(hv);
}

/* The step depends neither on how the parameters are cut into ranges nor on where the pieces lie in each arena: data
 * ranks may each make a shard of it. */
static void test_adamw_shards(void)
{
    enum {
        COUNT = 1000,
        MANY = 100,
        WAYS = 3
    };
    const struct device *d = device_of(2);
    struct stream *stream = d->stream_open();
    struct adamw step = {1e-2, 0.9, 0.95, 1e-8, 0.1, 0.1, 0.05, 1.0};
    /* The moments of the pieces lie in another order than the pieces themselves. */
    const struct optimizer_range whole[] = {range_at(0, COUNT, true)};
    const struct optimizer_range cut[] = {
        {.count = 1, .weight = 0, .moment = 999, .gradient = 0, .decay = true},
        {.count = 332, .weight = 1, .moment = 0, .gradient = 1, .decay = true},
        {.count = 667, .weight = 333, .moment = 332, .gradient = 333, .decay = true},
    };
    struct optimizer_range many[MANY]; /* every third of them is empty */
    for (int64_t i = 0, at = 0; i < MANY; at += many[i++].count)
        many[i] = range_at(at, i == MANY - 1 ? COUNT - at : i % 3 * 7, true);
    const struct optimizer_range *ways[WAYS] = {whole, cut, many};
    const int64_t counts[WAYS] = {1, 3, MANY};
    float host[4][COUNT], out[WAYS][COUNT];
    for (int way = 0; way < WAYS; way++) {
        float *arena[4];
        for (int64_t i = 0; i < COUNT; i++)
            for (int a = 0; a < 4; a++) {
                const int64_t at = way != 1 || (a != 1 && a != 2) ? i : i == 0 ? 999 : i - 1;
                host[a][at] = a == 2 ? fabsf(number_at(a, i)) : number_at(a, i);
            }
        for (int a = 0; a < 4; a++) {
            arena[a] = d->allocate(sizeof host[a]);
            d->copy(stream, arena[a], host[a], sizeof host[a]);
        }
        d->adamw(stream, arena[0], arena[1], arena[2], arena[3], NULL, ways[way], counts[way], &step);
        d->copy(stream, out[way], arena[0], sizeof out[way]);
        d->stream_wait(stream);
        for (int a = 0; a < 4; a++)
            d->release(arena[a], sizeof host[a]);
    }
    ok(memcmp(out[0], out[1], sizeof out[0]) == 0, "AdamW over pieces of a range gives the bits of the whole");
    ok(memcmp(out[0], out[2], sizeof out[0]) == 0, "so does it over many of them, some empty");
    d->stream_close(stream);
}

/* Ranges of both types in one arena of weights for computations, with gaps between them. */
static void test_adamw_computed(void)
{
    enum {
        FIRST = 37,
        SECOND = 20001,
        COUNT = FIRST + SECOND,
        BYTES = 4 * FIRST + 8 + 2 * SECOND + 8
    };
    const struct adamw step = {1e-2, 0.9, 0.95, 1e-8, 0.1, 0.1, 0.05, 1.0};
    struct optimizer_range ranges[] = {range_at(0, FIRST, false), range_at(FIRST, SECOND, true)};
    ranges[1].computed = 4 * FIRST + 8;
    ranges[1].element = ELEMENT_BFLOAT16;
    float *host = allocate(COUNT, sizeof *host), first[FIRST];
    unsigned char *out = allocate(BYTES, 1);
    for (int threads = 1; threads <= 3; threads++) {
        const struct device *d = device_of(threads);
        struct stream *stream = d->stream_open();
        float *arena[4];
        for (int a = 0; a < 4; a++) {
            for (int64_t i = 0; i < COUNT; i++)
                host[i] = a == 2 ? fabsf(number_at(a, i)) : number_at(a, i);
            arena[a] = d->allocate(COUNT * sizeof *host);
            d->copy(stream, arena[a], host, COUNT * sizeof *host);
        }
        memset(out, GUARD_BYTE, BYTES);
        void *computed = d->allocate(BYTES);
        d->copy(stream, computed, out, BYTES);
        d->adamw(stream, arena[0], arena[1], arena[2], arena[3], computed, ranges, 2, &step);
        d->copy(stream, host, arena[0], COUNT * sizeof *host);
        d->copy(stream, out, computed, BYTES);
        d->stream_wait(stream);
        memcpy(first, out, sizeof first);
        bool same = memcmp(first, host, sizeof first) == 0, gaps = true;
        for (int64_t i = 0; i < SECOND; i++) {
            const float should_be = rounded_to(ELEMENT_BFLOAT16, host[FIRST + i]);
            same = same && memcmp(out + ranges[1].computed + 2 * i, (const char *)&should_be + 2, 2) == 0;
        }
        for (int i = 0; i < 8; i++)
            gaps = gaps && out[4 * FIRST + i] == GUARD_BYTE && out[BYTES - 1 - i] == GUARD_BYTE;
        ok(same && gaps, "AdamW with %d threads stores weights of both types for computations", threads);
        for (int a = 0; a < 4; a++)
            d->release(arena[a], COUNT * sizeof *host);
        d->release(computed, BYTES);
        d->stream_close(stream);
    }
    free(host), free(out);
}

int main(int argc, char **argv)
{
    const char *missing = device_choice_open(argv[argc - 1]);
    if (missing != NULL)
        return tap_skip_all(missing);
    test_statistics();
    test_squares(ELEMENT_FLOAT32);
    test_squares(ELEMENT_BFLOAT16);
    test_adamw_shards();
    test_adamw_computed();
    TEST_SHAPES("embedding", embedding, table_shapes);
    TEST_SHAPES("embedding's gradient", embedding_gradient, table_shapes);
    TEST_SHAPES("position's gradient", position_gradient, table_shapes);
    TEST_SHAPES("cross-entropy", loss, table_shapes);
    TEST_SHAPES("AdamW", adamw, adamw_shapes);
    return tap_done();
}
