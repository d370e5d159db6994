/* From assignments without meaning to checked settings: the file first, then the command line. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/namelist.h"
#include "base/settings.h"
#include "base/settings_table.h"

/* A list on its way: its elements may come in any order. */
struct list_input {
    double *items; /* SETTINGS_LIST_MAX of each once there is one; integers are exact in them */
    int *lines;    /* the line that gives the element, 0: none so far */
    int count;     /* the last element given */
    struct place place;
    bool broken; /* a mistake was found in it */
};

/* What has been given for a key. */
struct given {
    int line; /* in the file; 0: not */
    bool overridden;
    struct list_input list;
};

struct reader {
    struct settings *settings;
    const struct source *source;
    struct given *given; /* for each row of settings_keys */
    struct mistakes *mistakes;
};

/* --- one value -------------------------------------------------------------------------------------------------- */

static const char *type_article(enum settings_type type)
{
    switch (type) {
    case SETTINGS_INT:
    case SETTINGS_COUNT:
        return "an integer";
    case SETTINGS_LIST:
        return "integers";
    case SETTINGS_REALS:
        return "reals";
    case SETTINGS_REAL:
        return "a real";
    case SETTINGS_LOGICAL:
        return "a logical";
    case SETTINGS_STRING:
    case SETTINGS_CHOICE:
        return "a string";
    }
    fatal("settings type %d", (int)type);
}

static struct short_text spelling(const struct reader *reader, struct place place)
{
    return text_clip(reader->source->text + place.offset, (size_t)place.width);
}

static int complain_type(struct reader *reader, const struct settings_key *key, const struct namelist_value *value)
{
    struct short_text found = spelling(reader, value->place), hint = {""};
    bool integer = key->type == SETTINGS_INT || key->type == SETTINGS_COUNT || key->type == SETTINGS_LIST;
    if (integer && value->kind == NAMELIST_REAL) {
        double real = strtod(value->text, NULL);
        if (fabs(real) < 1e15 && real == floor(real))
            snprintf(hint.text, sizeof hint.text, "write %.0f", real);
        else
            snprintf(hint.text, sizeof hint.text, "an integer has no point and no exponent");
    } else if (key->type == SETTINGS_LOGICAL) {
        snprintf(hint.text, sizeof hint.text, "write .true. or .false.");
    } else if (value->kind != NAMELIST_STRING && (key->type == SETTINGS_STRING || key->type == SETTINGS_CHOICE)) {
        hint = text_quote(found.text);
    }
    bool quote = hint.text[0] == '\'';
    mistake_add(reader->mistakes, reader->source, value->place, "'%s' takes %s, found %s\n%s%s", key->key,
                type_article(key->type), found.text, quote ? "write " : "", hint.text);
    return -1;
}

static int complain_range(struct reader *reader, const struct settings_key *key, const struct namelist_value *value)
{
    struct text allowed = {0};
    settings_print_allowed(key, &allowed);
    mistake_add(reader->mistakes, reader->source, value->place, "'%s' = %s is out of range\nallowed: %s", key->key,
                spelling(reader, value->place).text, text_string(&allowed));
    text_fini(&allowed);
    return -1;
}

static int read_integer(struct reader *reader, const struct settings_key *key, const struct namelist_value *value,
                        int64_t *out)
{
    if (value->kind != NAMELIST_INT)
        return complain_type(reader, key, value);
    errno = 0;
    long long number = strtoll(value->text, NULL, 10);
    if (errno == ERANGE || number < key->low.whole || number > key->high.whole)
        return complain_range(reader, key, value);
    *out = number;
    return 0;
}

static int read_real(struct reader *reader, const struct settings_key *key, const struct namelist_value *value,
                     double *out)
{
    if (value->kind != NAMELIST_REAL && value->kind != NAMELIST_INT)
        return complain_type(reader, key, value);
    double number = strtod(value->text, NULL);
    size_t mantissa = strcspn(value->text, "e");
    if (number == 0 && strcspn(value->text, "123456789") < mantissa) {
        mistake_add(reader->mistakes, reader->source, value->place, "'%s' = %s is too small for a real\nwrite 0.0",
                    key->key, spelling(reader, value->place).text);
        return -1;
    }
    bool low = key->low.open ? number > key->low.real : number >= key->low.real;
    bool high = key->high.open ? number < key->high.real : number <= key->high.real;
    if (!low || !high)
        return complain_range(reader, key, value);
    *out = number;
    return 0;
}

