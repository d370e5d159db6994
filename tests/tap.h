/* Test Anything Protocol for one process or for all ranks of a job.
 *
 * Where MPI is initialised every call is collective over MPI_COMM_WORLD: a check holds when it holds on every rank,
 * rank 0 prints the verdict and the failing ranks their own line behind `#`. A test program ends with `return
 * tap_done();`. */
#ifndef TESTS_TAP_H
#define TESTS_TAP_H

#include <stdbool.h>
#include <stdint.h>

/* One named check; returns the verdict of all ranks. */
#define ok(condition, ...) tap_check((condition), __FILE__, __LINE__, #condition, __VA_ARGS__)
bool tap_check(bool holds, const char *file, int line, const char *expression, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* Holds when the texts are equal; shows both otherwise. */
#define is_text(found, expected, ...) tap_text((found), (expected), __FILE__, __LINE__, __VA_ARGS__)
bool tap_text(const char *found, const char *expected, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* Holds when |found - expected| <= tolerance; shows the numbers otherwise. */
#define is_near(found, expected, tolerance, ...) \
    tap_near((found), (expected), (tolerance), __FILE__, __LINE__, __VA_ARGS__)
bool tap_near(double found, double expected, double tolerance, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 6, 7)));

/* The whole program is skipped with this reason: prints `1..0 # SKIP reason`; return its value from main. */
int tap_skip_all(const char *reason);

/* A comment line from rank 0. */
void tap_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Prints the plan; returns 0, so that only a crash or a missing line counts as an error of the program itself. */
int tap_done(void);

#endif
