/* The settings as a namelist, with what a reader wants to know about each key. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/settings.h"
#include "base/settings_table.h"

enum {
    COMMENT_COLUMN = 40, /* where comments start, if the value leaves the room */
    LINE_LENGTH = 100    /* of the lines of a list */
};

/* A large power of two is easier to read as such. */
static void print_whole(int64_t bound, struct text *out)
{
    if (bound < (1 << 20) || (bound & (bound - 1)) != 0)
        text_add(out, "%" PRId64, bound);
    else
        text_add(out, "2^%d", 63 - __builtin_clzll((unsigned long long)bound));
}

void settings_print_allowed(const struct settings_key *key, struct text *out)
{
    switch (key->type) {
    case SETTINGS_INT:
    case SETTINGS_COUNT:
        print_whole(key->low.whole, out);
        text_add(out, " to ");
        print_whole(key->high.whole, out);
        return;
    case SETTINGS_LIST:
        text_add(out, "at most %d elements of ", SETTINGS_LIST_MAX);
        print_whole(key->low.whole, out);
        text_add(out, " to ");
        print_whole(key->high.whole, out);
        return;
    case SETTINGS_REALS:
        text_add(out, "at most %d elements ", SETTINGS_LIST_MAX);
        /* fallthrough */
    case SETTINGS_REAL:
        text_add(out, "%s %g and %s %g", key->low.open ? ">" : ">=", key->low.real,
                 key->high.open ? "<" : "<=", key->high.real);
        return;
    case SETTINGS_LOGICAL:
        text_add(out, ".true. .false.");
        return;
    case SETTINGS_STRING:
        if (key->low.whole > 0)
            text_add(out, "%" PRId64 " to %" PRId64 " bytes", key->low.whole, key->high.whole);
        else
            text_add(out, "at most %" PRId64 " bytes", key->high.whole);
        return;
    case SETTINGS_CHOICE:
        for (int i = 0; key->names[i]; i++)
            text_add(out, "%s'%s'", i ? " " : "", key->names[i]);
        return;
    }
}

static const char *type_name(enum settings_type type)
{
    switch (type) {
    case SETTINGS_INT:
    case SETTINGS_COUNT:
        return "integer";
    case SETTINGS_REAL:
        return "real";
    case SETTINGS_LOGICAL:
        return "logical";
    case SETTINGS_STRING:
    case SETTINGS_CHOICE:
        return "string";
    case SETTINGS_LIST:
        return "list of integers";
    case SETTINGS_REALS:
        return "list of reals";
    }
    fatal("settings type %d", (int)type);
}

/* With as few digits (from 6 on) as read back exactly, and recognisable as a real. */
static void print_real(double value, struct text *out)
{
    char spelling[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(spelling, sizeof spelling, "%.*g", digits, value);
        if (strtod(spelling, NULL) == value)
            break;
    }
    text_add(out, "%s%s", spelling, strpbrk(spelling, ".e") ? "" : ".0");
}

static void print_string(const char *string, struct text *out)
{
    text_add(out, "'");
    for (; *string; string++) {
        text_add_bytes(out, string, 1);
        if (*string == '\'')
            text_add_bytes(out, string, 1);
    }
    text_add(out, "'");
}

static void print_list(const struct settings_key *key, const void *value, struct text *out)
{
    const struct settings_list *list = value;
    const struct settings_reals *reals = value;
    size_t line = out->length;
    for (int i = 0; i < list->count; i++) {
        if (out->length - line > LINE_LENGTH - COMMENT_COLUMN) {
            text_add(out, "\n   ");
            line = out->length;
        }
        text_add(out, "%s", i ? " " : "");
        if (key->type == SETTINGS_REALS)
            print_real(reals->items[i], out);
        else
            text_add(out, "%d", list->items[i]);
        text_add(out, "%s", i + 1 < list->count ? "," : "");
    }
}

static void print_value(const struct settings *settings, const struct settings_key *key, struct text *out)
{
    const void *value = settings_value(settings, key);
    int choice;
    switch (key->type) {
    case SETTINGS_INT:
        text_add(out, "%d", *(const int *)value);
        return;
    case SETTINGS_COUNT:
        text_add(out, "%" PRId64, *(const int64_t *)value);
        return;
    case SETTINGS_REAL:
        print_real(*(const double *)value, out);
        return;
    case SETTINGS_LOGICAL:
        text_add(out, *(const bool *)value ? ".true." : ".false.");
        return;
    case SETTINGS_STRING:
        print_string(value, out);
        return;
    case SETTINGS_CHOICE:
        memcpy(&choice, value, sizeof choice);
        print_string(key->names[choice], out);
        return;
    case SETTINGS_LIST:
    case SETTINGS_REALS:
        print_list(key, value, out);
        return;
    }
}

/* `  key = value` and blanks up to the comment. A list that is not given is a comment as a whole: a namelist has no
 * spelling for an empty one. */
static void print_assignment(const struct settings *settings, const struct settings_key *key, struct text *out)
{
    size_t start = out->length;
    bool given = settings_element(key) == 0 || !settings_is_zero(settings, key);
    text_add(out, "  %s%s = ", given ? "" : "! ", key->key);
    if (given)
        print_value(settings, key, out);
    else
        text_add(out, "(not given)");
    int blanks = COMMENT_COLUMN - (int)(out->length - start);
    text_add(out, "%*s ! ", blanks > 0 ? blanks : 0, "");
}

static void print_help(const struct settings_key *key, struct text *out)
{
    text_add(out, "%s", key->help);
    if (key->unit[0])
        text_add(out, " [%s]", key->unit);
    text_add(out, "\n");
}

void settings_print(const struct settings *settings, struct text *out)
{
    for (int g = 0; g < settings_group_count; g++) {
        text_add(out, "&%s\n", settings_groups[g]);
        for (int i = 0; i < settings_key_count; i++) {
            if (strcmp(settings_keys[i].group, settings_groups[g]) != 0)
                continue;
            print_assignment(settings, &settings_keys[i], out);
            print_help(&settings_keys[i], out);
        }
        text_add(out, "/\n");
    }
}

void settings_print_group(const struct settings *settings, const char *group, struct text *out)
{
    text_add(out, "&%s\n", group);
    for (int i = 0; i < settings_key_count; i++) {
        const struct settings_key *key = &settings_keys[i];
        if (strcmp(key->group, group) != 0 || settings_is_zero(settings, key))
            continue;
        text_add(out, "  %s = ", key->key);
        print_value(settings, key, out);
        text_add(out, "\n");
    }
    text_add(out, "/\n");
}

void settings_defaults_print(struct text *out)
{
    struct settings *settings = allocate(1, sizeof *settings);
    settings_init(settings);
    for (int g = 0; g < settings_group_count; g++) {
        text_add(out, "&%s\n", settings_groups[g]);
        for (int i = 0; i < settings_key_count; i++) {
            const struct settings_key *key = &settings_keys[i];
            if (strcmp(key->group, settings_groups[g]) != 0)
                continue;
            text_add(out, "  ! ");
            print_help(key, out);
            print_assignment(settings, key, out);
            text_add(out, "%s, ", type_name(key->type));
            settings_print_allowed(key, out);
            text_add(out, "\n");
        }
        text_add(out, "/\n\n");
    }
    settings_fini(settings);
    free(settings);
}
