#include "base/mistake.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum {
    KEPT_MAX = 100,  /* messages shown */
    SHOWN_MAX = 120, /* bytes of a source line shown */
    BEFORE_MAX = 40  /* of which before the mistake, when the line is longer */
};

struct mistake {
    bool numbered;
    struct place place;
    int number; /* in the order of finding: the order of equals */
    char *text; /* the whole message */
};

static bool continues_character(char c)
{
    return ((unsigned char)c & 0xc0) == 0x80; /* UTF-8 */
}

static char printable(char c)
{
    return ((unsigned char)c < 0x20 && c != '\t') || c == 0x7f ? '?' : c;
}

/* The source line, or the part of a long one around the place, and below it the caret and the hint. */
static void show_line(struct text *out, const struct source *source, struct place place, const char *hint)
{
    size_t from = place.offset - (size_t)(place.column - 1);
    size_t to = place.offset;
    while (to < source->length && to - place.offset < SHOWN_MAX && source->text[to] != '\n')
        to++;
    const char *before = "", *after = "";
    if (place.offset - from > SHOWN_MAX - BEFORE_MAX) {
        from = place.offset - BEFORE_MAX;
        while (from < place.offset && continues_character(source->text[from]))
            from++;
        before = "...";
    }
    if (to - from > SHOWN_MAX)
        to = from + SHOWN_MAX;
    while (to > place.offset && to < source->length && continues_character(source->text[to]))
        to--;
    if (to < source->length && source->text[to] != '\n')
        after = "...";
    else if (to > from && source->text[to - 1] == '\r')
        to--;

    char margin[24] = "     ";
    if (source->numbered)
        snprintf(margin, sizeof margin, "%5d", place.line);
    text_add(out, "%s | %s", margin, before);
    for (size_t i = from; i < to; i++)
        text_add_bytes(out, (char[]){printable(source->text[i])}, 1);
    text_add(out, "%s\n%*s | %*s", after, (int)strlen(margin), "", (int)strlen(before), "");
    for (size_t i = from; i < place.offset; i++)
        if (!continues_character(source->text[i]))
            text_add(out, "%c", source->text[i] == '\t' ? '\t' : ' ');
    text_add(out, "^");
    for (size_t i = place.offset + 1; i < place.offset + (size_t)place.width && i < to; i++)
        if (!continues_character(source->text[i]))
            text_add(out, "~");
    text_add(out, "%s%s\n", hint[0] ? "  " : "", hint);
}

void mistake_add(struct mistakes *mistakes, const struct source *source, struct place place, const char *format, ...)
{
    mistakes->count++;
    if (mistakes->kept == KEPT_MAX)
        return;
    if (!mistakes->list)
        mistakes->list = allocate(KEPT_MAX, sizeof *mistakes->list);

    char message[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    char *end = strchr(message, '\n');
    const char *hint = end ? end + 1 : "";
    if (end)
        *end = 0;

    struct text text = {0};
    text_add(&text, "%s:", source->name);
    if (source->numbered)
        text_add(&text, "%d:%d:", place.line, place.column);
    text_add(&text, " error: %s\n", message);
    show_line(&text, source, place, hint);
    mistakes->list[mistakes->kept] = (struct mistake){source->numbered, place, mistakes->kept, text.bytes};
    mistakes->kept++;
}

static int compare(const void *left, const void *right)
{
    const struct mistake *a = left, *b = right;
    if (a->numbered != b->numbered)
        return a->numbered ? -1 : 1;
    if (a->numbered && a->place.offset != b->place.offset)
        return a->place.offset < b->place.offset ? -1 : 1;
    return a->number - b->number;
}

void mistakes_print(struct mistakes *mistakes, struct text *out)
{
    if (mistakes->kept > 1)
        qsort(mistakes->list, (size_t)mistakes->kept, sizeof *mistakes->list, compare);
    for (int i = 0; i < mistakes->kept; i++)
        text_add(out, "%s", mistakes->list[i].text);
    if (mistakes->count > mistakes->kept)
        text_add(out, "%d more mistakes are not shown\n", mistakes->count - mistakes->kept);
}

void mistakes_fini(struct mistakes *mistakes)
{
    for (int i = 0; i < mistakes->kept; i++)
        free(mistakes->list[i].text);
    free(mistakes->list);
    *mistakes = (struct mistakes){0};
}
