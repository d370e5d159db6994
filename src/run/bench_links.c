/* What lies between ranks, and between ranks and files. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "base/trace.h"
#include "io/file.h"
#include "parallel/agree.h"
#include "plan/footprint.h"
#include "run/bench.h"

#define TAG 7
#define SMALLEST_MESSAGE 1024
#define LARGEST_MESSAGE ((size_t)16 << 20)
#define SMALLEST_SUM 4096
#define FILE_BYTES (INT64_C(32) << 20)

/* An exchange with the neighbour; the last of an odd number of ranks has none and only keeps time. */
struct exchange {
    const struct bench *bench;
    int peer; /* -1: none */
    char *mine, *theirs;
    size_t bytes;
    void *x, *w, *y; /* a product to be computed meanwhile */
    int64_t width;
    int products;
};

/* There and back again. */
static void ping_pong(void *of)
{
    const struct exchange *e = of;
    struct communicator *comm = e->bench->messages;
    if (e->peer < 0)
        return;
    for (int turn = 0; turn < 2; turn++) {
        bool send = comm->rank % 2 == turn;
        comm->ops->wait(send ? comm->ops->send(comm, e->mine, e->bytes, e->peer, TAG)
                             : comm->ops->receive(comm, e->theirs, e->bytes, e->peer, TAG));
    }
}

static void compute(void *of)
{
    const struct exchange *e = of;
    const struct context *context = &e->bench->context;
    for (int i = 0; i < e->products; i++) {
        context->device->linear(context->stream, e->bench->element, e->y, NULL, e->x, e->w, NULL, e->width, e->width,
                                e->width, e->width);
        grid_progress(&e->bench->grid);
    }
}

/* Both directions at once, and what is computed behind them. */
static void exchange_behind(void *of)
{
    const struct exchange *e = of;
    struct communicator *comm = e->bench->messages;
    struct transfer *receive = NULL, *send = NULL;
    if (e->peer >= 0) {
        receive = comm->ops->receive(comm, e->theirs, e->bytes, e->peer, TAG);
        send = comm->ops->send(comm, e->mine, e->bytes, e->peer, TAG);
    }
    compute(of);
    if (e->peer >= 0) {
        comm->ops->wait(receive);
        comm->ops->wait(send);
    }
}

/* How much of a large message's time passes behind computations that take somewhat longer. */
static double overlap_of(struct exchange *e)
{
    e->products = 0;
    double alone = bench_time(e->bench, exchange_behind, e);
    e->products = 1;
    double product = bench_time(e->bench, compute, e);
    e->products = 1 + (int)(1.5 * alone / product);
    double computing = bench_time(e->bench, compute, e), both = bench_time(e->bench, exchange_behind, e);
    return fmin(1, fmax(0.01, (alone + computing - both) / alone));
}

/* Bytes that cross the boundary in the middle of the model, for a microbatch; the same on ranks whose shares differ. */
static size_t message_bytes(const struct bench *bench)
{
    const struct declaration *middle = &bench->model.declarations[bench->model.layer_count / 2 - 1];
    struct circumstances circumstances = bench->context.circumstances;
    size_t bytes = 0;
    circumstances.t = 0;
    for (int i = 0; i < middle->after_count; i++)
        bytes += boundary_bytes(&middle->after[i], &circumstances, circumstances.sequences);
    return bytes < LARGEST_MESSAGE ? bytes : LARGEST_MESSAGE;
}

void bench_messages(struct bench *bench)
{
    struct machine_settings *m = &bench->figures->machine;
    const struct communicator *world = bench->job->world;
    if (world->size < 2)
        return;
    int peer = world->rank ^ 1;
    struct exchange e = {.bench = bench, .peer = peer < world->size ? peer : -1, .width = 128};
    const size_t square = (size_t)(e.width * e.width) * element_bytes(bench->element);
    e.mine = bench_random(bench, bench->element, LARGEST_MESSAGE);
    e.theirs = bench_random(bench, bench->element, LARGEST_MESSAGE);
    e.x = bench_random(bench, bench->element, square);
    e.w = bench_random(bench, bench->element, square);
    e.y = bench_random(bench, bench->element, square);
    for (e.bytes = SMALLEST_MESSAGE; e.bytes <= LARGEST_MESSAGE; e.bytes *= 4) {
        bench_add(&m->message_bytes, (double)e.bytes);
        bench_add(&m->message_us, 1e6 * bench_time(bench, ping_pong, &e) / 2);
    }
    int last = m->message_us.count - 1;
    m->link_latency_us = m->message_us.items[0];
    m->link_gbs = bench_round((m->message_bytes.items[last] - m->message_bytes.items[0]) /
                              fmax(m->message_us.items[last] - m->message_us.items[0], 1e-3) / 1e3);
    e.bytes = message_bytes(bench);
    m->message_overlap = bench_round(overlap_of(&e));
    bench_release(bench, e.mine, LARGEST_MESSAGE);
    bench_release(bench, e.theirs, LARGEST_MESSAGE);
    bench_release(bench, e.x, square);
    bench_release(bench, e.w, square);
    bench_release(bench, e.y, square);
}

