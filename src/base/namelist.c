#include "base/namelist.h"

#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/scan.h"

enum {
    LENGTH_MAX = 1 << 26 /* bytes of a text: places fit into an int */
};

struct parser {
    struct scan scan;
    const struct source *source;
    struct namelist *out;
    struct mistakes *mistakes;
};

/* --- results ---------------------------------------------------------------------------------------------------- */

/* Room for one more item in a list that doubles. */
static void *grow(void *list, int count, int *capacity, size_t size)
{
    if (count < *capacity)
        return list;
    *capacity = *capacity ? 2 * *capacity : 16;
    list = realloc(list, (size_t)*capacity * size);
    if (!list)
        fatal("out of host memory: %d items of a namelist", *capacity);
    return list;
}

/* Strings are put one by one into the pool. Each is followed in the source by at least one byte of its own or by the
 * source's end, so length + 1 bytes are enough. */
static void pool_add(struct parser *p, char c)
{
    if (p->out->pool_used > p->source->length)
        fatal("namelist pool of %zu bytes is too small", p->source->length);
    p->out->pool[p->out->pool_used++] = c;
}

static int same(int c)
{
    return c;
}

/* The next bytes, each changed by the function. */
static const char *pool_bytes(struct parser *p, size_t bytes, int (*change)(int))
{
    const char *start = p->out->pool + p->out->pool_used;
    for (size_t i = 0; i < bytes; i++)
        pool_add(p, (char)change(scan_peek(&p->scan, i)));
    pool_add(p, 0);
    return start;
}

static struct namelist_value *add_value(struct parser *p, enum namelist_kind kind, int repeat, struct place place)
{
    struct namelist *out = p->out;
    out->values = grow(out->values, out->value_count, &out->value_capacity, sizeof *out->values);
    out->values[out->value_count] = (struct namelist_value){kind, "", repeat, place};
    return &out->values[out->value_count++];
}

/* Moves on to the next assignment, group or end of group. */
static void resynchronise(struct parser *p)
{
    for (;;) {
        scan_skip_blanks(&p->scan);
        int c = scan_peek(&p->scan, 0);
        bool closed;
        if (c < 0 || c == '/' || c == '&' || c == '$' || scan_at_assignment(&p->scan))
            return;
        scan_advance(&p->scan,
                     c == '\'' || c == '"' ? scan_string_length(&p->scan, &closed) : scan_word_length(&p->scan));
    }
}

/* --- values ----------------------------------------------------------------------------------------------------- */

/* strtod reads the exponent of 1d-3 only as 1e-3. */
static int lower_number(int c)
{
    return c == 'd' || c == 'D' ? 'e' : tolower(c);
}

static int parse_string(struct parser *p, int repeat)
{
    bool closed;
    size_t bytes = scan_string_length(&p->scan, &closed);
    struct place place = scan_place(&p->scan, bytes);
    if (!closed) {
        mistake_add(p->mistakes, p->source, place, "the string is not closed on its line\na quote is missing");
        scan_advance(&p->scan, bytes);
        return -1;
    }
    int quote = scan_peek(&p->scan, 0);
    const char *text = p->out->pool + p->out->pool_used;
    for (size_t i = 1; i < bytes - 1; i++) {
        pool_add(p, (char)scan_peek(&p->scan, i));
        i += scan_peek(&p->scan, i) == quote; /* the second of two */
    }
    pool_add(p, 0);
    scan_advance(&p->scan, bytes);
    add_value(p, NAMELIST_STRING, repeat, place)->text = text;
    return 0;
}

