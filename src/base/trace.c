#include "base/trace.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/memory.h"

static struct trace_span *spans;
static size_t capacity, count, dropped;

enum {
    LANE_WIDTH = 64 /* threads of a lane at most; what is under way beyond that shares the last one */
};

static const char *const lane_names[TRACE_LANES] = {"compute", "send", "receive", "reduce", "step"};
static const int lane_order[TRACE_LANES] = {1, 2, 3, 4, 0}; /* from the top */

double clock_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void trace_open(size_t room)
{
    trace_close();
    spans = allocate(room, sizeof *spans);
    capacity = room;
}

void trace_close(void)
{
    free(spans);
    spans = NULL;
    capacity = count = dropped = 0;
}

bool trace_is_open(void)
{
    return spans != NULL;
}

void trace_record(const struct trace_span *span)
{
    if (count < capacity)
        spans[count++] = *span;
    else
        dropped++;
}

void trace_record_own(const char *name, enum trace_lane lane, double begin, int64_t step)
{
    if (trace_is_open())
        trace_record(&(struct trace_span){.name = name,
                                          .begin = begin,
                                          .end = clock_seconds(),
                                          .bytes = -1,
                                          .step = (int)step,
                                          .stage = -1,
                                          .microbatch = -1,
                                          .lane = lane});
}

static void add_number(struct text *out, const char *name, int64_t value)
{
    if (value >= 0)
        text_add(out, ",\"%s\":%lld", name, (long long)value);
}

double trace_time(const struct trace_clock *clock, double seconds)
{
    double length = clock->at[1] - clock->at[0];
    double part = length > 0 ? fmin(fmax((seconds - clock->at[0]) / length, 0), 1) : 0;
    return seconds + clock->ahead[0] + part * (clock->ahead[1] - clock->ahead[0]) - clock->origin;
}

static int by_begin(const void *a, const void *b)
{
    const struct trace_span *one = *(const struct trace_span *const *)a, *other = *(const struct trace_span *const *)b;
    if (one->begin != other->begin)
        return one->begin < other->begin ? -1 : 1;
    return one < other ? -1 : one > other;
}

static void print_thread(struct text *out, int process, enum trace_lane lane, int beside)
{
    char number[16] = "";
    int thread = lane + beside * TRACE_LANES;
    if (beside > 0)
        snprintf(number, sizeof number, " %d", beside + 1);
    text_add(out, "{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"%s%s\"}},\n",
             process, thread, lane_names[lane], number);
    text_add(out, "{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":%d}},\n",
             process, thread, lane_order[lane] * LANE_WIDTH + beside);
}

static void print_span(struct text *out, int process, int thread, int rank, const struct trace_clock *clock,
                       const struct trace_span *span)
{
    /* Rounded to nanoseconds before the difference is taken: neighbours that touch do not overlap */
    double begin = round(1e9 * trace_time(clock, span->begin)), end = round(1e9 * trace_time(clock, span->end));
    text_add(out, "{\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"name\":\"%s\",\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"rank\":%d",
             process, thread, span->name, begin / 1e3, (end - begin) / 1e3, rank);
    add_number(out, "step", span->step);
    add_number(out, "stage", span->stage);
    add_number(out, "microbatch", span->microbatch);
    add_number(out, "bytes", span->bytes);
    text_add(out, "}},\n");
}

/* The spans of one lane, each in the first of its threads that is free by then. */
static void print_lane(struct text *out, int process, int rank, const struct trace_clock *clock,
                       const struct trace_span *const *sorted, size_t sorted_count, enum trace_lane lane)
{
    double busy[LANE_WIDTH] = {0}; /* until when */
    int threads = 0;
    for (size_t i = 0; i < sorted_count; i++) {
        const struct trace_span *span = sorted[i];
        int beside = 0;
        if (span->lane != lane)
            continue;
        while (lane != TRACE_COMPUTE && lane != TRACE_STEP && beside + 1 < LANE_WIDTH && beside < threads &&
               busy[beside] > span->begin)
            beside++;
        if (beside == threads)
            print_thread(out, process, lane, threads++);
        busy[beside] = span->end;
        print_span(out, process, lane + beside * TRACE_LANES, rank, clock, span);
    }
}

void trace_print_spans(struct text *out, int process, const char *process_name, int rank,
                       const struct trace_clock *clock, const struct trace_span *items, size_t item_count)
{
    const struct trace_span **sorted = allocate(item_count, sizeof *sorted);
    for (size_t i = 0; i < item_count; i++)
        sorted[i] = &items[i];
    qsort(sorted, item_count, sizeof *sorted, by_begin);
    text_add(out, "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_name\",\"args\":{\"name\":\"%s\"}},\n", process,
             process_name);
    text_add(out, "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_sort_index\",\"args\":{\"sort_index\":%d}},\n", process,
             process);
    for (int lane = 0; lane < TRACE_LANES; lane++)
        print_lane(out, process, rank, clock, sorted, item_count, lane);
    free(sorted);
}

void trace_print(struct text *out, int rank, const char *process_name, const struct trace_clock *clock)
{
    trace_print_spans(out, rank, process_name, rank, clock, spans, count);
    if (dropped)
        text_add(out, "{\"ph\":\"i\",\"pid\":%d,\"tid\":0,\"name\":\"%zu spans did not fit\",\"ts\":0,\"s\":\"p\"},\n",
                 rank, dropped);
}
