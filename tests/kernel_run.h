/* One run of a kernel: arrays in the device's memory, filled with numbers that depend on their place alone, between
 * guards that tell of writes outside. The same test may so be run on another device, with other numbers of threads, at
 * other addresses and in either type of element, and its results be compared bit by bit. On the host all numbers are
 * float32. */
#ifndef TESTS_KERNEL_RUN_H
#define TESTS_KERNEL_RUN_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/kernels.h"
#include "tests/device_choice.h"
#include "tests/tap.h"

enum {
    ARRAYS = 16,
    GUARD = 64,
    GUARD_BYTE = 0x5a
};

struct array {
    enum element element;
    int64_t count;
    char *memory;          /* of the device: guard, offset, elements, guard */
    float *before, *after; /* the elements, on the host */
};

struct run {
    const struct device *device;
    struct stream *stream;
    enum element element; /* that the kernel works on */
    int64_t offset;       /* elements between the start of the memory and that of an array, beside the guard */
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

/* Half a unit in the last place of a number in bfloat16, which keeps 8 bits from the leading one on, and none below
 * 2^-133. */
static inline double half_unit(double x)
{
    int exponent;
    frexp(x, &exponent);
    return ldexp(0.5, (x == 0.0 || exponent < -125 ? -125 : exponent) - 8);
}

/* x rounded to an element, ties to even, by the definition. */
static inline float rounded_to(enum element element, float x)
{
    if (element == ELEMENT_FLOAT32 || !isfinite(x))
        return x;
    const double unit = 2.0 * half_unit((double)x);
    return (float)(rint((double)x / unit) * unit);
}

static inline size_t whole_bytes(const struct run *r, const struct array *a)
{
    return (size_t)(a->count + 2 * GUARD + r->offset) * element_bytes(a->element);
}

/* Where the first element lies in the whole. */
static inline size_t first_byte(const struct run *r, const struct array *a)
{
    return (size_t)(GUARD + r->offset) * element_bytes(a->element);
}

/* The next array, of the given numbers in the type `element`; returns its address for the kernel. */
static inline void *give_as(struct run *r, enum element element, int64_t count, const void *numbers)
{
    struct array *a = &r->array[r->arrays++];
    *a = (struct array){.element = element, .count = count};
    const size_t size = element_bytes(element), whole = whole_bytes(r, a), begin = first_byte(r, a);
    a->memory = r->device->allocate(whole);
    a->before = allocate((size_t)count + 1, sizeof(float));
    a->after = allocate((size_t)count + 1, sizeof(float));
    memcpy(a->before, numbers, (size_t)count * sizeof(float));
    char *host = allocate(whole, 1);
    memset(host, GUARD_BYTE, whole);
    for (size_t i = 0; i < (size_t)count; i++) { /* the last bytes of a float32 are its upper ones */
        if (element == ELEMENT_BFLOAT16)
            a->before[i] = rounded_to(element, a->before[i]);
        memcpy(host + begin + i * size, (const char *)&a->before[i] + sizeof(float) - size, size);
    }
    r->device->copy(r->stream, a->memory, host, whole);
    r->device->stream_wait(r->stream);
    free(host);
    return a->memory + begin;
}

/* The next array, with the given elements of 4 bytes. */
static inline void *give(struct run *r, int64_t count, const void *elements)
{
    return give_as(r, ELEMENT_FLOAT32, count, elements);
}

/* The next array, of numbers between -scale and scale. */
static inline void *give_numbers_as(struct run *r, enum element element, int64_t count, double scale)
{
    float *numbers = allocate((size_t)count + 1, sizeof(float));
    for (int64_t i = 0; i < count; i++)
        numbers[i] = number_at(r->arrays, i) * (float)scale;
    void *given = give_as(r, element, count, numbers);
    free(numbers);
    return given;
}

/* Elements of rows that begin `pitch` elements after one another; between them is NaN. */
static inline void *give_rows(struct run *r, int64_t rows, int64_t width, int64_t pitch, double scale)
{
    float *numbers = allocate((size_t)(rows * pitch) + 1, sizeof(float));
    for (int64_t i = 0; i < rows * pitch; i++)
        numbers[i] = i % pitch < width ? number_at(r->arrays, i) * (float)scale : NAN;
    void *given = give_as(r, r->element, rows * pitch, numbers);
    free(numbers);
    return given;
}

/* In float32. */
static inline float *give_numbers(struct run *r, int64_t count, double scale)
{
    return give_numbers_as(r, ELEMENT_FLOAT32, count, scale);
}

/* In the type that the kernel works on. */
static inline void *give_elements(struct run *r, int64_t count, double scale)
{
    return give_numbers_as(r, r->element, count, scale);
}

/* Fetches all arrays back when the kernel is done. */
static inline void take_back(struct run *r)
{
    for (int i = 0; i < r->arrays; i++) {
        struct array *a = &r->array[i];
        const size_t whole = whole_bytes(r, a), begin = first_byte(r, a), size = element_bytes(a->element);
        char *host = allocate(whole, 1);
        r->device->copy(r->stream, host, a->memory, whole);
        r->device->stream_wait(r->stream);
        for (size_t j = 0; j < whole; j++)
            if ((j < begin || j >= begin + (size_t)a->count * size) && host[j] != GUARD_BYTE)
                r->inside = false;
        for (size_t j = 0; j < (size_t)a->count; j++)
            memcpy((char *)&a->after[j] + sizeof(float) - size, host + begin + j * size, size);
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

/* The larger of two errors; NaN is larger than all. */
static inline double worse(double a, double b)
{
    return isnan(a) || isnan(b) ? INFINITY : fmax(a, b);
}

/* Keeps the largest error. */
static inline void note_error(struct run *r, int array, int64_t element, double expected, double error)
{
    if (!(error <= r->worst)) {
        r->worst = isnan(error) ? INFINITY : error;
        r->worst_array = array;
        r->worst_element = element;
        r->found = (double)r->array[array].after[element];
        r->expected = expected;
    }
}

/* Compares an element with what it should be; the tolerance is that of float32 arithmetic, beside a last rounding. */
static inline void expect(struct run *r, int array, int64_t element, double expected, double tolerance)
{
    const struct array *a = &r->array[array];
    const double rounding = a->element == ELEMENT_BFLOAT16 ? half_unit(fabs(expected) + tolerance) : 0.0;
    note_error(r, array, element, expected, fabs((double)a->after[element] - expected) / (tolerance + rounding));
}

/* An element that must be this very number. */
static inline void expect_equal(struct run *r, int array, int64_t element, float expected)
{
    note_error(r, array, element, (double)expected, r->array[array].after[element] == expected ? 0.0 : INFINITY);
}

/* What lies between the rows must be NaN as it was. */
static inline void expect_gaps(struct run *r, int array, int64_t width, int64_t pitch)
{
    for (int64_t i = 0; i < r->array[array].count; i++)
        if (i % pitch >= width)
            note_error(r, array, i, (double)NAN, isnan(r->array[array].after[i]) ? 0.0 : INFINITY);
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
        r->device->release(a->memory, whole_bytes(r, a));
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

/* Whether bits may depend on how arrays are aligned up to 16 bytes, as those of a library's products. */
static bool bits_of_alignment;

/* Runs the test over `count` shapes of `numbers` numbers each, at several addresses: the bits must be those of the
 * first at all of them, or at the second alone, which is aligned alike. */
static inline void test_shapes_with(const char *name, test_fn *test, const int64_t *shapes, int count, int numbers,
                                    enum element element, int threads)
{
    const char *type = element == ELEMENT_FLOAT32 ? "float32" : "bfloat16";
    const struct device *device = device_of(threads);
    struct stream *stream = device->stream_open();
    struct run worst = {.worst = 0.0};
    const int64_t offsets[] = {0, 16 / (int64_t)element_bytes(element), 3};
    bool same = true, inside = true;
    for (int i = 0; i < count; i++) {
        struct run runs[3];
        for (int at = 0; at < 3; at++) {
            runs[at] = (struct run){
                .device = device, .stream = stream, .element = element, .offset = offsets[at], .inside = true};
            test(&runs[at], shapes + i * numbers);
            inside = inside && runs[at].inside;
            if (runs[at].worst > worst.worst)
                worst = runs[at];
        }
        same = same && same_bits(&runs[0], &runs[1]) && (bits_of_alignment || same_bits(&runs[0], &runs[2]));
        for (int at = 0; at < 3; at++)
            release_arrays(&runs[at]);
    }
    device->stream_close(stream);
    if (!ok(worst.worst <= 1.0, "%s, %s, %d threads: agrees with the reference (to %.2g of the tolerance)", name, type,
            threads, worst.worst))
        tap_note("array %d [%lld] is %.9g, not %.9g", worst.worst_array, (long long)worst.worst_element, worst.found,
                 worst.expected);
    ok(inside, "%s, %s, %d threads: writes nothing outside its arrays", name, type, threads);
    ok(same, "%s, %s, %d threads: the same bits again at another address", name, type, threads);
}

/* In both types of element, for each number of threads. */
static inline void test_shapes(const char *name, test_fn *test, const int64_t *shapes, int count, int numbers)
{
    for (int threads = fewest_threads(); threads <= most_threads(); threads++) {
        test_shapes_with(name, test, shapes, count, numbers, ELEMENT_FLOAT32, threads);
        test_shapes_with(name, test, shapes, count, numbers, ELEMENT_BFLOAT16, threads);
    }
}

#define TEST_SHAPES(name, test, shapes)                                                   \
    test_shapes(name, test, &(shapes)[0][0], (int)(sizeof(shapes) / sizeof((shapes)[0])), \
                (int)(sizeof((shapes)[0]) / sizeof((shapes)[0][0])))

#endif
