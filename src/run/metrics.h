/* metrics.jsonl: one JSON object a line. Rank 0 writes; numbers are printed so that they read back exactly, and as null
 * where they are not finite. */
#ifndef RUN_METRICS_H
#define RUN_METRICS_H

#include <stdint.h>

#include "base/error.h"
#include "base/text.h"

struct metrics;

/* Opens <folder>/metrics.jsonl for lines of steps after `step`: lines of later steps, which a resumed run will make
 * again, are cut off, and so is a line that was not finished. Owned by the caller. Returns 0, or -1 with *err. */
int metrics_open(struct metrics **metrics, const char *folder, int64_t step, struct err *err);
void metrics_close(struct metrics *metrics); /* NULL is allowed */

/* Builds a line: begin, keys in order, end (which writes and flushes it; ends the job when the file cannot be written).
 */
void metrics_begin(struct metrics *metrics, int64_t step);
void metrics_real(struct metrics *metrics, const char *key, double value);
void metrics_count(struct metrics *metrics, const char *key, int64_t value);
void metrics_text(struct metrics *metrics, const char *key, const char *value);
void metrics_end(struct metrics *metrics);

#endif
