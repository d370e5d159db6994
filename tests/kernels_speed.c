/* How fast the operations of the device table are at the shapes of a model.
 *
 *     kernels_speed [cpu|cuda] [fp32|tf32|bf16] [gpt2|large|tiny]     (default: cuda bf16 gpt2)
 *
 * Each line has the time of one call (the median of several batches, by the device's events), the speed at which the
 * bytes are moved that must be moved, each once, that of the arithmetic, and the share of the time that the slower of
 * both would need at this device's limits, which are measured first: a large copy, and a large product of the same
 * type. Calls take turns among so many sets of arrays that none is still in a cache. All numbers are random, for the
 * power that products take, and so their speed, depends on them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/trace.h"
#include "tests/speed.h"

#define WARM_SECONDS 0.3 /* before the first measurement: clocks go up */
#define LAUNCHES 100

static const struct size sizes[] = {
    {"gpt2", 8, 1024, 768, 12, 3072, 50304, 12, 50257, 8192, 2048, 1 << 27},
    {"large", 4, 2048, 4096, 32, 16384, 32000, 1, 0, 8192, 2048, 1 << 27},
    {"tiny", 2, 17, 48, 3, 96, 136, 2, 131, 64, 64, 1 << 14},
};

static void measure_limits(struct bench *bench)
{
    const int64_t side = bench->device->host_memory ? bench->size.cpu_square : bench->size.square, n = side * side;
    const struct operation product = {.name = "linear",
                                      .run = speed_linear,
                                      .pitch = side,
                                      .rows = side,
                                      .in = side,
                                      .out = side,
                                      .arrays = {{ELEMENTS, n}, {ELEMENTS, n}, {ELEMENTS, n}}};
    const int64_t copied = bench->size.copied;
    const struct operation copy = {
        .name = "copy", .run = speed_copy, .rows = copied, .arrays = {{FLOATS, copied}, {FLOATS, copied}}};
    const double begin = clock_seconds();
    do
        bench->matmul = 2.0 * (double)n * (double)side / speed_time(bench, &product);
    while (clock_seconds() - begin < WARM_SECONDS);
    bench->memory = 8.0 * (double)copied / speed_time(bench, &copy);
    printf("limits: copy of %.0f MB: %.1f GB/s; %s linear of %lld x %lld x %lld: %.3g TFLOP/s\n", (double)copied * 4e-6,
           bench->memory / 1e9, bench->type, (long long)side, (long long)side, (long long)side, bench->matmul / 1e12);
}

/* What a call costs that has next to nothing to do. */
static void measure_launches(struct bench *bench)
{
    const struct operation tiny = {
        .name = "gelu", .run = speed_gelu, .rows = 1, .in = 64, .arrays = {{ELEMENTS, 64}, {ELEMENTS, 64}}};
    void *set[1][ARRAYS] = {{NULL}};
    speed_open_set(bench, &tiny, set[0]);
    double queued[BATCHES], done[BATCHES];
    for (int i = 0; i < BATCHES; i++) {
        done[i] = speed_batch(bench, &tiny, set, 1, LAUNCHES);
        bench->device->stream_wait(bench->stream);
        const double begin = clock_seconds();
        for (int call = 0; call < LAUNCHES; call++)
            tiny.run(bench, &tiny, set[0]);
        queued[i] = (clock_seconds() - begin) / LAUNCHES;
        bench->device->stream_wait(bench->stream);
    }
    speed_close_set(bench, &tiny, set[0]);
    printf("launches: %d gelus of 64 numbers take %.2f us each, and the host %.2f us to queue each\n", LAUNCHES,
           speed_median(done) * 1e6, speed_median(queued) * 1e6);
}

static void measure_all(struct bench *bench)
{
    measure_limits(bench);
    measure_launches(bench);
    printf("%-42s %-4s %-22s %10s %8s %8s %7s\n", "operation", "type", "shape", "us", "GB/s", "TFLOP/s", "of limit");
    speed_products(bench);
    speed_attention(bench);
    speed_rows(bench);
    speed_vocabulary(bench);
    speed_optimizer(bench);
}

static void open_device(struct bench *bench, bool cpu, bool tf32)
{
    struct device_identity identity = {.name = "CPU"};
    struct err err;
    bench->device = cpu ? device_cpu((int)sysconf(_SC_NPROCESSORS_ONLN)) : device_cuda(0, 1, tf32, &identity, &err);
    if (bench->device == NULL) {
        fprintf(stderr, "kernels_speed: %s\n", err.text);
        exit(2);
    }
    printf("device: %s; %s\n", identity.name, cpu ? device_cpu_libraries() : device_cuda_libraries());
    bench->stream = bench->device->stream_open();
    bench->begin = bench->device->event_open();
    bench->end = bench->device->event_open();
}

static void close_device(struct bench *bench)
{
    bench->device->event_close(bench->begin);
    bench->device->event_close(bench->end);
    bench->device->stream_close(bench->stream);
}

int main(int argc, char **argv)
{
    struct bench bench = {.type = "bf16", .size = sizes[0]};
    bool cpu = false;
    for (int i = 1; i < argc; i++) {
        bool known = strcmp(argv[i], "cpu") == 0 || strcmp(argv[i], "cuda") == 0;
        cpu = known ? strcmp(argv[i], "cpu") == 0 : cpu;
        for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
            if (strcmp(argv[i], sizes[k].name) == 0) {
                bench.size = sizes[k];
                known = true;
            }
        for (size_t k = 0; k < 3; k++)
            if (strcmp(argv[i], ((const char *[]){"fp32", "tf32", "bf16"})[k]) == 0) {
                bench.type = argv[i];
                known = true;
            }
        if (!known) {
            fprintf(stderr, "usage: kernels_speed [cpu|cuda] [fp32|tf32|bf16] [gpt2|large|tiny]\n");
            return 2;
        }
    }
    bench.element = strcmp(bench.type, "bf16") == 0 ? ELEMENT_BFLOAT16 : ELEMENT_FLOAT32;
    bench.rows = bench.size.sequences * bench.size.length;
    open_device(&bench, cpu, strcmp(bench.type, "tf32") == 0);
    speed_open(&bench);
    measure_all(&bench);
    speed_close(&bench);
    close_device(&bench);
    return 0;
}
