#include "run/stop.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/trace.h"

#define SAME_SECONDS 1.0 /* signals so close together are one request: launchers pass on what each rank got itself */

static atomic_bool signalled, speaks, closed;
static double begin;

static sigset_t requests(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    return set;
}

/* As if the program knew nothing of the signal. */
static void end_by(int number)
{
    sigset_t set = requests();
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    raise(number);
}

/* A thread takes the signals, since a handler must not run on top of computations: oneDNN's matrix products use the
 * stack pointer for other things, and what the system puts below it for a handler would overwrite memory. */
static void *listen_for_signals(void *of)
{
    const sigset_t set = requests();
    double first = 0;
    int number;
    (void)of;
    while (sigwait(&set, &number) == 0) {
        double now = clock_seconds();
        if (closed)
            end_by(number);
        if (signalled && now - first >= SAME_SECONDS) {
            if (speaks)
                fputs("ppmodel: a second signal: ended at once, without another checkpoint\n", stderr);
            end_by(number);
        }
        if (!signalled)
            first = now;
        signalled = true;
    }
    return NULL;
}

void stop_open(void)
{
    sigset_t set = requests();
    pthread_t thread;
    begin = clock_seconds();
    signal(SIGTERM, SIG_DFL);
    signal(SIGUSR1, SIG_DFL);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* threads to come inherit that */
    int code = pthread_create(&thread, NULL, listen_for_signals, NULL);
    if (code != 0)
        fatal("no thread to wait for signals: %s", strerror(code));
    pthread_detach(thread);
}

void stop_speak(void)
{
    speaks = true;
}

void stop_close(void)
{
    closed = true;
    if (signalled)
        end_by(SIGTERM);
}

static struct text stop_file(const struct settings *settings)
{
    struct text path = {0};
    text_add(&path, "%s/STOP", settings->run.output);
    return path;
}

enum stop_reason stop_requested(const struct settings *settings, int rank, double seconds)
{
    if (rank == 0) {
        struct text path = stop_file(settings);
        bool there = access(text_string(&path), F_OK) == 0;
        text_fini(&path);
        if (there)
            return STOP_FILE;
        if (settings->run.wall_minutes > 0 && clock_seconds() - begin + seconds > 60 * settings->run.wall_minutes)
            return STOP_WALL;
    }
    return signalled ? STOP_SIGNAL : STOP_NONE;
}

const char *stop_text(enum stop_reason reason)
{
    switch (reason) {
    case STOP_NONE:
        break;
    case STOP_SIGNAL:
        return "a signal, SIGTERM or SIGUSR1";
    case STOP_FILE:
        return "the file STOP";
    case STOP_WALL:
        return "&run wall_minutes";
    }
    return "nothing";
}

void stop_done(const struct settings *settings, enum stop_reason reason)
{
    struct text path = stop_file(settings);
    if (reason == STOP_FILE)
        (void)unlink(text_string(&path)); /* whoever may not remove it will find the next run stopping too */
    text_fini(&path);
}
