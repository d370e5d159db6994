/* Requests to end early: SIGTERM and SIGUSR1, a file named STOP in &run output, and &run wall_minutes. The step under
 * way is finished and a checkpoint written; a second signal, a second later or more, ends the program at once. */
#ifndef RUN_STOP_H
#define RUN_STOP_H

#include "base/settings.h"

enum stop_reason {
    STOP_NONE,
    STOP_SIGNAL,
    STOP_FILE,
    STOP_WALL
};

/* From now on signals are requests. Time for wall_minutes counts from here: call it first of all, before there are
 * other threads. */
void stop_open(void);

/* This process says so when a second signal ends it: rank 0. */
void stop_speak(void);

/* From now on a signal ends the program, and so does one that came before: nothing would be saved. */
void stop_close(void);

/* What this rank knows; ranks agree by taking the largest. `rank` 0 looks for the file and at the clock: it stops when
 * what it does before it can stop the next time, guessed from the longest of its kind so far (`seconds`), may not be
 * done in time. */
enum stop_reason stop_requested(const struct settings *settings, int rank, double seconds);

/* "SIGTERM or SIGUSR1", for messages. */
const char *stop_text(enum stop_reason reason);

/* The request was followed: removes the STOP file, so that the next run goes on. Rank 0. */
void stop_done(const struct settings *settings, enum stop_reason reason);

#endif
