#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "pipeline/simulate.h"

/* "F12", or "F12b" for the second of several chunks. */
static void label_of(const struct schedule *schedule, struct instruction now, char text[INSTRUCTION_TEXT_SIZE])
{
    char chunk[2] = {(char)('a' + now.stage / schedule->ranks), '\0'};
    snprintf(text, INSTRUCTION_TEXT_SIZE, "%s%d%s", instruction_symbol(now.op), now.microbatch,
             schedule->chunks > 1 && schedule->chunks <= 26 ? chunk : "");
}

/* Fills the columns of one computation with its label, or what fits of it: the operation without a number that would be
 * cut off. */
static void draw(char *line, int begin, int end, const char *label)
{
    int length = (int)strlen(label);
    if (begin >= end)
        return;
    memset(line + begin, '-', (size_t)(end - begin));
    memcpy(line + begin, label, length <= end - begin ? (size_t)length : 1);
}

int simulate_print(const struct schedule *schedule, const struct simulate_costs *costs, int width, FILE *out,
                   struct err *err)
{
    struct simulate_spans *spans = allocate((size_t)schedule->ranks, sizeof *spans);
    struct simulation *simulation = simulate_recorded(schedule, costs, spans, err);
    char *line = allocate((size_t)width + 1, 1);
    for (int rank = 0; simulation && rank < schedule->ranks; rank++) {
        const struct instruction_list *list = &schedule->lists[rank];
        const struct trace_span *span = spans[rank].items;
        double scale = simulation->makespan > 0 ? width / simulation->makespan : 0;
        memset(line, '.', (size_t)width);
        for (int64_t i = 0; i < list->count; i++) {
            char label[INSTRUCTION_TEXT_SIZE];
            if (!instruction_computes(list->items[i].op))
                continue;
            while (span->lane != TRACE_COMPUTE)
                span++;
            label_of(schedule, list->items[i], label);
            draw(line, (int)(span->begin * scale + 0.5), (int)(span->end * scale + 0.5), label);
            span++;
        }
        fprintf(out, "r%d: %s\n", rank, line);
    }
    int status = simulation ? 0 : -1;
    simulate_spans_destroy(spans, schedule->ranks);
    simulate_destroy(simulation);
    free(line);
    return status;
}

int simulate_trace(const struct schedule *schedule, const struct simulate_costs *costs, int first_process, FILE *out,
                   struct err *err)
{
    struct simulate_spans *spans = allocate((size_t)schedule->ranks, sizeof *spans);
    struct simulation *simulation = simulate_recorded(schedule, costs, spans, err);
    const struct trace_clock one_clock = {0};
    if (simulation)
        fputs(TRACE_HEAD, out);
    for (int rank = 0; simulation && rank < schedule->ranks; rank++) {
        struct text text = {0};
        char name[64];
        snprintf(name, sizeof name, "predicted p%d", rank);
        trace_print_spans(&text, first_process + rank, name, rank, &one_clock, spans[rank].items,
                          (size_t)spans[rank].count);
        fputs(text_string(&text), out);
        text_fini(&text);
    }
    if (simulation)
        fputs(TRACE_TAIL, out);
    int status = simulation ? 0 : -1;
    simulate_spans_destroy(spans, schedule->ranks);
    simulate_destroy(simulation);
    return status;
}
