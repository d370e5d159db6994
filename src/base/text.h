/* Texts for people: a growing string, names near to a misspelt one, and amounts in readable units. */
#ifndef BASE_TEXT_H
#define BASE_TEXT_H

#include <stddef.h>

#include "base/error.h"

/* A growing string; all zero is an empty one: `struct text text = {0};`. */
struct text {
    char *bytes;     /* closed by a zero; NULL while nothing was added */
    size_t length;   /* bytes before the closing zero */
    size_t capacity; /* bytes allocated */
};

/* A text small enough to be returned by value: `printf("%s", text_bytes(n).text)`. */
struct short_text {
    char text[64];
};

/* Appends; end the job when memory runs out. text_add_bytes takes any bytes and any count of them. */
void text_add(struct text *text, const char *format, ...) PRINTF_LIKE(2, 3);
void text_add_bytes(struct text *text, const char *bytes, size_t count);

/* The string so far, "" when nothing was added; valid until the next text_add. */
const char *text_string(const struct text *text);

/* Frees the memory and leaves an empty text. */
void text_fini(struct text *text);

/* `bytes` in binary units with three digits: "17 B", "12.3 GiB", "1.00 TiB". Negative amounts keep their sign. */
struct short_text text_bytes(double bytes);

/* A duration in seconds: "250 ns", "3.21 ms", "12.3 s", "4 min 05 s", "3 h 12 min", "2 d 03 h". */
struct short_text text_duration(double seconds);

/* Foreign bytes for a message: control characters as '?', long ones cut and closed by "...". text_quote puts single
 * quotes around them. */
struct short_text text_clip(const char *bytes, size_t count);
struct short_text text_quote(const char *name);

/* Edit distance: the least number of inserted, removed or replaced characters and exchanged neighbours that turns
 * `a` into `b` (optimal string alignment: no part is edited twice). Time and memory grow with the product and the
 * smaller of the lengths. */
int text_distance(const char *a, const char *b);

/* The one of `count` names nearest to `name`, the first of several; NULL when none is near: more than a third of
 * the longer one's characters (but at least one) would have to be edited. */
const char *text_nearest(const char *name, const char *const *names, int count);

#endif
