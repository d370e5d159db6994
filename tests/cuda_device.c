/* The CUDA device itself: its choice, memory of the host that it copies to, streams, events, and TF32. */
#include <math.h>
#include <stdint.h>

#include "base/trace.h"
#include "tests/device_choice.h"

enum {
    COUNT = 300007,
    BYTES = COUNT * (int)sizeof(float)
};

static void test_choice(void)
{
    struct err err = {0};
    struct device_identity identity = {{0}, ""};
    const int count = device_cuda_count(&err);
    ok(count > 0 && err.text[0] == '\0', "there are devices: %d", count);
    ok(device_cuda(0, 1, false, &identity, &err) != NULL && identity.name[0] != '\0', "the first has a name: %s",
       identity.name);
    unsigned char zero[sizeof identity.unique] = {0};
    ok(memcmp(identity.unique, zero, sizeof zero) != 0, "and something to tell it by");
    if (count == 1) {
        tap_note("one device alone: ranks that share it are not refused here");
        return;
    }
    ok(device_cuda(count, count + 1, false, &identity, &err) == NULL, "one rank too many for a node gets none");
    ok(strstr(err.text, "ranks share this node") != NULL, "and is told so: %s", err.text);
}

/* Copies through memory of the host, with the host's work only at both ends. */
static void test_host_memory(void)
{
    struct stream *stream = cuda->stream_open();
    float *from = cuda->host_allocate(BYTES), *to = cuda->host_allocate(BYTES), *memory = cuda->allocate(BYTES);
    for (int i = 0; i < COUNT; i++)
        from[i] = (float)i;
    cuda->copy(stream, memory, from, BYTES);
    cuda->add_residual(stream, ELEMENT_FLOAT32, memory, memory, memory, NULL, 1, COUNT);
    cuda->copy(stream, to, memory, BYTES);
    cuda->stream_wait(stream);
    int wrong = 0;
    for (int i = 0; i < COUNT; i++)
        wrong += to[i] != 2.0f * (float)i;
    ok(wrong == 0, "numbers pass through memory of the host (%d do not)", wrong);
    ok(cuda->host_allocate(SIZE_MAX - 100) == NULL, "more of it than addresses reach is NULL");
    cuda->host_release(from, BYTES);
    cuda->host_release(to, BYTES);
    cuda->host_release(NULL, 0);
    cuda->release(memory, BYTES);
    cuda->stream_close(stream);
}

/* One stream writes, another reads behind an event, in turns. */
static void test_streams(void)
{
    enum {
        TURNS = 9
    };
    struct stream *writer = cuda->stream_open(), *reader = cuda->stream_open();
    struct event *written = cuda->event_open(), *read = cuda->event_open();
    float *memory = cuda->allocate(BYTES), *ones = cuda->allocate(BYTES), *host = cuda->host_allocate(TURNS * BYTES);
    for (int i = 0; i < COUNT; i++)
        host[i] = 1.0f;
    cuda->copy(writer, ones, host, BYTES);
    cuda->stream_wait(writer);
    const double begin = clock_seconds();
    cuda->zero(writer, memory, BYTES);
    for (int turn = 0; turn < TURNS; turn++) {
        if (turn > 0)
            cuda->event_wait(writer, read);
        cuda->add_residual(writer, ELEMENT_FLOAT32, memory, memory, ones, NULL, 1, COUNT);
        cuda->event_record(writer, written);
        cuda->event_wait(reader, written);
        cuda->copy(reader, host + turn * COUNT, memory, BYTES);
        cuda->event_record(reader, read);
    }
    const double first = cuda->event_seconds(written), last = cuda->event_seconds(read), end = clock_seconds();
    ok(cuda->event_done(read), "an event whose time is known is done");
    int wrong = 0;
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < COUNT; i++)
            wrong += host[turn * COUNT + i] != (float)(turn + 1);
    ok(wrong == 0, "a stream waits for another one's events (%d numbers are wrong)", wrong);
    ok(begin - 1e-3 < first && first <= last && last < end + 1e-3, "events happen on the host's clock: %g %g %g %g",
       0.0, first - begin, last - begin, end - begin);
    cuda->release(memory, BYTES);
    cuda->release(ones, BYTES);
    cuda->host_release(host, TURNS * BYTES);
    cuda->event_close(written);
    cuda->event_close(read);
    cuda->stream_close(writer);
    cuda->stream_close(reader);
}

/* How many elements of a product with the unit matrix differ from the numbers, which TF32's 11 bits do not hold. */
static int changed(bool tf32)
{
    enum {
        SIDE = 64, /* a library need not use tensor cores for a few numbers */
        ALL = SIDE * SIDE
    };
    struct err err;
    struct device_identity identity;
    const struct device *device = device_cuda(0, 1, tf32, &identity, &err);
    struct stream *stream = device->stream_open();
    const float number = 1.0f + 0x1p-12f;
    static float host[3 * ALL]; /* y, x and w */
    for (int i = 0; i < ALL; i++) {
        host[ALL + i] = number;
        host[2 * ALL + i] = i / SIDE == i % SIDE ? 1.0f : 0.0f;
    }
    float *memory = device->allocate(sizeof host);
    device->copy(stream, memory, host, sizeof host);
    device->linear(stream, ELEMENT_FLOAT32, memory, NULL, memory + ALL, memory + 2 * ALL, NULL, SIDE, SIDE, SIDE, SIDE);
    device->copy(stream, host, memory, ALL * sizeof *host);
    device->stream_wait(stream);
    device->release(memory, sizeof host);
    device->stream_close(stream);
    int count = 0;
    for (int i = 0; i < ALL; i++)
        count += host[i] != number;
    return count;
}

static void test_tf32(void)
{
    ok(changed(false) == 0, "float32 keeps its bits in products");
    ok(changed(true) == 64 * 64, "and loses some to TF32 where that is allowed");
    ok(changed(false) == 0, "which is not kept");
}

int main(int argc, char **argv)
{
    const char *missing = device_choice_open(argv[argc - 1]);
    if (missing != NULL)
        return tap_skip_all(missing);
    test_choice();
    test_host_memory();
    test_streams();
    test_tf32();
    return tap_done();
}
