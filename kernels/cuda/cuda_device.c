/* The device behind the table: its choice, memory, streams and events. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/trace.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/cuda_library.h"

/* The device's clock is tied to the host's by anchors: events whose time on the host is known. The time between two
 * events is told in float32, so anchors are renewed before it loses the microseconds. */
#define ANCHOR_SECONDS 10.0
#define ANCHORS 512

struct anchor {
    cudaEvent_t mark;
    double seconds; /* clock_seconds() */
};

struct event {
    cudaEvent_t mark;
    int64_t anchor; /* the one before it */
};

/* Of this process: one device, chosen once. */
static struct {
    bool tf32;
    size_t most;       /* bytes of memory that were seen taken */
    cudaStream_t idle; /* for anchors: nothing else runs there */
    struct anchor anchors[ANCHORS];
    int64_t anchored; /* anchors so far; the last ones are kept */
} chosen;

bool cuda_tf32(void)
{
    return chosen.tf32;
}

void cuda_check(cudaError_t status, const char *call, const char *file, int line)
{
    if (status != cudaSuccess)
        fatal("%s:%d: %s: %s (%s)", file, line, call, cudaGetErrorString(status), cudaGetErrorName(status));
}

/* The host's time of a mark is known as well as the host is quick about it, so it tries again where it was held up. */
static void drop_anchor(void)
{
    enum {
        TRIES = 10
    };
    struct anchor *anchor = &chosen.anchors[chosen.anchored % ANCHORS];
    double before = 0.0, after = 1.0;
    if (anchor->mark == NULL)
        CUDA_CHECK(cudaEventCreate(&anchor->mark));
    for (int i = 0; i < TRIES && after - before > 50e-6; i++) {
        before = clock_seconds();
        CUDA_CHECK(cudaEventRecord(anchor->mark, chosen.idle));
        CUDA_CHECK(cudaEventSynchronize(anchor->mark));
        after = clock_seconds();
    }
    anchor->seconds = (before + after) / 2;
    chosen.anchored++;
}

static void *device_allocate(size_t bytes)
{
    void *memory = NULL;
    if (bytes > SIZE_MAX / 2) /* the library may add to it */
        return NULL;
    const cudaError_t status = cudaMalloc(&memory, bytes > 0 ? bytes : 1);
    if (status == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return NULL;
    }
    CUDA_CHECK(status);
    return memory;
}

static void device_release(void *memory, size_t bytes)
{
    (void)bytes;
    CUDA_CHECK(cudaFree(memory));
}

static void *host_allocate(size_t bytes)
{
    void *memory = NULL;
    if (bytes > SIZE_MAX / 2)
        return NULL;
    const cudaError_t status = cudaMallocHost(&memory, bytes > 0 ? bytes : 1);
    if (status == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return NULL;
    }
    CUDA_CHECK(status);
    return memory;
}

static void host_release(void *memory, size_t bytes)
{
    (void)bytes;
    CUDA_CHECK(cudaFreeHost(memory));
}

static void device_copy(struct stream *stream, void *to, const void *from, size_t bytes)
{
    if (bytes > 0)
        CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream->queue));
}

static void device_zero(struct stream *stream, void *memory, size_t bytes)
{
    if (bytes > 0)
        CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, stream->queue));
}

/* What the device has given to processes; this one is the only one that works with it. */
static size_t memory_taken(void)
{
    size_t left = 0, all = 0;
    CUDA_CHECK(cudaMemGetInfo(&left, &all));
    chosen.most = all - left > chosen.most ? all - left : chosen.most;
    return all - left;
}

static size_t memory_size(void)
{
    size_t left = 0, all = 0;
    CUDA_CHECK(cudaMemGetInfo(&left, &all));
    return all;
}

static size_t memory_most(void)
{
    (void)memory_taken(); /* nothing is given back in training */
    return chosen.most;
}

static struct stream *stream_open(void)
{
    struct stream *stream = allocate(1, sizeof *stream);
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream->queue, cudaStreamNonBlocking));
    CUDA_CHECK(cudaMalloc((void **)&stream->workspace, CUDA_WORKSPACE + CUDA_BIAS_BYTES));
    return stream;
}

struct stream *cuda_stream_open_urgent(void)
{
    struct stream *stream = allocate(1, sizeof *stream); /* freed by stream_close */
    int least = 0, greatest = 0;
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    CUDA_CHECK(cudaStreamCreateWithPriority(&stream->queue, cudaStreamNonBlocking, greatest));
    return stream;
}

static void stream_close(struct stream *stream)
{
    if (stream == NULL)
        return;
    CUDA_CHECK(cudaStreamSynchronize(stream->queue));
    CUDA_CHECK(cudaFree(stream->workspace));
    CUDA_CHECK(cudaStreamDestroy(stream->queue));
    free(stream);
}

static void stream_wait(struct stream *stream)
{
    CUDA_CHECK(cudaStreamSynchronize(stream->queue));
}

static struct event *event_open(void)
{
    struct event *event = allocate(1, sizeof *event);
    CUDA_CHECK(cudaEventCreate(&event->mark));
    return event;
}