static int read_choice(struct reader *reader, const struct settings_key *key, const struct namelist_value *value,
                       int *out)
{
    if (value->kind != NAMELIST_STRING)
        return complain_type(reader, key, value);
    int count = 0;
    for (; key->names[count]; count++) {
        if (!strcmp(value->text, key->names[count])) {
            *out = count;
            return 0;
        }
    }
    struct text hint = {0};
    const char *nearest = text_nearest(value->text, key->names, count);
    if (nearest)
        text_add(&hint, "did you mean '%s'? ", nearest);
    text_add(&hint, "allowed: ");
    settings_print_allowed(key, &hint);
    mistake_add(reader->mistakes, reader->source, value->place, "%s is not a choice for '%s'\n%s",
                text_quote(value->text).text, key->key, text_string(&hint));
    text_fini(&hint);
    return -1;
}

static int read_string(struct reader *reader, const struct settings_key *key, const struct namelist_value *value,
                       char *out)
{
    if (value->kind != NAMELIST_STRING)
        return complain_type(reader, key, value);
    size_t length = strlen(value->text);
    if (length >= (size_t)key->low.whole && length <= (size_t)key->high.whole) {
        memcpy(out, value->text, length + 1);
        return 0;
    }
    struct text allowed = {0};
    settings_print_allowed(key, &allowed);
    mistake_add(reader->mistakes, reader->source, value->place, "'%s' has %zu bytes\nallowed: %s", key->key, length,
                text_string(&allowed));
    text_fini(&allowed);
    return -1;
}

static void store_scalar(struct reader *reader, const struct settings_key *key, const struct namelist_value *value)
{
    void *member = settings_member(reader->settings, key);
    int64_t integer;
    switch (key->type) {
    case SETTINGS_INT:
        if (!read_integer(reader, key, value, &integer))
            *(int *)member = (int)integer;
        return;
    case SETTINGS_COUNT:
        read_integer(reader, key, value, member);
        return;
    case SETTINGS_REAL:
        read_real(reader, key, value, member);
        return;
    case SETTINGS_LOGICAL:
        if (value->kind == NAMELIST_LOGICAL)
            *(bool *)member = value->text[0] == 't';
        else
            complain_type(reader, key, value);
        return;
    case SETTINGS_STRING:
        read_string(reader, key, value, member);
        return;
    case SETTINGS_CHOICE:
        read_choice(reader, key, value, member);
        return;
    case SETTINGS_LIST:
    case SETTINGS_REALS:
        fatal("'%s' is a list", key->key);
    }
}

/* --- lists ------------------------------------------------------------------------------------------------------ */

static int read_element(struct reader *reader, const struct settings_key *key, const struct namelist_value *value,
                        double *out)
{
    if (key->type == SETTINGS_REALS)
        return read_real(reader, key, value, out);
    int64_t integer;
    if (read_integer(reader, key, value, &integer))
        return -1;
    *out = (double)integer;
    return 0;
}

static int store_elements(struct reader *reader, const struct settings_key *key, struct list_input *list,
                          const struct namelist *namelist, const struct namelist_assignment *assignment)
{
    int64_t element = assignment->low ? assignment->low : 1;
    if (element + assignment->total - 1 > SETTINGS_LIST_MAX) {
        mistake_add(reader->mistakes, reader->source, assignment->place, "'%s' has at most %d elements, found %lld",
                    key->key, SETTINGS_LIST_MAX, (long long)(element + assignment->total - 1));
        return -1;
    }
    if (!list->items) {
        list->items = allocate(SETTINGS_LIST_MAX, sizeof *list->items);
        list->lines = allocate(SETTINGS_LIST_MAX, sizeof *list->lines);
    }
    for (int v = 0; v < assignment->count; v++) {
        const struct namelist_value *value = &namelist->values[assignment->first + v];
        double number = 0;
        if (read_element(reader, key, value, &number))
            return -1;
        for (int r = 0; r < value->repeat; r++, element++) {
            if (list->lines[element - 1]) {
                mistake_add(reader->mistakes, reader->source, value->place,
                            "'%s(%d)' is given twice\nalready set on line %d", key->key, (int)element,
                            list->lines[element - 1]);
                return -1;
            }
            list->items[element - 1] = number;
            list->lines[element - 1] = value->place.line;
        }
    }
    if (element - 1 > list->count)
        list->count = (int)element - 1;
    return 0;
}

static void replace_list(struct settings *settings, const struct settings_key *key, const struct list_input *list)
{
    struct settings_list *out = settings_member(settings, key);
    free(out->items);
    out->items = allocate((size_t)list->count, settings_element(key));
    out->count = list->count;
    if (key->type == SETTINGS_REALS)
        memcpy(out->items, list->items, (size_t)list->count * sizeof *list->items);
    for (int i = 0; i < list->count && key->type == SETTINGS_LIST; i++)
        out->items[i] = (int)list->items[i];
}

