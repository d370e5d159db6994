/* Mistakes in an input text, shown as compilers do:
 *
 *     input.nml:14:3: error: unknown key 'layer' in &model
 *        14 |   layer = 24
 *           |   ^~~~~  did you mean 'layers'?
 */
#ifndef BASE_MISTAKE_H
#define BASE_MISTAKE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/text.h"

/* A text to complain about. It belongs to the caller. */
struct source {
    const char *name; /* the file's, or "command line" */
    const char *text; /* not closed by a zero */
    size_t length;
    bool numbered; /* a file; false: a text without line numbers */
};

/* A stretch of a source, all on one line. */
struct place {
    size_t offset; /* of its first byte in the text */
    int line;      /* from 1 */
    int column;    /* in bytes, from 1 */
    int width;     /* bytes */
};

/* Mistakes found so far; all zero is none. */
struct mistakes {
    struct mistake *list; /* private */
    int kept;
    int count; /* all of them; only the first hundred are kept */
};

/* Notes a mistake. What the format gives after a newline is a hint, shown behind the caret. */
void mistake_add(struct mistakes *mistakes, const struct source *source, struct place place, const char *format, ...)
    PRINTF_LIKE(4, 5);

/* Appends all messages to `out`, those of a numbered source first and in the order of their lines. */
void mistakes_print(struct mistakes *mistakes, struct text *out);

/* Frees the memory and leaves no mistakes. */
void mistakes_fini(struct mistakes *mistakes);

#endif