struct summing {
    struct communicator *sums;
    enum element element; /* of what tensor ranks sum; gradients are float32 */
    void *buffer;
    void *scratch;
    size_t bytes;
};

static void data_sum(void *of)
{
    const struct summing *s = of;
    const void *parts[] = {s->buffer};
    s->sums->ops->wait(s->sums->ops->sum_begin(s->sums, ELEMENT_FLOAT32, s->buffer, parts,
                                               (int64_t)(s->bytes / sizeof(float)), communicator_one_each(s->sums),
                                               s->scratch));
}

static void tensor_sum(void *of)
{
    const struct summing *s = of;
    s->sums->ops->all_reduce(s->sums, s->element, s->buffer, (int64_t)(s->bytes / element_bytes(s->element)),
                             s->scratch);
}

void bench_sums(struct bench *bench)
{
    struct machine_settings *m = &bench->figures->machine;
    struct communicator *sums = bench->sums;
    const size_t bytes = BUCKET_ELEMENTS * sizeof(float);
    if (sums->size < 2)
        return;
    /* elements of fewer bytes need no more */
    size_t scratch = sums->ops->sum_scratch(sums, ELEMENT_FLOAT32, BUCKET_ELEMENTS, communicator_one_each(sums));
    struct summing s = {.sums = sums,
                        .element = bench->element,
                        .buffer = bench_random(bench, bench->element, bytes),
                        .scratch = bench_random(bench, bench->element, scratch)};
    bench->context.device->zero(bench->context.stream, s.buffer, bytes); /* so that sums of sums stay finite */
    m->sum_ranks = sums->size;
    for (size_t size = SMALLEST_SUM; size <= bytes; size *= 4) {
        s.bytes = size;
        bench_add(&m->sum_bytes, (double)size);
        bench_add(&m->data_sum_us, 1e6 * bench_time(bench, data_sum, &s));
        bench_add(&m->tensor_sum_us, 1e6 * bench_time(bench, tensor_sum, &s));
    }
    bench_release(bench, s.buffer, bytes);
    bench_release(bench, s.scratch, scratch);
}

/* Writes, flushes and reads one file, in seconds. */
static int time_file(const char *path, char *data, double *write, double *read, struct err *err)
{
    FILE *empty = fopen(path, "w");
    if (!empty || fclose(empty) != 0)
        return err_set(err, "cannot write %s: %s", path, strerror(errno));
    double begin = clock_seconds();
    struct file *file = file_open(path, true, err);
    int result = file && file_write(file, 0, data, FILE_BYTES, err) == 0 && file_flush(file, err) == 0 ? 0 : -1;
    file_close(file);
    *write = clock_seconds() - begin;
    begin = clock_seconds();
    file = result == 0 ? file_open(path, false, err) : NULL;
    result = file && file_read(file, 0, data, FILE_BYTES, err) == 0 ? 0 : -1;
    file_close(file);
    *read = clock_seconds() - begin;
    struct err later;
    if (file_remove(path, result == 0 ? err : &later) < 0)
        return -1;
    return result;
}

int bench_files(struct bench *bench, struct err *err)
{
    const struct communicator *world = bench->job->world;
    struct text path = {0};
    text_add(&path, "%s/bench-%d.bin", bench->settings->run.output, world->rank);
    char *data = allocate((size_t)FILE_BYTES, 1);
    random_normal(random_key((uint64_t)bench->settings->run.seed, "file"), 0, FILE_BYTES / (int64_t)sizeof(float), 1,
                  (float *)(void *)data);
    double seconds[2];
    control_barrier(bench->job->world);
    int result = agree(bench->job->world, time_file(text_string(&path), data, &seconds[0], &seconds[1], err), err);
    if (result == 0) {
        control_max(bench->job->world, seconds, 2);
        bench->figures->machine.write_gbs = bench_round(1e-9 * (double)FILE_BYTES * world->size / seconds[0]);
        bench->figures->machine.read_gbs = bench_round(1e-9 * (double)FILE_BYTES * world->size / seconds[1]);
    }
    free(data);
    text_fini(&path);
    return result;
}