/* Gives the list to the settings in place of what they had, if every element up to the last one is there. */
static void finish_list(struct reader *reader, const struct settings_key *key, struct list_input *list)
{
    int missing = 0;
    while (missing < list->count && list->lines[missing])
        missing++;
    free(list->lines);
    list->lines = NULL;
    if (!list->broken && missing < list->count) {
        mistake_add(reader->mistakes, reader->source, list->place, "'%s(%d)' is missing\n%d is the last element given",
                    key->key, missing + 1, list->count);
    } else if (!list->broken && list->count > 0) {
        replace_list(reader->settings, key, list);
    }
    free(list->items);
    list->items = NULL;
}

/* --- assignments ------------------------------------------------------------------------------------------------ */

static void store(struct reader *reader, const struct settings_key *key, struct list_input *list,
                  const struct namelist *namelist, const struct namelist_assignment *assignment)
{
    if (settings_element(key) > 0) {
        if (list->place.line == 0)
            list->place = assignment->place;
        if (assignment->broken || store_elements(reader, key, list, namelist, assignment))
            list->broken = true;
        return;
    }
    if (assignment->low)
        mistake_add(reader->mistakes, reader->source, assignment->place, "'%s' is not a list\nwrite %s = ...", key->key,
                    key->key);
    else if (!assignment->broken && assignment->total != 1)
        mistake_add(reader->mistakes, reader->source,
                    namelist->values[assignment->first + (assignment->count > 1)].place,
                    "'%s' takes one value, found %lld", key->key, (long long)assignment->total);
    else if (!assignment->broken)
        store_scalar(reader, key, &namelist->values[assignment->first]);
}

static bool complain_group(struct reader *reader, struct place place, const char *group)
{
    for (int g = 0; g < settings_group_count; g++)
        if (!strcmp(settings_groups[g], group))
            return false;
    const char *nearest = text_nearest(group, settings_groups, settings_group_count);
    struct text known = {0};
    for (int g = 0; g < settings_group_count; g++)
        text_add(&known, " &%s", settings_groups[g]);
    struct short_text name = text_clip(group, strlen(group));
    if (nearest)
        mistake_add(reader->mistakes, reader->source, place, "unknown group &%s\ndid you mean &%s?", name.text,
                    nearest);
    else
        mistake_add(reader->mistakes, reader->source, place, "unknown group &%s\nknown:%s", name.text,
                    text_string(&known));
    text_fini(&known);
    return true;
}

/* The key of `group` (NULL: of any group) whose name is nearest, NULL when none is near. */
static const struct settings_key *nearest_key(const char *group, const char *name)
{
    const char **names = allocate((size_t)settings_key_count, sizeof *names);
    int count = 0;
    for (int i = 0; i < settings_key_count; i++)
        if (!group || !strcmp(settings_keys[i].group, group))
            names[count++] = settings_keys[i].key;
    const char *nearest = text_nearest(name, names, count);
    free(names);
    for (int i = 0; i < settings_key_count; i++)
        if (nearest && settings_keys[i].key == nearest && (!group || !strcmp(settings_keys[i].group, group)))
            return &settings_keys[i];
    return NULL;
}

static void complain_key(struct reader *reader, struct place place, const char *group, const char *name)
{
    struct short_text quoted = text_quote(name), hint;
    const struct settings_key *inside = nearest_key(group, name), *any = nearest_key(NULL, name);
    if (any && !strcmp(any->key, name))
        snprintf(hint.text, sizeof hint.text, "it belongs to &%s", any->group);
    else if (inside)
        snprintf(hint.text, sizeof hint.text, "did you mean '%s'?", inside->key);
    else if (any)
        snprintf(hint.text, sizeof hint.text, "did you mean '%s' of &%s?", any->key, any->group);
    else
        snprintf(hint.text, sizeof hint.text, "ppmodel --defaults shows all keys");
    mistake_add(reader->mistakes, reader->source, place, "unknown key %s in &%s\n%s", quoted.text, group, hint.text);
}

