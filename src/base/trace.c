#include "base/trace.h"

#include <stdlib.h>
#include <time.h>

#include "base/memory.h"

static struct trace_span *spans;
static size_t capacity, count, dropped;

static const char *const lane_names[TRACE_LANES] = {"compute", "send", "receive", "reduce"};

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

static void add_number(struct text *out, const char *name, int64_t value)
{
    if (value >= 0)
        text_add(out, ",\"%s\":%lld", name, (long long)value);
}

void trace_print_spans(struct text *out, int process, const char *process_name, int rank, double origin,
                       const struct trace_span *items, size_t item_count)
{
    text_add(out, "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_name\",\"args\":{\"name\":\"%s\"}},\n", process,
             process_name);
    text_add(out, "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_sort_index\",\"args\":{\"sort_index\":%d}},\n", process,
             process);
    for (int lane = 0; lane < TRACE_LANES; lane++)
        text_add(out, "{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"%s\"}},\n",
                 process, lane, lane_names[lane]);
    for (size_t i = 0; i < item_count; i++) {
        const struct trace_span *span = &items[i];
        text_add(
            out, "{\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"name\":\"%s\",\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"rank\":%d",
            process, (int)span->lane, span->name, 1e6 * (span->begin - origin), 1e6 * (span->end - span->begin), rank);
        add_number(out, "step", span->step);
        add_number(out, "stage", span->stage);
        add_number(out, "microbatch", span->microbatch);
        add_number(out, "bytes", span->bytes);
        text_add(out, "}},\n");
    }
}

void trace_print(struct text *out, int rank, const char *process_name, double origin)
{
    trace_print_spans(out, rank, process_name, rank, origin, spans, count);
    if (dropped)
        text_add(out, "{\"ph\":\"i\",\"pid\":%d,\"tid\":0,\"name\":\"%zu spans did not fit\",\"ts\":0,\"s\":\"p\"},\n",
                 rank, dropped);
}
