#include "run/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "base/trace.h"

/* Repetitions: as many as fit into a short time, within bounds. */
#define FEWEST 5
#define SECONDS 0.25

/* Numbers that are different; they repeat in larger pieces of memory. */
#define DIFFERENT ((size_t)1 << 20)

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double time_once(const struct bench *bench, void (*run)(void *of), void *of)
{
    const struct device *device = bench->context.device;
    device->event_record(bench->context.stream, bench->begin);
    run(of);
    device->event_record(bench->context.stream, bench->end);
    return device->event_seconds(bench->end) - device->event_seconds(bench->begin);
}

double bench_median(const struct bench *bench, double *times, int count)
{
    qsort(times, (size_t)count, sizeof *times, compare);
    double median = times[count / 2];
    control_max(bench->job->world, &median, 1);
    return median;
}

double bench_time(const struct bench *bench, void (*run)(void *of), void *of)
{
    struct communicator *world = bench->job->world;
    control_barrier(world);
    time_once(bench, run, of); /* caches, pages, threads */
    double first = time_once(bench, run, of), times[BENCH_MOST];
    control_max(world, &first, 1);
    int count = first > 0 && SECONDS / first < BENCH_MOST ? (int)(SECONDS / first) : BENCH_MOST;
    if (count < FEWEST)
        count = FEWEST;
    control_barrier(world);
    for (int i = 0; i < count; i++)
        times[i] = time_once(bench, run, of);
    return bench_median(bench, times, count);
}

void *bench_random(const struct bench *bench, enum element element, size_t bytes)
{
    const struct device *device = bench->context.device;
    size_t all = (bytes / sizeof(float) + 1) * sizeof(float), count = all / element_bytes(element);
    size_t different = count < DIFFERENT ? count : DIFFERENT;
    float *host = allocate(different, sizeof *host), *floats = device->allocate(different * sizeof *host);
    char *memory = device->allocate(all);
    if (!memory || !floats)
        fatal("not enough memory for %zu bytes of a measurement", bytes);
    random_normal(random_key((uint64_t)bench->settings->run.seed, "bench"), 0, (int64_t)different, 0.02, host);
    device->copy(bench->context.stream, floats, host, different * sizeof *host);
    for (size_t done = 0, piece; done < count; done += piece) {
        piece = count - done < different ? count - done : different;
        device->convert(bench->context.stream, element, memory + done * element_bytes(element), floats, (int64_t)piece);
    }
    device->stream_wait(bench->context.stream);
    device->release(floats, different * sizeof *host);
    free(host);
    return memory;
}

void bench_release(const struct bench *bench, void *memory, size_t bytes)
{
    bench->context.device->release(memory, (bytes / sizeof(float) + 1) * sizeof(float));
}

double bench_round(double value)
{
    char digits[32];
    snprintf(digits, sizeof digits, "%.6g", value);
    return strtod(digits, NULL);
}

void bench_add(struct settings_reals *list, double value)
{
    double *items = allocate((size_t)list->count + 1, sizeof *items);
    if (list->count > 0)
        memcpy(items, list->items, (size_t)list->count * sizeof *items);
    items[list->count++] = bench_round(value);
    free(list->items);
    list->items = items;
}

void bench_add_number(struct settings_list *list, int value)
{
    int *items = allocate((size_t)list->count + 1, sizeof *items);
    if (list->count > 0)
        memcpy(items, list->items, (size_t)list->count * sizeof *items);
    items[list->count++] = value;
    free(list->items);
    list->items = items;
}