/* Why the word here is no value. */
static int complain_word(struct parser *p)
{
    size_t bytes = scan_word_length(&p->scan);
    struct place place = scan_place(&p->scan, bytes);
    struct short_text word = text_clip(p->source->text + p->scan.at, bytes);
    int c = scan_peek(&p->scan, 0);
    struct scan plain = p->scan; /* behind a sign */
    if (c == '+' || c == '-') {
        plain.at++;
        bytes--;
    }
    if (scan_word_is(&plain, bytes, "inf") || scan_word_is(&plain, bytes, "infinity") ||
        scan_word_is(&plain, bytes, "nan"))
        mistake_add(p->mistakes, p->source, place, "%s is not a finite number", word.text);
    else if (!scan_is_name(c) && c != '+' && c != '-' && c != '.' && c != '/')
        mistake_add(p->mistakes, p->source, place, "unexpected '%s'\nseparate values by commas or blanks", word.text);
    else if (p->scan.single_line)
        mistake_add(p->mistakes, p->source, place, "%s is neither a number nor a logical", word.text);
    else
        mistake_add(p->mistakes, p->source, place,
                    "%s is neither a number, nor a logical, nor a text in quotes\nwrite '%s' for a text", word.text,
                    word.text);
    scan_advance(&p->scan, (size_t)place.width);
    return -1;
}

/* The count of 3*1.0, 1 where there is none, -1 after a mistake. */
static int parse_repeat(struct parser *p)
{
    size_t bytes = 0;
    int64_t count = 0;
    for (; scan_is_digit(scan_peek(&p->scan, bytes)); bytes++)
        count = count > INT_MAX ? count : 10 * count + (scan_peek(&p->scan, bytes) - '0');
    if (bytes == 0 || scan_peek(&p->scan, bytes) != '*')
        return 1;
    struct place place = scan_place(&p->scan, bytes + 1);
    const char *wrong = NULL;
    if (count < 1 || count > INT_MAX)
        wrong = "the repeat count is out of range\nallowed: 1 to 2147483647";
    else if (scan_is_separator(scan_peek(&p->scan, bytes + 1)))
        wrong = "empty value: nothing is repeated\na value follows the '*' without a blank";
    scan_advance(&p->scan, bytes + 1);
    if (!wrong)
        return (int)count;
    mistake_add(p->mistakes, p->source, place, "%s", wrong);
    return -1;
}

static int parse_value(struct parser *p)
{
    int repeat = parse_repeat(p);
    if (repeat < 0)
        return -1;
    if (scan_peek(&p->scan, 0) == '\'' || scan_peek(&p->scan, 0) == '"')
        return parse_string(p, repeat);
    size_t bytes = 0;
    while (!scan_is_separator(scan_peek(&p->scan, bytes)) && scan_peek(&p->scan, bytes) != '=' &&
           scan_peek(&p->scan, bytes) != '\'' && scan_peek(&p->scan, bytes) != '"')
        bytes++;
    char logical = scan_logical(&p->scan, bytes);
    enum namelist_kind kind = NAMELIST_LOGICAL;
    if (!logical && !scan_number(&p->scan, bytes, &kind))
        return complain_word(p);
    struct namelist_value *value = add_value(p, kind, repeat, scan_place(&p->scan, bytes));
    value->text = logical == 't' ? "t" : logical == 'f' ? "f" : pool_bytes(p, bytes, lower_number);
    scan_advance(&p->scan, bytes);
    return 0;
}

/* An absolute path without quotes would otherwise end the group. */
static bool at_path(const struct parser *p)
{
    return scan_peek(&p->scan, 0) == '/' && (scan_is_name(scan_peek(&p->scan, 1)) || scan_peek(&p->scan, 1) == '.');
}

static int complain_here(struct parser *p, const char *message)
{
    mistake_add(p->mistakes, p->source, scan_place(&p->scan, 1), "%s", message);
    return -1;
}

/* All values of an assignment, up to the next one or the end of the group. Three places of a list are refused where
 * readers disagree: the Fortran standard sees a separator, gfortran an empty value or nothing it knows. */
