#include "base/scan.h"

#include <ctype.h>

enum {
    INDEX_MAX = 64 /* bytes of an index with its blanks */
};

int scan_peek(const struct scan *scan, size_t ahead)
{
    return ahead < scan->source->length - scan->at ? (unsigned char)scan->source->text[scan->at + ahead] : -1;
}

void scan_advance(struct scan *scan, size_t bytes)
{
    for (; bytes > 0; bytes--) {
        if (scan->source->text[scan->at++] == '\n') {
            scan->line++;
            scan->line_start = scan->at;
        }
    }
}

bool scan_is_letter(int c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool scan_is_digit(int c)
{
    return c >= '0' && c <= '9';
}

bool scan_is_name(int c)
{
    return scan_is_letter(c) || scan_is_digit(c) || c == '_';
}

bool scan_is_blank(int c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

bool scan_is_separator(int c)
{
    return scan_is_blank(c) || c == ',' || c == '/' || c == '!' || c < 0;
}

void scan_skip_inline(struct scan *scan)
{
    while (scan_peek(scan, 0) == ' ' || scan_peek(scan, 0) == '\t')
        scan_advance(scan, 1);
}

static void skip_line(struct scan *scan)
{
    while (scan_peek(scan, 0) >= 0 && scan_peek(scan, 0) != '\n')
        scan_advance(scan, 1);
}

void scan_skip_blanks(struct scan *scan)
{
    for (;;) {
        if (scan_is_blank(scan_peek(scan, 0)))
            scan_advance(scan, 1);
        else if (scan_peek(scan, 0) == '!' && !scan->single_line)
            skip_line(scan);
        else
            return;
    }
}

struct place scan_place(const struct scan *scan, size_t width)
{
    return (struct place){scan->at, scan->line, (int)(scan->at - scan->line_start) + 1, (int)width};
}

size_t scan_name_length(const struct scan *scan)
{
    size_t bytes = 0;
    while (scan_is_name(scan_peek(scan, bytes)))
        bytes++;
    return bytes;
}

bool scan_at_assignment(const struct scan *scan)
{
    if (!scan_is_letter(scan_peek(scan, 0)) || scan->single_line)
        return false;
    size_t i = scan_name_length(scan);
    while (scan_peek(scan, i) == ' ' || scan_peek(scan, i) == '\t')
        i++;
    if (scan_peek(scan, i) == '(') {
        size_t end = i + INDEX_MAX;
        while (i < end && scan_peek(scan, i) != ')' && scan_peek(scan, i) != '\n' && scan_peek(scan, i) >= 0)
            i++;
        if (scan_peek(scan, i) != ')')
            return false;
        i++;
        while (scan_peek(scan, i) == ' ' || scan_peek(scan, i) == '\t')
            i++;
    }
    return scan_peek(scan, i) == '=' || scan_peek(scan, i) == '%';
}

/* Whether nothing but a comment or another group follows on the line, `ahead` bytes from here. */
static bool line_ends(const struct scan *scan, size_t ahead)
{
    while (scan_peek(scan, ahead) == ' ' || scan_peek(scan, ahead) == '\t' || scan_peek(scan, ahead) == '\r')
        ahead++;
    int c = scan_peek(scan, ahead);
    return c < 0 || c == '\n' || c == '!' || c == '&' || c == '$';
}

size_t scan_word_length(const struct scan *scan)
{
    size_t i = 0;
    for (;; i++) {
        int c = scan_peek(scan, i);
        if (scan_is_blank(c) || c == ',' || c == '!' || c == '\'' || c == '"' || c == '=' || c < 0)
            break;
        if (c == '/' && i > 0 && line_ends(scan, i + 1))
            break;
    }
    return i ? i : 1;
}

size_t scan_string_length(const struct scan *scan, bool *closed)
{
    int quote = scan_peek(scan, 0);
    size_t i = 1;
    for (;; i++) {
        int c = scan_peek(scan, i);
        *closed = c == quote;
        if (c == quote && scan_peek(scan, i + 1) == quote)
            i++;
        else if (c == quote)
            return i + 1;
        else if (c < 0 || c == '\n' || (c == '\r' && scan_peek(scan, i + 1) == '\n'))
            return i;
    }
}

bool scan_number(const struct scan *scan, size_t bytes, enum namelist_kind *kind)
{
    size_t i = scan_peek(scan, 0) == '+' || scan_peek(scan, 0) == '-', digits = 0;
    for (; i < bytes && scan_is_digit(scan_peek(scan, i)); i++)
        digits++;
    *kind = i < bytes ? NAMELIST_REAL : NAMELIST_INT;
    if (i < bytes && scan_peek(scan, i) == '.')
        for (i++; i < bytes && scan_is_digit(scan_peek(scan, i)); i++)
            digits++;
    if (digits == 0)
        return false;
    if (i == bytes)
        return true;
    int letter = tolower(scan_peek(scan, i));
    if (letter != 'e' && letter != 'd')
        return false;
    i++;
    if (i < bytes && (scan_peek(scan, i) == '+' || scan_peek(scan, i) == '-'))
        i++;
    size_t exponent = i;
    while (i < bytes && scan_is_digit(scan_peek(scan, i)))
        i++;
    return i == bytes && i > exponent;
}

bool scan_word_is(const struct scan *scan, size_t bytes, const char *word)
{
    size_t i = 0;
    while (i < bytes && word[i] && tolower(scan_peek(scan, i)) == word[i])
        i++;
    return i == bytes && !word[i];
}

char scan_logical(const struct scan *scan, size_t bytes)
{
    static const char *const words[] = {".true.", ".t.", "true", "t", ".false.", ".f.", "false", "f"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (scan_word_is(scan, bytes, words[i]))
            return words[i][0] == '.' ? words[i][1] : words[i][0];
    return 0;
}
