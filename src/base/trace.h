/* The program's clock and its trace: spans in memory, written as Chrome/Perfetto JSON at the end. */
#ifndef BASE_TRACE_H
#define BASE_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/text.h"

/* Seconds on a monotonic clock, the same for all processes of a node. */
double clock_seconds(void);

/* Lanes of a rank in the trace viewer. */
enum trace_lane {
    TRACE_COMPUTE,
    TRACE_SEND,
    TRACE_RECEIVE,
    TRACE_REDUCE,
    TRACE_STEP, /* whole steps, evaluations and checkpoints */
    TRACE_LANES
};

/* One span; -1 in stage, microbatch or bytes: does not apply. `name` must be static. */
struct trace_span {
    const char *name;
    double begin, end; /* clock_seconds() */
    int64_t bytes;
    int step, stage, microbatch;
    enum trace_lane lane;
};

/* Room for `capacity` spans; none are recorded before. Later ones beyond the capacity are counted, not kept. */
void trace_open(size_t capacity);
void trace_close(void);
bool trace_is_open(void);
void trace_record(const struct trace_span *span);

/* Records what has taken the rank itself from `begin` until now, where a trace is open; -1 as above. */
void trace_record_own(const char *name, enum trace_lane lane, double begin, int64_t step);

/* How times of this process become those of the trace: it counts from `origin` on a clock, rank 0's, that is ahead of
 * this process's by ahead[0] at the time at[0] and by ahead[1] at at[1], which is no earlier. All zero: one clock. */
struct trace_clock {
    double origin;
    double at[2], ahead[2];
};

/* Seconds since the origin; between the two readings the clocks drift apart evenly. */
double trace_time(const struct trace_clock *clock, double seconds);

/* What a trace file begins and ends with, around the events. */
#define TRACE_HEAD "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n"
#define TRACE_TAIL "{\"ph\":\"M\",\"pid\":0,\"name\":\"trace_end\",\"args\":{}}]}\n"

/* Appends this rank's spans as JSON trace events, one a line, each followed by a comma; times in microseconds. pid =
 * rank; computations and what the rank waits for are one thread, where spans may contain each other; messages under way
 * at once are threads beside each other. Also events that name process and threads. Says how many did not fit. */
void trace_print(struct text *out, int rank, const char *process_name, const struct trace_clock *clock);

/* The same for given spans of a rank, under any number of a process. */
void trace_print_spans(struct text *out, int process, const char *process_name, int rank,
                       const struct trace_clock *clock, const struct trace_span *spans, size_t count);

#endif
