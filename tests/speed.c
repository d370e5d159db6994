#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/random.h"
#include "tests/speed.h"

#define SETS_BYTES 256e6    /* sets together are larger than any cache */
#define BATCH_SECONDS 10e-3 /* of a batch */
#define LONG_SECONDS 0.2    /* a call that takes so long is timed once */

void speed_open(struct bench *bench)
{
    float *numbers = allocate(POOL, sizeof *numbers);
    uint16_t *halves = allocate(POOL, sizeof *halves);
    random_normal(random_key(1, "pool"), 0, POOL, 1.0, numbers);
    for (int64_t i = 0; i < POOL; i++) /* the last bytes of a float32 are its upper ones */
        memcpy(&halves[i], (const char *)&numbers[i] + 2, 2);
    bench->pool = bench->device->allocate(POOL * sizeof *numbers);
    bench->narrow_pool = bench->device->allocate(POOL * sizeof *halves);
    if (bench->pool == NULL || bench->narrow_pool == NULL)
        fatal("not enough memory");
    bench->device->copy(bench->stream, bench->pool, numbers, POOL * sizeof *numbers);
    bench->device->copy(bench->stream, bench->narrow_pool, halves, POOL * sizeof *halves);
    bench->device->stream_wait(bench->stream);
    free(numbers);
    free(halves);
}

void speed_close(struct bench *bench)
{
    bench->device->release(bench->pool, POOL * sizeof(float));
    bench->device->release(bench->narrow_pool, POOL * sizeof(uint16_t));
}

/* A pool that repeats: no two arrays begin alike. */
static void fill_numbers(struct bench *bench, enum element element, char *to, int64_t count)
{
    const size_t each = element_bytes(element);
    const char *pool = element == ELEMENT_FLOAT32 ? (const char *)bench->pool : bench->narrow_pool;
    bench->filled = (bench->filled + 700001) % POOL;
    int64_t from = bench->filled;
    for (int64_t done = 0, now; done < count; done += now) {
        now = count - done < POOL - from ? count - done : POOL - from;
        bench->device->copy(bench->stream, to + (size_t)done * each, pool + (size_t)from * each, (size_t)now * each);
        from = 0;
    }
}

/* Tokens as in text, whose frequency falls with their rank (Zipf), or all equally frequent. */
static int32_t token(const struct bench *bench, enum content content, int64_t index)
{
    const double uniform = (double)(random_bits(17, (uint64_t)index) >> 11) * 0x1p-53;
    const double words = (double)bench->size.vocabulary;
    return (int32_t)(content == TOKENS ? pow(words, uniform) - 1 : words * uniform);
}

static void fill_tokens(const struct bench *bench, enum content content, void *to, int64_t count)
{
    int32_t *tokens = allocate((size_t)count, sizeof *tokens);
    for (int64_t i = 0; i < count; i++)
        tokens[i] = token(bench, content, i);
    bench->device->copy(bench->stream, to, tokens, (size_t)count * sizeof *tokens);
    bench->device->stream_wait(bench->stream);
    free(tokens);
}

double speed_distinct(const struct bench *bench, enum content content)
{
    char *seen = allocate((size_t)bench->size.vocabulary, 1);
    int64_t distinct = 0;
    for (int64_t i = 0; i < bench->rows; i++) {
        const int32_t found = token(bench, content, i);
        distinct += !seen[found];
        seen[found] = 1;
    }
    free(seen);
    return (double)distinct;
}

static size_t array_bytes(const struct bench *bench, const struct operation *o, int i)
{
    const enum content content = o->arrays[i].content;
    const size_t each = content == NOTHING ? 0 : content == ELEMENTS ? element_bytes(bench->element) : 4;
    return (size_t)o->arrays[i].count * each;
}

