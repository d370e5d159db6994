#include "pipeline/csv.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* A computation and where it was read. */
struct cell {
    struct instruction computation;
    int line, cell; /* from 1; the line is the rank's number plus 1 */
};

struct reader {
    const char *name;
    const char *at, *end;
    int line;
    struct cell *cells;
    int64_t count, capacity;
    struct err *err;
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* A number at *at, which moves behind it; -1 where there is none or it is too large. */
static int read_number(const char **at, const char *end)
{
    int64_t number = 0;
    const char *first = *at;
    for (; *at < end && **at >= '0' && **at <= '9'; ++*at)
        if (number < INT_MAX)
            number = 10 * number + (**at - '0');
    return *at == first || number >= INT_MAX ? -1 : (int)number;
}

/* The computation that a cell without blanks around it spells; false when it spells none. */
static bool read_computation(const char *at, const char *end, struct instruction *computation)
{
    *computation = (struct instruction){.stage = read_number(&at, end), .peer = -1};
    if (computation->stage < 0 || at == end)
        return false;
    int op = FORWARD;
    while (instruction_computes((enum operation)op) && *at != *instruction_symbol((enum operation)op))
        op++;
    at++;
    computation->op = (enum operation)op;
    computation->microbatch = read_number(&at, end);
    return instruction_computes(computation->op) && computation->microbatch >= 0 && at == end;
}

static void add_cell(struct reader *reader, struct cell cell)
{
    if (reader->count == reader->capacity) {
        reader->capacity = reader->capacity ? 2 * reader->capacity : 256;
        reader->cells = realloc(reader->cells, (size_t)reader->capacity * sizeof *reader->cells);
        if (!reader->cells)
            fatal("out of host memory: %s", reader->name);
    }
    reader->cells[reader->count++] = cell;
}

/* Reads the cell that ends before `end`. */
static int read_cell(struct reader *reader, const char *end, int number)
{
    struct cell cell = {.line = reader->line, .cell = number};
    const char *first = reader->at;
    while (first < end && is_blank(*first))
        first++;
    while (end > first && is_blank(end[-1]))
        end--;
    if (first == end)
        return 0;
    if (!read_computation(first, end, &cell.computation))
        return err_set(reader->err,
                       "%s:%d:%d: '%s' is not a computation: a stage, one of F, B, I and W, and a microbatch, as in "
                       "3F12; messages and reductions are not given",
                       reader->name, reader->line, number, text_clip(first, (size_t)(end - first)).text);
    add_cell(reader, cell);
    return 0;
}

static int read_lines(struct reader *reader)
{
    while (reader->at < reader->end) {
        const char *newline = memchr(reader->at, '\n', (size_t)(reader->end - reader->at));
        const char *line_end = newline ? newline : reader->end;
        reader->line++;
        const char *comma = line_end;
        for (int number = 1; comma; number++) {
            comma = memchr(reader->at, ',', (size_t)(line_end - reader->at));
            if (read_cell(reader, comma ? comma : line_end, number) < 0)
                return -1;
            if (comma)
                reader->at = comma + 1;
        }
        reader->at = newline ? newline + 1 : reader->end;
    }
    return 0;
}

/* The stage is not on the rank of its line in a loop, or in a V. */
static bool misplaced(const struct schedule *shape, const struct cell *cell, enum placement placement)
{
    struct schedule placed = *shape;
    placed.placement = placement;
    return schedule_rank_of(&placed, cell->computation.stage) != cell->line - 1;
}

/* The placement that all cells fit; the cell after which none is left is the mistake. */
static int find_placement(const struct reader *reader, struct schedule *shape)
{
    bool loop = true, v = true;
    for (int64_t i = 0; i < reader->count; i++) {
        const struct cell *cell = &reader->cells[i];
        loop = loop && !misplaced(shape, cell, PLACEMENT_LOOP);
        v = v && !misplaced(shape, cell, PLACEMENT_V);
        if (!loop && !v)
            return err_set(reader->err,
                           "%s:%d:%d: stage %d cannot be on rank %d, with the stages of the cells before where they "
                           "are: over %d ranks stages go round in a loop (stage s on rank s mod %d) or down and up in "
                           "a V",
                           reader->name, cell->line, cell->cell, cell->computation.stage, cell->line - 1, shape->ranks,
                           shape->ranks);
    }
    shape->placement = loop ? PLACEMENT_LOOP : PLACEMENT_V;
    return 0;
}

/* Ranks, chunks, microbatches and placement. As many forwards as stages and microbatches make bounds their numbers. */
static int find_shape(const struct reader *reader, struct schedule *shape)
{
    int64_t forwards = 0;
    for (int64_t i = 0; i < reader->count; i++) {
        const struct cell *cell = &reader->cells[i];
        if (cell->line > shape->ranks)
            shape->ranks = cell->line;
        if (cell->computation.stage >= shape->stages)
            shape->stages = cell->computation.stage + 1;
        if (cell->computation.microbatch >= shape->microbatches)
            shape->microbatches = cell->computation.microbatch + 1;
        forwards += cell->computation.op == FORWARD;
    }
    if (reader->count == 0)
        return err_set(reader->err, "%s holds no computations", reader->name);
    if (shape->stages % shape->ranks != 0)
        return err_set(reader->err,
                       "%s: its %d lines, one for each rank, do not share its stages 0 to %d out evenly: each needs as "
                       "many",
                       reader->name, shape->ranks, shape->stages - 1);
    if ((int64_t)shape->stages * shape->microbatches != forwards)
        return err_set(reader->err,
                       "%s: stages 0 to %d with microbatches 0 to %d need %" PRId64 " forwards, not %" PRId64,
                       reader->name, shape->stages - 1, shape->microbatches - 1,
                       (int64_t)shape->stages * shape->microbatches, forwards);
    shape->chunks = shape->stages / shape->ranks;
    return find_placement(reader, shape);
}

struct schedule *csv_parse(const char *name, const char *bytes, size_t length, struct err *err)
{
    struct reader reader = {.name = name, .at = bytes, .end = bytes + length, .err = err};
    struct schedule shape = {0}, *schedule = NULL;
    if (read_lines(&reader) == 0 && find_shape(&reader, &shape) == 0) {
        schedule = schedule_create(shape.ranks, shape.chunks, shape.microbatches, shape.placement);
        for (int64_t i = 0; i < reader.count; i++)
            schedule_append(schedule, reader.cells[i].line - 1, reader.cells[i].computation);
    }
    free(reader.cells);
    return schedule;
}

int csv_check(const char *name, const struct schedule *schedule, int ranks, int chunks, int microbatches,
              struct err *err)
{
    if (schedule->ranks != ranks)
        return err_set(err, "%s has lines for pipeline = %d, but &grid pipeline = %d", name, schedule->ranks, ranks);
    if (schedule->chunks != chunks)
        return err_set(err, "%s is for chunks = %d, but &pipeline chunks = %d; set chunks = %d", name, schedule->chunks,
                       chunks, schedule->chunks);
    if (schedule->microbatches != microbatches)
        return err_set(err, "%s is for microbatches = %d, but &pipeline microbatches = %d; set microbatches = %d", name,
                       schedule->microbatches, microbatches, schedule->microbatches);
    return 0;
}

void csv_print(const struct schedule *schedule, struct text *out)
{
    for (int rank = 0; rank < schedule->ranks; rank++) {
        const struct instruction_list *list = &schedule->lists[rank];
        const char *comma = "";
        for (int64_t i = 0; i < list->count; i++) {
            char text[INSTRUCTION_TEXT_SIZE];
            if (!instruction_computes(list->items[i].op))
                continue;
            text_add(out, "%s%s", comma, instruction_text(list->items[i], text));
            comma = ",";
        }
        text_add(out, "\n");
    }
}
