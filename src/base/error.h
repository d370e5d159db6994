/* How ppmodel reports what went wrong.
 *
 * Two regimes. A mistake of the user, or anything that can be reported, travels upwards as a text in a `struct err`;
 * the ranks agree on it (parallel/agree.h) and leave together. A failure of a rank, device, file system or library is
 * fatal: the rank that knows says so, with its place in the grid and what it was doing, and ends the whole job. */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))

/* Exit codes of the program, part of its public interface. */
enum exit_code {
    EXIT_DONE = 0,
    EXIT_BAD_INPUT = 2, /* namelist, grid, data or checkpoint */
    EXIT_NONFINITE = 3, /* training stopped itself before any weight changed */
    EXIT_FAILED = 4,    /* a rank, a file system or a device failed */
    EXIT_HANG = 5,      /* hang detected */
    EXIT_STOPPED = 75   /* stopped early on request, checkpoint written */
};

/* A text for a human reader; empty while nothing went wrong. */
struct err {
    char text[2048];
};

/* Writes the text and returns -1, so that an error site is one statement: `return err_set(err, "...")`. */
int err_set(struct err *err, const char *format, ...) PRINTF_LIKE(2, 3);

/* Puts "<prefix>: " before the text that is there and returns -1. */
int err_prefix(struct err *err, const char *format, ...) PRINTF_LIKE(2, 3);

/* The rank's place, for example "rank 5 (p1 d0 t1)"; stands in every fatal message. Default: empty. */
void error_set_place(const char *format, ...) PRINTF_LIKE(1, 2);

/* What the rank is doing, for example "step 120 FORWARD stage 1 microbatch 3". The pointer is kept, not the text, so
 * that the hot path pays one store; the text must stay valid until the next call. NULL: nothing in particular. */
void error_set_activity(const char *activity);

/* The place and activity as set above ("" when unset). */
const char *error_place(void);
const char *error_activity(void);

/* Called by fatal() to end the job on every rank; main sets it to MPI_Abort. Without one, exit() is called. */
void error_set_abort(void (*abort_job)(int code));

/* Prints "ppmodel: <place> <activity>: <text>" on stderr and ends the job with EXIT_FAILED. */
_Noreturn void fatal(const char *format, ...) PRINTF_LIKE(1, 2);

/* The same with another exit code. */
_Noreturn void fatal_code(enum exit_code code, const char *format, ...) PRINTF_LIKE(2, 3);

#endif
