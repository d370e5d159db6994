/* Schedules as comma-separated text, in the compute-only notation of PyTorch's pipelining: one line per pipeline rank,
 * one cell per computation: <stage>F<microbatch>, or B for a full backward, I and W for its halves. Empty cells are
 * idle times and mean nothing to the order. */
#ifndef PIPELINE_CSV_H
#define PIPELINE_CSV_H

#include <stddef.h>

#include "base/error.h"
#include "base/text.h"
#include "pipeline/instruction.h"

/* Reads a text. Ranks, chunks and microbatches are what its lines and numbers say, and the placement is the one of loop
 * and V that has the stages on these ranks. NULL with *err, "<name>:<line>:<cell>: ..." with both counted from 1, for a
 * cell that is no computation or a stage in no such place, and for counts that do not fit together. What else can be
 * wrong is the validator's. `name` is the file's, for messages. Owned by the caller. */
struct schedule *csv_parse(const char *name, const char *bytes, size_t length, struct err *err);

/* 0 when the schedule has what &grid pipeline, &pipeline chunks and microbatches say; else -1 with *err naming the
 * keys. */
int csv_check(const char *name, const struct schedule *schedule, int ranks, int chunks, int microbatches,
              struct err *err);

/* Appends the computations of a schedule, lowered or not, without idle cells; csv_parse gives them back. */
void csv_print(const struct schedule *schedule, struct text *out);

#endif