static void event_close(struct event *event)
{
    if (event == NULL)
        return;
    CUDA_CHECK(cudaEventDestroy(event->mark));
    free(event);
}

static void event_record(struct stream *stream, struct event *event)
{
    if (clock_seconds() - chosen.anchors[(chosen.anchored - 1) % ANCHORS].seconds > ANCHOR_SECONDS)
        drop_anchor();
    event->anchor = chosen.anchored - 1;
    CUDA_CHECK(cudaEventRecord(event->mark, stream->queue));
}

static void event_wait(struct stream *stream, struct event *event)
{
    CUDA_CHECK(cudaStreamWaitEvent(stream->queue, event->mark, 0));
}

static bool event_done(struct event *event)
{
    const cudaError_t status = cudaEventQuery(event->mark);
    if (status == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return false;
    }
    CUDA_CHECK(status);
    return true;
}

static double event_seconds(struct event *event)
{
    if (chosen.anchored - event->anchor > ANCHORS)
        fatal("the time of an event from more than %g minutes ago was asked for", ANCHORS * ANCHOR_SECONDS / 60);
    const struct anchor *anchor = &chosen.anchors[event->anchor % ANCHORS];
    float milliseconds = 0.0f;
    CUDA_CHECK(cudaEventSynchronize(event->mark));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, anchor->mark, event->mark));
    return anchor->seconds + (double)milliseconds / 1e3;
}

static const struct device table = {
    .name = "cuda",
    .allocate = device_allocate,
    .release = device_release,
    .host_allocate = host_allocate,
    .host_release = host_release,
    .copy = device_copy,
    .zero = device_zero,
    .memory_size = memory_size,
    .memory_taken = memory_taken,
    .memory_peak = memory_most,
    .stream_open = stream_open,
    .stream_close = stream_close,
    .stream_wait = stream_wait,
    .event_open = event_open,
    .event_close = event_close,
    .event_record = event_record,
    .event_wait = event_wait,
    .event_done = event_done,
    .event_seconds = event_seconds,
    .linear = cuda_linear,
    .linear_input_gradient = cuda_linear_input_gradient,
    .linear_weight_gradient = cuda_linear_weight_gradient,
    .convert = cuda_convert,
    .add_residual = cuda_add_residual,
    .gelu = cuda_gelu,
    .gelu_gradient = cuda_gelu_gradient,
    .column_sums = cuda_column_sums,
    .norm = cuda_norm,
    .add_residual_norm = cuda_add_residual_norm,
    .norm_gradient = cuda_norm_gradient,
    .attention = cuda_attention,
    .attention_gradient = cuda_attention_gradient,
    .attention_workspace = cuda_attention_workspace,
    .embedding = cuda_embedding,
    .embedding_gradient = cuda_embedding_gradient,
    .position_gradient = cuda_position_gradient,
    .cross_entropy_statistics = cuda_cross_entropy_statistics,
    .cross_entropy = cuda_cross_entropy,
    .squares = cuda_squares,
    .adamw = cuda_adamw,
};

/* Before the first call of CUDA. A device takes work from 8 hardware queues unless told otherwise; where there are more
 * streams some share one, and then a receive that waits for its sender holds up what stands behind it on another
 * stream: with the send that its sender waits for, that never ends. A rank has two streams per neighbour and ring and
 * one per group. */
static void ask_for_queues(void)
{
    if (setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0) != 0)
        fatal("setenv: %s", strerror(errno));
}

int device_cuda_count(struct err *err)
{
    ask_for_queues();
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
        (void)cudaGetLastError();
        err_set(err, "no CUDA device: %s", cudaGetErrorString(status));
        return 0;
    }
    if (count == 0)
        err_set(err, "no CUDA device");
    return count;
}

const struct device *device_cuda_outline(void)
{
    return &table;
}

/* A scheduler that binds devices shows each rank its own alone; else ranks of a node take one each in their order. */
static int choose(int node_rank, int node_size, struct err *err)
{
    const int count = device_cuda_count(err);
    if (count == 0)
        return -1;
    if (count > 1 && node_size > count)
        return err_set(err, "%d ranks share this node, which has %d CUDA devices", node_size, count);
    return count == 1 ? 0 : node_rank;
}

const struct device *device_cuda(int node_rank, int node_size, bool tf32, struct device_identity *identity,
                                 struct err *err)
{
    const int number = choose(node_rank, node_size, err);
    if (number < 0)
        return NULL;
    struct cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, number));
    if (properties.major < 8) {
        err_set(err, "CUDA device %d is a %s of compute capability %d.%d; 8.0 is needed", number, properties.name,
                properties.major, properties.minor);
        return NULL;
    }
    if (cuda_library_open(err) < 0)
        return NULL;
    CUDA_CHECK(cudaSetDevice(number));
    memcpy(identity->unique, properties.uuid.bytes, sizeof identity->unique);
    snprintf(identity->name, sizeof identity->name, "%s", properties.name);
    if (chosen.idle == NULL) {
        CUDA_CHECK(cudaStreamCreateWithFlags(&chosen.idle, cudaStreamNonBlocking));
        drop_anchor();
    }
    chosen.tf32 = tf32;
    return &table;
}
