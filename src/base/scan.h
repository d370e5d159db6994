/* The characters and words of a namelist text: a cursor that knows its line. */
#ifndef BASE_SCAN_H
#define BASE_SCAN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/mistake.h"
#include "base/namelist.h"

struct scan {
    const struct source *source;
    size_t at; /* offset of the current byte */
    int line;
    size_t line_start; /* offset of the current line's first byte */
    bool single_line;  /* values of the command line: no comments, no assignments, no ends of lines */
};

bool scan_is_letter(int c);
bool scan_is_digit(int c);
bool scan_is_name(int c);      /* letter, digit or underscore */
bool scan_is_blank(int c);     /* also an end of line */
bool scan_is_separator(int c); /* ends a number or a word: blank, comma, slash, comment, end of the text */

/* The byte `ahead` of the current one as an unsigned char, -1 behind the end. */
int scan_peek(const struct scan *scan, size_t ahead);

/* Moves over so many bytes, all of them inside the text. */
void scan_advance(struct scan *scan, size_t bytes);

/* Moves over blanks and tabs; scan_skip_blanks also over ends of lines and comments. */
void scan_skip_inline(struct scan *scan);
void scan_skip_blanks(struct scan *scan);

/* The place of the next `width` bytes. */
struct place scan_place(const struct scan *scan, size_t width);

/* Bytes of the name here; 0: none. */
size_t scan_name_length(const struct scan *scan);

/* Bytes, at least 1, of the word here: blanks, commas, quotes and '=' end it. A '/' inside it belongs to it (a path
 * without quotes), at the line's end it closes the group. */
size_t scan_word_length(const struct scan *scan);

/* Bytes of the string in quotes that starts here, up to the line's end when it is not closed. */
size_t scan_string_length(const struct scan *scan, bool *closed);

/* Whether `key =`, `key(...) =` or `key%...` stands here. */
bool scan_at_assignment(const struct scan *scan);

/* Whether the next `bytes` bytes are `word`, in any case. */
bool scan_word_is(const struct scan *scan, size_t bytes, const char *word);

/* Whether the next `bytes` bytes spell a number, and of which kind. */
bool scan_number(const struct scan *scan, size_t bytes, enum namelist_kind *kind);

/* 't' or 'f' where the next `bytes` bytes spell a logical, else 0. */
char scan_logical(const struct scan *scan, size_t bytes);

#endif
