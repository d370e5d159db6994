#include "pipeline/instruction.h"

#include <stdlib.h>

#include "base/error.h"
#include "base/memory.h"

static const struct {
    const char *name;
    const char *symbol;
} operations[] = {
#define X(name, symbol) {#name, symbol},
    OPERATIONS(X)
#undef X
};

const char *instruction_name(enum operation op)
{
    return operations[op].name;
}

const char *instruction_symbol(enum operation op)
{
    return operations[op].symbol;
}

bool instruction_computes(enum operation op)
{
    return op == FORWARD || op == BACKWARD || op == BACKWARD_INPUT || op == BACKWARD_WEIGHT;
}

const char *instruction_text(struct instruction instruction, char text[INSTRUCTION_TEXT_SIZE])
{
    const char *symbol = instruction_symbol(instruction.op);
    if (instruction.op == OPTIMIZER_STEP)
        snprintf(text, INSTRUCTION_TEXT_SIZE, "%s", symbol);
    else if (instruction.op == REDUCE_GRADIENTS)
        snprintf(text, INSTRUCTION_TEXT_SIZE, "%d%s", instruction.stage, symbol);
    else
        snprintf(text, INSTRUCTION_TEXT_SIZE, "%d%s%d", instruction.stage, symbol, instruction.microbatch);
    return text;
}

struct schedule *schedule_create(int ranks, int chunks, int microbatches, enum placement placement)
{
    struct schedule *schedule = allocate(1, sizeof *schedule);
    *schedule = (struct schedule){.ranks = ranks,
                                  .chunks = chunks,
                                  .stages = ranks * chunks,
                                  .microbatches = microbatches,
                                  .placement = placement,
                                  .lists = allocate((size_t)ranks, sizeof *schedule->lists)};
    return schedule;
}

void schedule_destroy(struct schedule *schedule)
{
    if (!schedule)
        return;
    for (int rank = 0; rank < schedule->ranks; rank++)
        free(schedule->lists[rank].items);
    free(schedule->lists);
    free(schedule);
}

void schedule_append(struct schedule *schedule, int rank, struct instruction instruction)
{
    struct instruction_list *list = &schedule->lists[rank];
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 64;
        list->items = realloc(list->items, (size_t)list->capacity * sizeof *list->items);
        if (!list->items)
            fatal("out of host memory: a schedule of %d stages and %d microbatches", schedule->stages,
                  schedule->microbatches);
    }
    list->items[list->count++] = instruction;
}

/* The chunk's place among the ranks runs backwards. */
static bool runs_up(const struct schedule *schedule, int chunk)
{
    return schedule->placement == PLACEMENT_V && chunk % 2 == 1;
}

int schedule_rank_of(const struct schedule *schedule, int stage)
{
    int chunk = stage / schedule->ranks, place = stage % schedule->ranks;
    return runs_up(schedule, chunk) ? schedule->ranks - 1 - place : place;
}

int schedule_stage_of(const struct schedule *schedule, int rank, int chunk)
{
    return chunk * schedule->ranks + (runs_up(schedule, chunk) ? schedule->ranks - 1 - rank : rank);
}

int schedule_producer(const struct schedule *schedule, struct instruction instruction)
{
    if (instruction.op == FORWARD)
        return instruction.stage - 1;
    if ((instruction.op == BACKWARD || instruction.op == BACKWARD_INPUT) && instruction.stage < schedule->stages - 1)
        return instruction.stage + 1;
    return -1;
}

int schedule_consumer(const struct schedule *schedule, struct instruction instruction)
{
    if (instruction.op == FORWARD && instruction.stage < schedule->stages - 1)
        return instruction.stage + 1;
    if (instruction.op == BACKWARD || instruction.op == BACKWARD_INPUT)
        return instruction.stage - 1;
    return -1;
}

int schedule_source(const struct schedule *schedule, struct instruction instruction)
{
    int producer = schedule_producer(schedule, instruction);
    if (producer < 0)
        return -1;
    int source = schedule_rank_of(schedule, producer);
    return source == schedule_rank_of(schedule, instruction.stage) ? -1 : source;
}

void schedule_print_rank(const struct schedule *schedule, int rank, FILE *out)
{
    const struct instruction_list *list = &schedule->lists[rank];
    char text[INSTRUCTION_TEXT_SIZE];
    fprintf(out, "r%d:", rank);
    for (int64_t index = 0; index < list->count; index++)
        fprintf(out, " %s", instruction_text(list->items[index], text));
    fputc('\n', out);
}
