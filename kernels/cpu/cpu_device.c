#include <errno.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/trace.h"
#include "kernels/cpu/cpu.h"

/* An event is the moment when it was recorded: the work before it had ended by then. */
struct event {
    double seconds;
};

/* Large pages where the system grants them: matmuls walk over matrices with strides of more than a small page. */
#define LARGE_PAGE ((size_t)2 << 20)

static void *device_allocate(size_t bytes)
{
    void *memory;
    if (posix_memalign(&memory, bytes >= LARGE_PAGE ? LARGE_PAGE : 4096, bytes > 0 ? bytes : 1) != 0)
        return NULL;
    /* A hint: refused, the memory is as good. What lies behind the last whole large page stays in small ones, so that
     * no more is taken than is asked for. */
    if (bytes >= LARGE_PAGE)
        (void)madvise(memory, bytes / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE);
    return memory;
}

static void device_release(void *memory, size_t bytes)
{
    (void)bytes;
    free(memory);
}

static void device_copy(struct stream *stream, void *to, const void *from, size_t bytes)
{
    (void)stream;
#pragma omp parallel if (bytes >= 4 * CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share((int64_t)bytes, 4096);
        if (own.end > own.begin)
            memcpy((char *)to + own.begin, (const char *)from + own.begin, (size_t)(own.end - own.begin));
    }
}

static void device_zero(struct stream *stream, void *memory, size_t bytes)
{
    (void)stream;
#pragma omp parallel if (bytes >= 4 * CPU_PARALLEL_FROM)
    {
        const struct share own = cpu_share((int64_t)bytes, 4096);
        if (own.end > own.begin)
            memset((char *)memory + own.begin, 0, (size_t)(own.end - own.begin));
    }
}

static size_t memory_size(void)
{
    return (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
}

static struct stream *stream_open(void)
{
    return allocate(1, sizeof(struct stream));
}

static void stream_close(struct stream *stream)
{
    if (stream == NULL)
        return;
    free(stream->scratch);
    free(stream);
}

static void stream_wait(struct stream *stream)
{
    (void)stream;
}

static struct event *event_open(void)
{
    return allocate(1, sizeof(struct event));
}

static void event_close(struct event *event)
{
    free(event);
}

static void event_record(struct stream *stream, struct event *event)
{
    (void)stream;
    event->seconds = clock_seconds();
}

static void event_wait(struct stream *stream, struct event *event)
{
    (void)stream;
    (void)event;
}

static bool event_done(struct event *event)
{
    (void)event;
    return true;
}

static double event_seconds(struct event *event)
{
    return event->seconds;
}

float *cpu_scratch(struct stream *stream, int64_t count)
{
    const size_t bytes = (size_t)count * sizeof(float);
    if (bytes > stream->scratch_bytes) {
        free(stream->scratch);
        stream->scratch = device_allocate(bytes);
        if (stream->scratch == NULL)
            fatal("no memory for %zu bytes of sums", bytes);
        stream->scratch_bytes = bytes;
    }
    return stream->scratch;
}

struct share cpu_part(int64_t count, int64_t unit, int part, int parts)
{
    const int64_t units = (count + unit - 1) / unit;
    const int64_t begin = units * part / parts * unit, end = units * (part + 1) / parts * unit;
    return (struct share){begin < count ? begin : count, end < count ? end : count};
}

struct share cpu_share(int64_t count, int64_t unit)
{
    return cpu_part(count, unit, omp_get_thread_num(), omp_get_num_threads());
}

static const struct device table = {
    .name = "cpu",
    .host_memory = true,
    .allocate = device_allocate,
    .release = device_release,
    .host_allocate = device_allocate,
    .host_release = device_release,
    .copy = device_copy,
    .zero = device_zero,
    .memory_size = memory_size,
    .memory_taken = memory_resident,
    .memory_peak = memory_peak,
    .stream_open = stream_open,
    .stream_close = stream_close,
    .stream_wait = stream_wait,
    .event_open = event_open,
    .event_close = event_close,
    .event_record = event_record,
    .event_wait = event_wait,
    .event_done = event_done,
    .event_seconds = event_seconds,
    .linear = cpu_linear,
    .linear_input_gradient = cpu_linear_input_gradient,
    .linear_weight_gradient = cpu_linear_weight_gradient,
    .convert = cpu_convert,
    .add_residual = cpu_add_residual,
    .gelu = cpu_gelu,
    .gelu_gradient = cpu_gelu_gradient,
    .column_sums = cpu_column_sums,
    .norm = cpu_norm,
    .add_residual_norm = cpu_add_residual_norm,
    .norm_gradient = cpu_norm_gradient,
    .attention = cpu_attention,
    .attention_gradient = cpu_attention_gradient,
    .attention_workspace = cpu_attention_workspace,
    .embedding = cpu_embedding,
    .embedding_gradient = cpu_embedding_gradient,
    .position_gradient = cpu_position_gradient,
    .cross_entropy_statistics = cpu_cross_entropy_statistics,
    .cross_entropy = cpu_cross_entropy,
    .squares = cpu_squares,
    .adamw = cpu_adamw,
};

const struct device *device_cpu(int threads)
{
    cpu_matmul_open();
    omp_set_dynamic(0); /* the bits of some results follow from the number of threads */
    omp_set_num_threads(threads);
    return &table;
}
