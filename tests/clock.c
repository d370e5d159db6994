/* The ranks' clocks: known shifts and drifts, put between the program and the host's clock, which all ranks share. */
#include <math.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/trace.h"
#include "parallel/clock.h"
#include "parallel/job.h"
#include "tests/tap.h"

static double shift, drift; /* seconds, and seconds a second, that this rank's clock is off */
static double start;        /* true time from which it drifts */

static double true_seconds(void)
{
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* In place of the C library's, for the program and all of its libraries. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result != 0 || clock != CLOCK_MONOTONIC)
        return result;
    double seconds = (double)now->tv_sec + 1e-9 * (double)now->tv_nsec;
    seconds += shift + drift * (seconds - start);
    now->tv_sec = (time_t)floor(seconds);
    now->tv_nsec = (long)(1e9 * (seconds - floor(seconds)));
    return 0;
}

static double reading_error(const struct clock_reading *reading, double rank0_shift)
{
    /* drift is 0 where this is used */
    return fabs(reading->ahead - (rank0_shift - shift));
}

static void check_same(struct communicator *world)
{
    struct clock_reading reading;
    clock_compare(world, &reading);
    ok(reading.ahead == 0, "clocks of one host are the same");
    ok(fabs(reading.here - true_seconds()) < 60, "and tell when they were read");
}

static void check_shifts(struct communicator *world)
{
    static const double shifts[] = {0, 1234.5, -0.25, 86400, 3e-3};
    const int count = sizeof shifts / sizeof *shifts;
    struct clock_reading reading;
    for (int turn = 0; turn < 2; turn++) { /* rank 0's clock, too, may be off */
        shift = shifts[(world->rank + turn) % count];
        clock_compare(world, &reading);
        /* what a double of a day's seconds and the shim's rounding leave */
        ok(reading_error(&reading, shifts[turn]) <= reading.error + 1e-7, "a shift is found to within the error told");
        ok(world->rank == 0 ? reading.error == 0 : reading.error < 1, "which is short");
    }
    shift = 0;
}

/* What two readings make of a time between them. */
static void check_drift(struct communicator *world)
{
    struct clock_reading first, last;
    shift = 10.0 * world->rank;
    drift = 0.01 * world->rank;
    start = true_seconds();
    clock_compare(world, &first);
    double middle, before, truth;
    usleep(200000);
    do { /* until nothing else ran in between */
        before = true_seconds();
        middle = clock_seconds();
        truth = true_seconds();
    } while (truth - before > 1e-5);
    usleep(200000);
    clock_compare(world, &last);
    struct trace_clock clock = {.at = {first.here, last.here}, .ahead = {first.ahead, last.ahead}};
    double error = first.error + last.error + 2e-5;
    is_near(trace_time(&clock, middle), truth, error, "a drift is followed");
    ok(world->rank == 0 || fabs(middle + first.ahead - truth) > 1e-3, "which one reading alone would miss");
    shift = drift = 0;

    struct trace_clock still = {.origin = 2, .at = {5, 5}, .ahead = {3, 3}};
    is_near(trace_time(&still, 7), 8, 1e-12, "readings at one time are no drift");
    struct trace_clock line = {.at = {10, 20}, .ahead = {1, 2}};
    is_near(trace_time(&line, 15), 16.5, 1e-12, "halfway");
    is_near(trace_time(&line, 9), 10, 1e-12, "nothing is carried on before the first reading");
    is_near(trace_time(&line, 29), 31, 1e-12, "nor behind the last");
}

int main(int argc, char **argv)
{
    struct job job;
    job_begin(&argc, &argv, &job);
    check_same(job.world);
    check_shifts(job.world);
    check_drift(job.world);
    int status = tap_done();
    job_end(&job);
    return status;
}
