#include "base/text.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

static void reserve(struct text *text, size_t more)
{
    if (more >= SIZE_MAX / 2 - text->length)
        fatal("a text of more than %zu bytes", SIZE_MAX / 2);
    size_t needed = text->length + more + 1;
    if (needed <= text->capacity)
        return;
    size_t capacity = needed > 2 * text->capacity ? needed : 2 * text->capacity;
    char *bytes = realloc(text->bytes, capacity);
    if (!bytes)
        fatal("out of host memory: a text of %zu bytes", capacity);
    text->bytes = bytes;
    text->capacity = capacity;
}

void text_add_bytes(struct text *text, const char *bytes, size_t count)
{
    reserve(text, count);
    if (count)
        memcpy(text->bytes + text->length, bytes, count);
    text->length += count;
    text->bytes[text->length] = 0;
}

void text_add(struct text *text, const char *format, ...)
{
    va_list list, again;
    va_start(list, format);
    va_copy(again, list);
    int length = vsnprintf(NULL, 0, format, list);
    va_end(list);
    if (length < 0)
        fatal("a text could not be formatted: '%s'", format);
    reserve(text, (size_t)length);
    vsnprintf(text->bytes + text->length, (size_t)length + 1, format, again);
    va_end(again);
    text->length += (size_t)length;
}

const char *text_string(const struct text *text)
{
    return text->bytes ? text->bytes : "";
}

void text_fini(struct text *text)
{
    free(text->bytes);
    *text = (struct text){0};
}

/* Three significant digits, so that 9.996 moves on to 10.0 and not to 10.00. */
static struct short_text three_digits(double value, const char *unit)
{
    struct short_text out;
    int decimals = fabs(value) < 9.995 ? 2 : fabs(value) < 99.95 ? 1 : 0;
    snprintf(out.text, sizeof out.text, "%.*f %s", decimals, value, unit);
    return out;
}

struct short_text text_bytes(double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t unit = 0;
    while (fabs(bytes) >= 1023.5 && unit + 1 < sizeof units / sizeof *units) {
        bytes /= 1024;
        unit++;
    }
    if (unit > 0)
        return three_digits(bytes, units[unit]);
    struct short_text out;
    snprintf(out.text, sizeof out.text, "%.0f B", bytes);
    return out;
}

struct short_text text_duration(double seconds)
{
    double size = fabs(seconds);
    if (size < 59.95) {
        if (size < 999.5e-9)
            return three_digits(seconds * 1e9, "ns");
        if (size < 999.5e-6)
            return three_digits(seconds * 1e6, "us");
        if (size < 999.5e-3)
            return three_digits(seconds * 1e3, "ms");
        return three_digits(seconds, "s");
    }
    struct short_text out;
    const char *sign = seconds < 0 ? "-" : "";
    double whole = floor(size + 0.5);
    if (whole < 3600)
        snprintf(out.text, sizeof out.text, "%s%.0f min %02.0f s", sign, floor(whole / 60), fmod(whole, 60));
    else if (whole < 86400)
        snprintf(out.text, sizeof out.text, "%s%.0f h %02.0f min", sign, floor(whole / 3600),
                 floor(fmod(whole, 3600) / 60));
    else if (whole < 1e12)
        snprintf(out.text, sizeof out.text, "%s%.0f d %02.0f h", sign, floor(whole / 86400),
                 floor(fmod(whole, 86400) / 3600));
    else
        snprintf(out.text, sizeof out.text, "%g s", seconds);
    return out;
}

struct short_text text_clip(const char *bytes, size_t count)
{
    struct short_text out;
    const size_t room = sizeof out.text - 6; /* two quotes, three points and the closing zero */
    size_t length = count < room ? count : room;
    while (length > 0 && length < count && ((unsigned char)bytes[length] & 0xc0) == 0x80)
        length--; /* not within a character of UTF-8 */
    for (size_t i = 0; i < length; i++)
        out.text[i] = (unsigned char)bytes[i] < 0x20 || bytes[i] == 0x7f ? '?' : bytes[i];
    snprintf(out.text + length, sizeof out.text - length, "%s", length < count ? "..." : "");
    return out;
}

struct short_text text_quote(const char *name)
{
    struct short_text clip = text_clip(name, strlen(name)), out;
    snprintf(out.text, sizeof out.text, "'%.*s'", (int)sizeof out.text - 3, clip.text);
    return out;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

int text_distance(const char *a, const char *b)
{
    if (strlen(a) < strlen(b)) {
        const char *swap = a;
        a = b;
        b = swap;
    }
    size_t width = strlen(b) + 1;
    int *memory = allocate(3 * width, sizeof *memory);
    int *before = memory, *above = memory + width, *row = memory + 2 * width; /* rows i-2, i-1 and i */
    for (size_t j = 0; j < width; j++)
        row[j] = (int)j;
    for (size_t i = 1; a[i - 1]; i++) {
        int *oldest = before;
        before = above;
        above = row;
        row = oldest;
        row[0] = (int)i;
        for (size_t j = 1; j < width; j++) {
            int same = a[i - 1] == b[j - 1];
            row[j] = least(least(above[j], row[j - 1]) + 1, above[j - 1] + !same);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = least(row[j], before[j - 2] + 1);
        }
    }
    int distance = row[width - 1];
    free(memory);
    return distance;
}

const char *text_nearest(const char *name, const char *const *names, int count)
{
    const char *nearest = NULL;
    size_t best = SIZE_MAX, length = strlen(name);
    for (int i = 0; i < count; i++) {
        size_t other = strlen(names[i]);
        size_t longer = length > other ? length : other, shorter = length > other ? other : length;
        size_t limit = longer < 6 ? 1 : longer / 3;
        if (longer - shorter > limit) /* the distance is at least the difference of the lengths */
            continue;
        size_t distance = (size_t)text_distance(name, names[i]);
        if (distance <= limit && distance < best) {
            best = distance;
            nearest = names[i];
        }
    }
    return nearest;
}