static void read_file(struct reader *reader)
{
    struct namelist namelist;
    namelist_parse(reader->source, &namelist, reader->mistakes);
    bool *known = allocate((size_t)namelist.group_count, sizeof *known);
    int *lines = allocate((size_t)settings_group_count, sizeof *lines);
    for (int i = 0; i < namelist.group_count; i++) {
        const struct namelist_group *group = &namelist.groups[i];
        if (!group->name[0] || complain_group(reader, group->place, group->name))
            continue;
        known[i] = true;
        int g = 0;
        while (strcmp(settings_groups[g], group->name))
            g++;
        if (lines[g])
            mistake_add(reader->mistakes, reader->source, group->place,
                        "the group &%s is given twice\nalready on line %d", group->name, lines[g]);
        else
            lines[g] = group->place.line;
    }
    for (int i = 0; i < namelist.assignment_count; i++) {
        const struct namelist_assignment *assignment = &namelist.assignments[i];
        if (!known[assignment->group])
            continue;
        const char *group = namelist.groups[assignment->group].name;
        const struct settings_key *key = settings_find(group, assignment->key);
        if (!key) {
            complain_key(reader, assignment->place, group, assignment->key);
            continue;
        }
        struct given *given = &reader->given[key - settings_keys];
        if (given->line && settings_element(key) == 0) {
            mistake_add(reader->mistakes, reader->source, assignment->place,
                        "'%s' is given twice\nalready set on line %d", key->key, given->line);
            continue;
        }
        given->line = assignment->place.line;
        store(reader, key, &given->list, &namelist, assignment);
    }
    for (int i = 0; i < settings_key_count; i++)
        if (settings_element(&settings_keys[i]) > 0)
            finish_list(reader, &settings_keys[i], &reader->given[i].list);
    free(known);
    free(lines);
    namelist_fini(&namelist);
}

/* --- command line ----------------------------------------------------------------------------------------------- */

static void lower_part(const struct source *source, size_t from, size_t to, struct text *out)
{
    for (size_t i = from; i < to; i++)
        text_add_bytes(out, (char[]){(char)tolower((unsigned char)source->text[i])}, 1);
}

static void read_value(struct reader *reader, const struct settings_key *key, size_t at)
{
    const struct source *source = reader->source;
    bool string = key->type == SETTINGS_STRING || key->type == SETTINGS_CHOICE;
    bool quoted = at < source->length && (source->text[at] == '\'' || source->text[at] == '"');
    struct namelist namelist;
    if (!namelist_parse_values(source, at, key->key, string && !quoted, &namelist, reader->mistakes)) {
        struct list_input list = {0};
        store(reader, key, &list, &namelist, &namelist.assignments[0]);
        if (settings_element(key) > 0)
            finish_list(reader, key, &list);
    }
    namelist_fini(&namelist);
}

/* One argument `group.key=value`; whether it is of that form. */
static bool read_override(struct reader *reader, const char *argument)
{
    struct source source = {"command line", argument, strlen(argument), false};
    reader->source = &source;
    size_t equals = strcspn(argument, "="), point = strcspn(argument, ".=");
    if (!argument[equals] || argument[point] != '.') {
        mistake_add(reader->mistakes, &source, (struct place){0, 1, 1, (int)equals},
                    "no assignment to a key\nwrite group.key=value");
        return false;
    }
    struct place group_place = {0, 1, 1, (int)point};
    struct place key_place = {point + 1, 1, (int)point + 2, (int)(equals - point - 1)};
    struct text group = {0}, name = {0};
    lower_part(&source, 0, point, &group);
    lower_part(&source, point + 1, equals, &name);
    const struct settings_key *key = settings_find(text_string(&group), text_string(&name));
    if (key && reader->given[key - settings_keys].overridden)
        mistake_add(reader->mistakes, &source, key_place, "'%s' of &%s is given twice on the command line", key->key,
                    key->group);
    else if (key)
        read_value(reader, key, equals + 1);
    else if (!complain_group(reader, group_place, text_string(&group)))
        complain_key(reader, key_place, text_string(&group), text_string(&name));
    if (key)
        reader->given[key - settings_keys].overridden = true;
    text_fini(&group);
    text_fini(&name);
    return true;
}

int settings_parse(struct settings *settings, const char *text, size_t length, const char *file,
                   const char *const *overrides, int override_count, struct text *messages)
{
    struct source source = {file, text, length, true};
    struct mistakes mistakes = {0};
    struct reader reader = {settings, &source, allocate((size_t)settings_key_count, sizeof *reader.given), &mistakes};
    read_file(&reader);
    for (int i = 0; i < override_count && read_override(&reader, overrides[i]); i++)
        ; /* after a word of another form it is not clear what the next ones are meant to be */
    mistakes_print(&mistakes, messages);
    int count = mistakes.count;
    mistakes_fini(&mistakes);
    free(reader.given);
    return count ? -1 : 0;
}