static int parse_values(struct parser *p, struct namelist_assignment *assignment)
{
    bool comma = true;   /* a comma here would leave out a value */
    bool remark = false; /* a comment stands behind the last comma */
    int line = 0;        /* of the last value */
    assignment->first = p->out->value_count;
    scan_skip_inline(&p->scan);
    if (scan_peek(&p->scan, 0) == '!' && !p->scan.single_line)
        return complain_here(p, "a comment between '=' and the value\nmove it behind the value");
    for (;;) {
        scan_skip_blanks(&p->scan);
        int c = scan_peek(&p->scan, 0);
        if (line == 0 && at_path(p))
            return complain_word(p);
        bool ends = c == '&' || c == '$' || c == '/' || scan_at_assignment(&p->scan);
        if (c < 0 || (ends && !p->scan.single_line)) {
            if (line > 0)
                return 0;
            mistake_add(p->mistakes, p->source, assignment->place, "empty value: nothing is given for %s\n%s",
                        text_quote(assignment->key).text, "leave the key out to have its default");
            return -1;
        }
        if (c == ',' && comma)
            return complain_here(p, "empty value before the comma\na value is missing");
        if (c == ',' && line != p->scan.line)
            return complain_here(p, "a comma at the start of a line\nmove it behind the value before it");
        if (c == ',') {
            scan_advance(&p->scan, 1);
            scan_skip_inline(&p->scan);
            remark = scan_peek(&p->scan, 0) == '!';
            comma = true;
            continue;
        }
        if (comma && remark)
            return complain_here(p, "a value behind a comma and a comment\nleave out the comma");
        line = p->scan.line;
        comma = false;
        if (parse_value(p))
            return -1;
        if (!scan_is_separator(scan_peek(&p->scan, 0)))
            return complain_here(p, "unexpected character behind a value\n"
                                    "separate values by commas or blanks; double a quote inside quotes");
        assignment->count++;
        assignment->total += p->out->values[p->out->value_count - 1].repeat;
    }
}

/* --- assignments and groups ------------------------------------------------------------------------------------- */

/* A number of an index; 0 where there is none that an int holds. */
static int parse_index_number(struct parser *p)
{
    int64_t number = 0;
    scan_skip_inline(&p->scan);
    for (; scan_is_digit(scan_peek(&p->scan, 0)); scan_advance(&p->scan, 1))
        number = number > INT_MAX ? number : 10 * number + (scan_peek(&p->scan, 0) - '0');
    scan_skip_inline(&p->scan);
    return number > INT_MAX ? 0 : (int)number;
}

static int parse_index(struct parser *p, struct namelist_assignment *assignment)
{
    struct place place = scan_place(&p->scan, 1);
    scan_advance(&p->scan, 1);
    assignment->low = parse_index_number(p);
    assignment->high = assignment->low;
    if (scan_peek(&p->scan, 0) == ':') {
        scan_advance(&p->scan, 1);
        assignment->high = parse_index_number(p);
    }
    if (scan_peek(&p->scan, 0) == ')' && assignment->low > 0 && assignment->high >= assignment->low) {
        scan_advance(&p->scan, 1);
        return 0;
    }
    mistake_add(p->mistakes, p->source, place, "the index of %s is not understood\n%s",
                text_quote(assignment->key).text, "allowed: (i) or (i:j) with 1 <= i <= j");
    return -1;
}

/* What stands behind the key. */
static int parse_right_side(struct parser *p, struct namelist_assignment *assignment)
{
    struct short_text key = text_quote(assignment->key);
    scan_skip_inline(&p->scan);
    if (scan_peek(&p->scan, 0) == '(') {
        if (parse_index(p, assignment))
            return -1;
        scan_skip_inline(&p->scan);
    }
    if (scan_peek(&p->scan, 0) == '%') {
        mistake_add(p->mistakes, p->source, scan_place(&p->scan, 1), "%s has no members", key.text);
        scan_advance(&p->scan, 1);
        scan_advance(&p->scan, scan_name_length(&p->scan));
        return -1;
    }
    if (scan_peek(&p->scan, 0) != '=') {
        mistake_add(p->mistakes, p->source, assignment->place, "no '=' behind %s\nwrite key = value", key.text);
        return -1;
    }
    scan_advance(&p->scan, 1);
    if (parse_values(p, assignment))
        return -1;
    int64_t wanted = (int64_t)assignment->high - assignment->low + 1;
    if (assignment->low == 0 || assignment->total == wanted)
        return 0;
    if (assignment->low == assignment->high)
        mistake_add(p->mistakes, p->source, assignment->place, "%lld values for one element\nwrite %s(%d:%lld) = ...",
                    (long long)assignment->total, assignment->key, assignment->low,
                    (long long)(assignment->low + assignment->total - 1));
    else
        mistake_add(p->mistakes, p->source, assignment->place, "%lld values for %lld elements",
                    (long long)assignment->total, (long long)wanted);
    return -1;
}