void speed_open_set(struct bench *bench, const struct operation *o, void **set)
{
    for (int i = 0; i < ARRAYS; i++) {
        const enum content content = o->arrays[i].content;
        if (content == NOTHING)
            continue;
        set[i] = bench->device->allocate(array_bytes(bench, o, i));
        if (set[i] == NULL)
            fatal("not enough memory for %s", o->name);
        if (content == ELEMENTS || content == FLOATS)
            fill_numbers(bench, content == FLOATS ? ELEMENT_FLOAT32 : bench->element, set[i], o->arrays[i].count);
        else
            fill_tokens(bench, content, set[i], o->arrays[i].count);
    }
    if (o->prepare != NULL)
        o->prepare(bench, o, set);
}

void speed_close_set(struct bench *bench, const struct operation *o, void **set)
{
    for (int i = 0; i < ARRAYS; i++)
        bench->device->release(set[i], array_bytes(bench, o, i));
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double speed_median(double seconds[BATCHES])
{
    qsort(seconds, BATCHES, sizeof *seconds, compare);
    return seconds[BATCHES / 2];
}

double speed_batch(const struct bench *bench, const struct operation *o, void *sets[][ARRAYS], int count, int calls)
{
    const struct device *device = bench->device;
    device->stream_wait(bench->stream);
    device->event_record(bench->stream, bench->begin);
    for (int call = 0; call < calls; call++)
        o->run(bench, o, sets[call % count]);
    device->event_record(bench->stream, bench->end);
    return (device->event_seconds(bench->end) - device->event_seconds(bench->begin)) / calls;
}

double speed_time(struct bench *bench, const struct operation *o)
{
    void *sets[SETS][ARRAYS] = {{NULL}};
    double bytes = 1, seconds[BATCHES];
    for (int i = 0; i < ARRAYS; i++)
        bytes += (double)array_bytes(bench, o, i);
    const int count = (int)fmin(SETS, ceil(SETS_BYTES / bytes));
    for (int i = 0; i < count; i++)
        speed_open_set(bench, o, sets[i]);
    o->run(bench, o, sets[0]); /* loads code, chooses the way of a product */
    double median = speed_batch(bench, o, sets, count, count);
    if (median < LONG_SECONDS) {
        const int calls = (int)fmin(REPEATS, fmax(count, ceil(BATCH_SECONDS / median)));
        for (int i = 0; i < BATCHES; i++)
            seconds[i] = speed_batch(bench, o, sets, count, calls);
        median = speed_median(seconds);
    }
    for (int i = 0; i < count; i++)
        speed_close_set(bench, o, sets[i]);
    return median;
}

static void print_shape(char *text, size_t size, const struct operation *o)
{
    int written = snprintf(text, size, "%lld", (long long)o->rows);
    if (o->in > 0)
        written += snprintf(text + written, size - (size_t)written, " x %lld", (long long)o->in);
    if (o->out > 0)
        snprintf(text + written, size - (size_t)written, " x %lld", (long long)o->out);
}

void speed_measure(struct bench *bench, const struct operation *o)
{
    const double seconds = speed_time(bench, o);
    const double for_memory = o->bytes / bench->memory, for_matmul = o->operations / bench->matmul;
    char shape[80], name[80], arithmetic[16] = "";
    print_shape(shape, sizeof shape, o);
    snprintf(name, sizeof name, "%s%s%s%s", o->name, o->use != NULL ? ", " : "", o->use != NULL ? o->use : "",
             o->accumulate ? ", adding" : "");
    if (o->operations > 0)
        snprintf(arithmetic, sizeof arithmetic, "%.2f", o->operations / seconds / 1e12);
    printf("%-42s %-4s %-22s %10.2f %8.1f %8s %5.0f %% %s\n", name, bench->type, shape, seconds * 1e6,
           o->bytes / seconds / 1e9, arithmetic, 100 * fmax(for_memory, for_matmul) / seconds,
           for_memory > for_matmul ? "memory" : "arithmetic");
    fflush(stdout);
}
