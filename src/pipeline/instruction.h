/* The instructions of a pipeline schedule, and the table that holds one list of them per pipeline rank.
 *
 * A schedule is data: a pure function makes it (generate.h), lowering adds messages, reductions and the optimizer step
 * (lower.h), the validator proves it (validate.h), the simulator times it (simulate.h) and one interpreter runs it.
 *
 * P pipeline ranks with V chunks of the model each hold S = P * V stages; stage s is a contiguous slice of the layers,
 * in model order. A step pushes M microbatches through all stages and, when training, back. */
#ifndef PIPELINE_INSTRUCTION_H
#define PIPELINE_INSTRUCTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Name and symbol in the text form, which is that of PyTorch's pipelining: <stage><symbol><microbatch>.
 *
 * BACKWARD is BACKWARD_INPUT and BACKWARD_WEIGHT back to back. REDUCE_GRADIENTS starts the data-parallel reduction of
 * one stage's gradients and stands after the stage's last BACKWARD or BACKWARD_WEIGHT. OPTIMIZER_STEP is the last
 * instruction of every rank: finish the reductions, add tied weights' ends, norm, update. */
#define OPERATIONS(X)                  \
    X(FORWARD, "F")                    \
    X(BACKWARD, "B")                   \
    X(BACKWARD_INPUT, "I")             \
    X(BACKWARD_WEIGHT, "W")            \
    X(SEND_ACTIVATION, "SF")           \
    X(RECEIVE_ACTIVATION, "RF")        \
    X(SEND_GRADIENT, "SB")             \
    X(RECEIVE_GRADIENT, "RB")          \
    X(REDUCE_GRADIENTS, "REDUCE_GRAD") \
    X(OPTIMIZER_STEP, "STEP")

enum operation {
#define X(name, symbol) name,
    OPERATIONS(X)
#undef X
};

/* What a message between two ranks carries; each kind has an order of its own. */
enum message_kind {
    MESSAGE_ACTIVATION,
    MESSAGE_GRADIENT,
    MESSAGE_KINDS
};

struct instruction {
    enum operation op;
    int stage;      /* 0 .. S-1, a stage of the rank that has the instruction; -1 for OPTIMIZER_STEP */
    int microbatch; /* 0 .. M-1; -1 for REDUCE_GRADIENTS and OPTIMIZER_STEP */
    int peer;       /* pipeline rank at the other end of a send or receive; -1 otherwise */
};

/* Where the stages are. Loop: stage s is on rank s mod P. V: the chunks run down and up the ranks in turn, so that
 * chunk c of rank r is stage c*P + r for even c and c*P + P-1-r for odd c; the turns need no message. */
enum placement {
    PLACEMENT_LOOP,
    PLACEMENT_V
};

struct instruction_list {
    struct instruction *items;
    int64_t count;
    int64_t capacity; /* items there is room for */
};

struct schedule {
    int ranks;        /* P */
    int chunks;       /* V, stages on each rank */
    int stages;       /* S = P * V */
    int microbatches; /* M */
    enum placement placement;
    bool forward_only;              /* evaluation: no backward, reduction or step */
    struct instruction_list *lists; /* [ranks] */
};

/* "FORWARD" and "F" of an operation; static texts. */
const char *instruction_name(enum operation op);
const char *instruction_symbol(enum operation op);

/* Whether the operation computes: FORWARD, BACKWARD, BACKWARD_INPUT or BACKWARD_WEIGHT. */
bool instruction_computes(enum operation op);

/* Room that every instruction's text fits in. */
#define INSTRUCTION_TEXT_SIZE 48

/* Writes the text form, "2F0", "3SF1", "2REDUCE_GRAD" or "STEP", and returns `text`. */
const char *instruction_text(struct instruction instruction, char text[INSTRUCTION_TEXT_SIZE]);

/* An empty table, owned by the caller and freed by schedule_destroy(), which accepts NULL. All numbers at least 1, and
 * ranks * chunks within an int. */
struct schedule *schedule_create(int ranks, int chunks, int microbatches, enum placement placement);
void schedule_destroy(struct schedule *schedule);

/* Adds at the end of the rank's list. */
void schedule_append(struct schedule *schedule, int rank, struct instruction instruction);

/* The rank that has the stage, and the stage that is the rank's chunk. The chunk of a stage is stage / ranks. */
int schedule_rank_of(const struct schedule *schedule, int stage);
int schedule_stage_of(const struct schedule *schedule, int rank, int chunk);

/* The stage whose output for the same microbatch the computation takes (stage - 1 for FORWARD, stage + 1 for BACKWARD
 * and BACKWARD_INPUT), or -1: it takes none, or the instruction does not compute. */
int schedule_producer(const struct schedule *schedule, struct instruction instruction);

/* The stage that takes the computation's output, in the same sense. */
int schedule_consumer(const struct schedule *schedule, struct instruction instruction);

/* The other rank that the computation's input comes from, or -1 where it takes none or it was computed here. */
int schedule_source(const struct schedule *schedule, struct instruction instruction);

/* The number of (stage, microbatch) pairs, and the place of one of them in an array of all. */
static inline size_t schedule_cells(const struct schedule *schedule)
{
    return (size_t)schedule->stages * (size_t)schedule->microbatches;
}

static inline size_t schedule_cell(const struct schedule *schedule, int stage, int microbatch)
{
    return (size_t)stage * (size_t)schedule->microbatches + (size_t)microbatch;
}

/* Prints one rank's list on one line: "r0: 0F0 0SF0 ...". */
void schedule_print_rank(const struct schedule *schedule, int rank, FILE *out);

#endif
