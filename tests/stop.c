/* Signals while matrix products run: they are requests, and leave memory as it is. */
#include "run/stop.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/trace.h"
#include "kernels/kernels.h"
#include "tests/tap.h"

enum {
    WIDTH = 256
};

#define SECONDS 0.8 /* of signals: close enough together to be one request */

static atomic_bool over;
static atomic_int sent;

static void *send_signals(void *of)
{
    const struct timespec pause = {.tv_nsec = 50000};
    double begin = clock_seconds();
    (void)of;
    while (clock_seconds() - begin < SECONDS) {
        kill(getpid(), sent++ % 2 ? SIGTERM : SIGUSR1);
        nanosleep(&pause, NULL);
    }
    over = true;
    return NULL;
}

int main(void)
{
    struct settings *settings = allocate(1, sizeof *settings);
    settings_init(settings);
    stop_open();
    ok(stop_requested(settings, 1, 0) == STOP_NONE, "nothing is requested at first");

    const struct device *device = device_cpu(1);
    struct stream *stream = device->stream_open();
    const size_t count = WIDTH * WIDTH, bytes = count * sizeof(float);
    float *x = device->allocate(bytes), *w = device->allocate(bytes), *first = device->allocate(bytes);
    for (size_t i = 0; i < count; i++) {
        x[i] = (float)(i % 17) - 8;
        w[i] = (float)(i % 23) - 11;
    }
    device->linear_input_gradient(stream, ELEMENT_FLOAT32, first, x, w, WIDTH, WIDTH, WIDTH, WIDTH);
    pthread_t thread;
    if (pthread_create(&thread, NULL, send_signals, NULL) != 0)
        return 1;
    int products = 0, wrong = 0;
    while (!over) {
        float *y = malloc(bytes); /* of the heap that products take their own memory from */
        device->linear_input_gradient(stream, ELEMENT_FLOAT32, y, x, w, WIDTH, WIDTH, WIDTH, WIDTH);
        wrong += memcmp(y, first, bytes) != 0;
        free(y);
        products++;
    }
    pthread_join(thread, NULL);
    ok(sent > 100 && products > 10, "%d signals during %d matrix products", (int)sent, products);
    ok(wrong == 0, "none of which came out wrong");
    ok(stop_requested(settings, 1, 0) == STOP_SIGNAL, "and a stop is requested");
    device->release(x, bytes);
    device->release(w, bytes);
    device->release(first, bytes);
    device->stream_close(stream);
    settings_fini(settings);
    free(settings);
    return tap_done();
}
