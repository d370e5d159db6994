#include "run/stop.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "base/trace.h"

#define SAME_SECONDS 1.0 /* signals so close together are one request: launchers pass on what each rank got itself */

static volatile sig_atomic_t signalled, speaks;
static struct timespec first_signal; /* written before `signalled` is */
static double begin;

/* Only what may be called in a signal handler. */
static void on_signal(int number)
{
    static const char message[] = "ppmodel: a second signal: ended at once, without another checkpoint\n";
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!signalled) {
        first_signal = now;
        signalled = 1;
        return;
    }
    double since = (double)(now.tv_sec - first_signal.tv_sec) + 1e-9 * (double)(now.tv_nsec - first_signal.tv_nsec);
    if (since < SAME_SECONDS)
        return;
    if (speaks && write(STDERR_FILENO, message, sizeof message - 1) < 0)
        speaks = 0; /* nobody listens */
    signal(number, SIG_DFL);
    raise(number);
}

void stop_open(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    begin = clock_seconds();
}

void stop_speak(void)
{
    speaks = 1;
}

void stop_close(void)
{
    signal(SIGTERM, SIG_DFL);
    signal(SIGUSR1, SIG_DFL);
    if (signalled)
        raise(SIGTERM);
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
