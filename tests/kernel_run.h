/* One run of a kernel: arrays in the device's memory, filled with numbers that depend on their place alone, between
 * guards that tell of writes outside. The same test may so be run on another device, with other numbers of threads and
 * at other addresses, and its results be compared bit by bit. */
#ifndef TESTS_KERNEL_RUN_H
#define TESTS_KERNEL_RUN_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/kernels.h"
#include "tests/tap.h"

enum {
    ARRAYS = 16,
    GUARD = 64
};

struct array {
    int64_t count;
    float *memory;         /* of the device: guard, offset, elements, guard */
    float *before, *after; /* the elements, on the host */
};

struct run {
    const struct device *device;
    struct stream *stream;
    int64_t offset; /* elements between the start of the memory and that of an array, beside the guard */
    int arrays;
    struct array array[ARRAYS];
    bool inside;  /* no guard was overwritten */
    double worst; /* largest error in units of its tolerance, and where it is */
    int worst_array;
    int64_t worst_element;
    double found, expected;
};

/* A number between -1 and 1. */
static inline float number_at(int array, int64_t element)
{
    uint64_t bits = (uint64_t)(array + 1) * 0x9E3779B97F4A7C15u + (uint64_t)element * 0xD1B54A32D192ED03u;
    bits ^= bits >> 31;
    bits *= 0xBF58476D1CE4E5B9u;
    bits ^= bits >> 29;
    return (float)((double)(bits >> 40) / (1 << 23) - 1.0);
}

static inline int64_t whole_count(const struct run *r, int64_t count)
{
    return count + 2 * GUARD + r->offset;
}

/* The next array, with the given elements; returns its address for the kernel. */
static inline void *give(struct run *r, int64_t count, const void *elements)
{
    struct array *a = &r->array[r->arrays++];
    const int64_t whole = whole_count(r, count);
    const size_t bytes = (size_t)count * sizeof(float);
    float *host = allocate((size_t)whole, sizeof(float));
    for (int64_t i = 0; i < whole; i++)
        host[i] = 12345.0f;
    memcpy(host + GUARD + r->offset, elements, bytes);
    *a = (struct array){.count = count, .memory = r->device->allocate((size_t)whole * sizeof(float))};
    a->before = allocate((size_t)count + 1, sizeof(float));
    a->after = allocate((size_t)count + 1, sizeof(float));
    memcpy(a->before, elements, bytes);
    r->device->copy(r->stream, a->memory, host, (size_t)whole * sizeof(float));
    r->device->stream_wait(r->stream);
    free(host);
    return a->memory + GUARD + r->offset;
}

/* The next array, of numbers between -scale and scale. */
static inline float *give_numbers(struct run *r, int64_t count, double scale)
{
    float *numbers = allocate((size_t)count + 1, sizeof(float));
    for (int64_t i = 0; i < count; i++)
        numbers[i] = number_at(r->arrays, i) * (float)scale;
    float *given = give(r, count, numbers);
    free(numbers);
    return given;
}

/* Fetches all arrays back when the kernel is done. */
static inline void take_back(struct run *r)
{
    for (int i = 0; i < r->arrays; i++) {
        struct array *a = &r->array[i];
        const int64_t whole = whole_count(r, a->count), begin = GUARD + r->offset;
        float *host = allocate((size_t)whole, sizeof(float));
        r->device->copy(r->stream, host, a->memory, (size_t)whole * sizeof(float));
        r->device->stream_wait(r->stream);
        for (int64_t j = 0; j < whole; j++)
            if ((j < begin || j >= begin + a->count) && host[j] != 12345.0f)
                r->inside = false;
        memcpy(a->after, host + begin, (size_t)a->count * sizeof(float));
        free(host);
    }
}

/* An array as it was before the kernel, in float64; the caller frees it. */
static inline double *before(const struct run *r, int array)
{
    double *copy = allocate((size_t)r->array[array].count + 1, sizeof(double));
    for (int64_t i = 0; i < r->array[array].count; i++)
        copy[i] = (double)r->array[array].before[i];
    return copy;
}

/* Compares an element with what it should be. */
static inline void expect(struct run *r, int array, int64_t element, double expected, double tolerance)
{
    const double error = fabs((double)r->array[array].after[element] - expected) / tolerance;
    if (!(error <= r->worst)) {
        r->worst = isnan(error) ? INFINITY : error;
        r->worst_array = array;
        r->worst_element = element;
        r->found = (double)r->array[array].after[element];
        r->expected = expected;
    }
}

/* Compares a whole array. */
static inline void expect_all(struct run *r, int array, const double *expected, double tolerance)
{
    for (int64_t i = 0; i < r->array[array].count; i++)
        expect(r, array, i, expected[i], tolerance);
}

static inline void release_arrays(struct run *r)
{
    for (int i = 0; i < r->arrays; i++) {
        struct array *a = &r->array[i];
        r->device->release(a->memory, (size_t)whole_count(r, a->count) * sizeof(float));
        free(a->before);
        free(a->after);
    }
}

/* A test runs a kernel at a shape, then calls take_back and expect. */
typedef void test_fn(struct run *r, const int64_t *shape);

static inline bool same_bits(const struct run *a, const struct run *b)
{
    bool same = a->arrays == b->arrays;
    for (int i = 0; same && i < a->arrays; i++)
        same = memcmp(a->array[i].after, b->array[i].after, (size_t)a->array[i].count * sizeof(float)) == 0;
    return same;
}

/* Runs the test over `count` shapes of `numbers` numbers each, at two addresses, for each number of threads. */
static inline void test_shapes(const char *name, test_fn *test, const int64_t *shapes, int count, int numbers)
{
    for (int threads = 1; threads <= 3; threads++) {
        const struct device *device = device_cpu(threads);
        struct stream *stream = device->stream_open();
        struct run worst = {.worst = 0.0};
        bool same = true, inside = true;
        for (int i = 0; i < count; i++) {
            struct run runs[2];
            for (int at = 0; at < 2; at++) {
                runs[at] = (struct run){.device = device, .stream = stream, .offset = 3 * at, .inside = true};
                test(&runs[at], shapes + i * numbers);
                inside = inside && runs[at].inside;
                if (runs[at].worst > worst.worst)
                    worst = runs[at];
            }
            same = same && same_bits(&runs[0], &runs[1]);
            release_arrays(&runs[0]);
            release_arrays(&runs[1]);
        }
        device->stream_close(stream);
        if (!ok(worst.worst <= 1.0, "%s, %d threads: agrees with the reference (to %.2g of the tolerance)", name,
                threads, worst.worst))
            tap_note("array %d [%lld] is %.9g, not %.9g", worst.worst_array, (long long)worst.worst_element,
                     worst.found, worst.expected);
        ok(inside, "%s, %d threads: writes nothing outside its arrays", name, threads);
        ok(same, "%s, %d threads: the same bits again at another address", name, threads);
    }
}

#define TEST_SHAPES(name, test, shapes)                                                   \
    test_shapes(name, test, &(shapes)[0][0], (int)(sizeof(shapes) / sizeof((shapes)[0])), \
                (int)(sizeof((shapes)[0]) / sizeof((shapes)[0][0])))

#endif