static void parse_assignment(struct parser *p)
{
    size_t bytes = scan_name_length(&p->scan);
    struct namelist_assignment assignment = {.group = p->out->group_count - 1, .place = scan_place(&p->scan, bytes)};
    assignment.key = pool_bytes(p, bytes, tolower);
    scan_advance(&p->scan, bytes);
    assignment.broken = parse_right_side(p, &assignment) != 0;
    if (assignment.broken)
        resynchronise(p);
    struct namelist *out = p->out;
    out->assignments =
        grow(out->assignments, out->assignment_count, &out->assignment_capacity, sizeof *out->assignments);
    out->assignments[out->assignment_count++] = assignment;
}

/* `&end` or `$end`. */
static bool at_end_word(const struct scan *scan)
{
    struct scan name = *scan;
    name.at++;
    return scan_word_is(&name, scan_name_length(&name), "end");
}

/* The assignments of a group up to and with its '/'. */
static void parse_group_body(struct parser *p)
{
    const struct namelist_group group = p->out->groups[p->out->group_count - 1];
    for (;;) {
        scan_skip_blanks(&p->scan);
        int c = scan_peek(&p->scan, 0);
        if (c == '/') {
            scan_advance(&p->scan, 1);
            return;
        }
        if ((c == '&' || c == '$') && at_end_word(&p->scan)) {
            mistake_add(p->mistakes, p->source, scan_place(&p->scan, 4), "'%cend' does not end a group\nwrite /", c);
            scan_advance(&p->scan, 4);
            return;
        }
        if (c < 0 || c == '&' || c == '$') {
            mistake_add(p->mistakes, p->source, group.place, "the group has no end\nclose it by a /");
            return;
        }
        if (scan_is_letter(c)) {
            parse_assignment(p);
            continue;
        }
        size_t bytes = scan_word_length(&p->scan);
        mistake_add(p->mistakes, p->source, scan_place(&p->scan, bytes),
                    "unexpected %s\nexpected: key = value, or / to end the group",
                    text_quote((char[]){(char)c, 0}).text);
        scan_advance(&p->scan, bytes);
        resynchronise(p);
    }
}

static void parse_group(struct parser *p)
{
    int sign = scan_peek(&p->scan, 0);
    struct scan name = p->scan;
    name.at++;
    size_t bytes = scan_is_letter(scan_peek(&name, 0)) ? scan_name_length(&name) : 0;
    struct place place = scan_place(&p->scan, 1 + bytes);
    int after = scan_peek(&p->scan, 1 + bytes);
    if (bytes == 0)
        mistake_add(p->mistakes, p->source, place, "no name of a group behind '%c'\nwrite &name", sign);
    else if (sign == '$')
        mistake_add(p->mistakes, p->source, place, "a group starts with '&'\nwrite &name");
    else if (!scan_is_separator(after) || after == ',')
        mistake_add(p->mistakes, p->source, place, "a blank follows the name of a group");
    scan_advance(&p->scan, 1);
    struct namelist *out = p->out;
    out->groups = grow(out->groups, out->group_count, &out->group_capacity, sizeof *out->groups);
    out->groups[out->group_count++] = (struct namelist_group){pool_bytes(p, bytes, tolower), place};
    scan_advance(&p->scan, bytes);
    if (!scan_is_separator(after) || after == ',')
        resynchronise(p);
    parse_group_body(p);
}

