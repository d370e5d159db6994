/* What the program says on standard output: rank 0 speaks, once. Errors go to standard error through base/error.h. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

#include "base/error.h"

/* Whether this process speaks at all (rank 0), and whether it says what only verbose runs say. */
void log_open(bool speaks, bool verbose);

/* From now on nothing is said but errors and warnings. */
void log_quiet(void);

/* A line, flushed; no newline needed. */
void log_line(const char *format, ...) PRINTF_LIKE(1, 2);
void log_verbose(const char *format, ...) PRINTF_LIKE(1, 2);

/* A line on how far the work is, `done` from 0 to 1: behind a bar, in the place of the last such line, where output is
 * a terminal, and a line of its own elsewhere. */
void log_progress(double done, const char *format, ...) PRINTF_LIKE(2, 3);

/* A text of any length as it is. */
void log_text(const char *text);

/* An error on standard error: "ppmodel: error: ...", once where this process speaks. */
void log_error(const char *format, ...) PRINTF_LIKE(1, 2);

/* A warning on standard error: "ppmodel: warning: ...", once where this process speaks. */
void log_warning(const char *format, ...) PRINTF_LIKE(1, 2);

#endif
