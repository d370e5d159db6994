/* Packing files into a dataset, byte by byte: tokenizer "bytes", a vocabulary of 256, each file a document. Streams:
 * any size, in a few MiB of memory. For one process. */
#ifndef IO_PACK_H
#define IO_PACK_H

#include <stdint.h>

#include "base/error.h"

struct pack {
    const char *const *inputs; /* regular files, in the order of the stream */
    int input_count;
    const char *output;
    double validation; /* share of the stream, its end, that goes to a file of its own; 0: none. At least 0, below 1 */
    void (*progress)(void *context, int64_t done, int64_t all); /* bytes; called every few MiB; NULL: not wanted */
    void *context;
};

/* What was packed. The validation file is <output without .h5>-validation.h5. */
struct packed {
    int64_t tokens, validation_tokens;
    char *validation_path; /* owned by the caller; NULL: none */
};

/* EXIT_DONE; EXIT_BAD_INPUT where an input or the share does not do, EXIT_FAILED where the disk does not. After an
 * error no file was changed. */
enum exit_code pack(const struct pack *job, struct packed *packed, struct err *err);

#endif