/* Text between groups: one mistake, then on to the next group. */
static void skip_stray(struct parser *p, int last_line)
{
    struct place place = scan_place(&p->scan, scan_word_length(&p->scan));
    if (last_line)
        mistake_add(p->mistakes, p->source, place, "text outside of a group\nthe last group ended on line %d",
                    last_line);
    else
        mistake_add(p->mistakes, p->source, place, "text outside of a group\na group starts with &name");
    for (;;) {
        scan_skip_blanks(&p->scan);
        int c = scan_peek(&p->scan, 0);
        bool closed;
        if (c < 0 || c == '&' || c == '$')
            return;
        scan_advance(&p->scan,
                     c == '\'' || c == '"' ? scan_string_length(&p->scan, &closed) : scan_word_length(&p->scan));
    }
}

/* Bytes that no text file has: says where the first one is. */
static int check_bytes(struct parser *p)
{
    for (struct scan q = p->scan; q.at < q.source->length; scan_advance(&q, 1)) {
        int c = scan_peek(&q, 0);
        if ((c >= 0x20 && c != 0x7f) || c == '\t' || (c == '\n' && !p->scan.single_line) ||
            (c == '\r' && scan_peek(&q, 1) == '\n' && !p->scan.single_line))
            continue;
        mistake_add(p->mistakes, p->source, scan_place(&q, 1), "byte 0x%02X is not allowed%s", (unsigned)c,
                    p->scan.single_line ? "" : "\nis this a text file?");
        return -1;
    }
    return 0;
}

static int prepare(struct parser *p)
{
    *p->out = (struct namelist){0};
    p->out->pool = allocate(p->source->length + 1, 1);
    if (p->source->length > LENGTH_MAX) {
        mistake_add(p->mistakes, p->source, scan_place(&p->scan, 1), "a namelist of more than %d bytes", LENGTH_MAX);
        return -1;
    }
    return check_bytes(p);
}

int namelist_parse(const struct source *source, struct namelist *out, struct mistakes *mistakes)
{
    int before = mistakes->count, last_line = 0;
    struct parser p = {{.source = source, .line = 1}, source, out, mistakes};
    if (source->length >= 3 && !memcmp(source->text, "\xEF\xBB\xBF", 3)) { /* byte order mark */
        p.scan.at = 3;
        p.scan.line_start = 3;
    }
    if (prepare(&p))
        return -1;
    for (scan_skip_blanks(&p.scan); scan_peek(&p.scan, 0) >= 0; scan_skip_blanks(&p.scan)) {
        if (scan_peek(&p.scan, 0) == '&' || scan_peek(&p.scan, 0) == '$') {
            parse_group(&p);
            last_line = p.scan.line;
        } else {
            skip_stray(&p, last_line);
        }
    }
    return mistakes->count > before ? -1 : 0;
}

int namelist_parse_values(const struct source *source, size_t at, const char *key, bool verbatim, struct namelist *out,
                          struct mistakes *mistakes)
{
    int before = mistakes->count;
    struct parser p = {{.source = source, .line = 1, .single_line = true}, source, out, mistakes};
    if (prepare(&p))
        return -1;
    p.scan.at = at;
    struct namelist_assignment assignment = {.key = key, .place = scan_place(&p.scan, 1)};
    if (verbatim && at < source->length) {
        add_value(&p, NAMELIST_STRING, 1, scan_place(&p.scan, source->length - at))->text =
            pool_bytes(&p, source->length - at, same);
        assignment.count = 1;
        assignment.total = 1;
    } else {
        assignment.broken = parse_values(&p, &assignment) != 0;
    }
    out->assignments = grow(NULL, 0, &out->assignment_capacity, sizeof *out->assignments);
    out->assignments[out->assignment_count++] = assignment;
    return mistakes->count > before ? -1 : 0;
}

void namelist_fini(struct namelist *namelist)
{
    free(namelist->groups);
    free(namelist->assignments);
    free(namelist->values);
    free(namelist->pool);
    *namelist = (struct namelist){0};
}
