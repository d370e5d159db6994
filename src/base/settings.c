#include "base/settings.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/settings_table.h"

#define SPELLING(constant, spelling) spelling,
#define NAMES(name, choices) const char *const name##_names[] = {choices(SPELLING) NULL};
SETTINGS_CHOICES(NAMES)

/* Bounds travel through the macros in parentheses, which hold their commas together. */
#define AT_LEAST(x) (x, false)
#define AT_MOST(x) (x, false)
#define ABOVE(x) (x, true)
#define BELOW(x) (x, true)
#define BOUND(x, open_)              \
    {                                \
        .real = (x), .open = (open_) \
    }

#define ROW_WHOLE(least, most) .low = {.whole = (least)}, .high = {.whole = (most)}
#define ROW_INT(least, most) .type = SETTINGS_INT, ROW_WHOLE(least, most)
#define ROW_COUNT(least, most) .type = SETTINGS_COUNT, ROW_WHOLE(least, most)
#define ROW_REAL(least, most) .type = SETTINGS_REAL, .low = BOUND least, .high = BOUND most
#define ROW_LOGICAL(least, most) .type = SETTINGS_LOGICAL
#define ROW_STRING(least, most) .type = SETTINGS_STRING, ROW_WHOLE(least, most)
#define ROW_LIST(least, most) .type = SETTINGS_LIST, ROW_WHOLE(least, most)
#define ROW_REALS(least, most) .type = SETTINGS_REALS, .low = BOUND least, .high = BOUND most
#define ROW_CHOICE(name) .type = SETTINGS_CHOICE, .names = name##_names NO_BOUNDS
#define NO_BOUNDS(least, most)

#define ROW(group_, key_, type_, value_, least, most, unit_, help_) \
    {.group = #group_,                                              \
     .key = #key_,                                                  \
     .offset = offsetof(struct settings, group_.key_),              \
     .value = value_,                                               \
     ROW_##type_(least, most),                                      \
     .unit = unit_,                                                 \
     .help = help_},
#define ROWS(group, keys) keys(ROW)
const struct settings_key settings_keys[] = {SETTINGS_GROUPS(ROWS)};
const int settings_key_count = sizeof settings_keys / sizeof *settings_keys;

#define GROUP_NAME(group, keys) #group,
const char *const settings_groups[] = {SETTINGS_GROUPS(GROUP_NAME)};
const int settings_group_count = sizeof settings_groups / sizeof *settings_groups;

const struct settings_key *settings_find(const char *group, const char *key)
{
    for (int i = 0; i < settings_key_count; i++)
        if (!strcmp(settings_keys[i].group, group) && !strcmp(settings_keys[i].key, key))
            return &settings_keys[i];
    return NULL;
}

void *settings_member(struct settings *settings, const struct settings_key *key)
{
    return (char *)settings + key->offset;
}

const void *settings_value(const struct settings *settings, const struct settings_key *key)
{
    return (const char *)settings + key->offset;
}

/* The table spells the defaults as a namelist does, and so they are read like one. */
void settings_init(struct settings *settings)
{
    memset(settings, 0, sizeof *settings);
    struct text defaults = {0}, messages = {0};
    for (int g = 0; g < settings_group_count; g++) {
        text_add(&defaults, "&%s\n", settings_groups[g]);
        for (int i = 0; i < settings_key_count; i++)
            if (!strcmp(settings_keys[i].group, settings_groups[g]) && settings_keys[i].value[0])
                text_add(&defaults, "%s = %s\n", settings_keys[i].key, settings_keys[i].value);
        text_add(&defaults, "/\n");
    }
    if (settings_parse(settings, defaults.bytes, defaults.length, "defaults", NULL, 0, &messages))
        fatal("the table of settings is wrong:\n%s", text_string(&messages));
    text_fini(&defaults);
    text_fini(&messages);
}

size_t settings_element(const struct settings_key *key)
{
    _Static_assert(offsetof(struct settings_list, count) == offsetof(struct settings_reals, count), "lists are alike");
    return key->type == SETTINGS_LIST ? sizeof(int) : key->type == SETTINGS_REALS ? sizeof(double) : 0;
}

/* Gives *to items of its own. */
static void copy_list(const struct settings_key *key, struct settings_list *to, const struct settings_list *from)
{
    *to = (struct settings_list){.count = from->count};
    if (from->count == 0)
        return;
    to->items = allocate((size_t)from->count, settings_element(key));
    memcpy(to->items, from->items, (size_t)from->count * settings_element(key));
}

void settings_fini(struct settings *settings)
{
    for (int i = 0; i < settings_key_count; i++) {
        if (settings_element(&settings_keys[i]) == 0)
            continue;
        struct settings_list *list = settings_member(settings, &settings_keys[i]);
        free(list->items);
        *list = (struct settings_list){0};
    }
}

void settings_copy(struct settings *to, const struct settings *from)
{
    *to = *from;
    for (int i = 0; i < settings_key_count; i++)
        if (settings_element(&settings_keys[i]) > 0)
            copy_list(&settings_keys[i], settings_member(to, &settings_keys[i]),
                      settings_value(from, &settings_keys[i]));
}

bool settings_is_zero(const struct settings *settings, const struct settings_key *key)
{
    const void *value = settings_value(settings, key);
    switch (key->type) {
    case SETTINGS_INT:
    case SETTINGS_CHOICE:
        return *(const int *)value == 0;
    case SETTINGS_COUNT:
        return *(const int64_t *)value == 0;
    case SETTINGS_REAL:
        return *(const double *)value == 0;
    case SETTINGS_LOGICAL:
        return !*(const bool *)value;
    case SETTINGS_STRING:
        return !*(const char *)value;
    case SETTINGS_LIST:
    case SETTINGS_REALS:
        return ((const struct settings_list *)value)->count == 0;
    }
    fatal("settings type %d", (int)key->type);
}

static size_t member_bytes(const struct settings_key *key)
{
    switch (key->type) {
    case SETTINGS_INT:
    case SETTINGS_CHOICE:
        return sizeof(int);
    case SETTINGS_COUNT:
        return sizeof(int64_t);
    case SETTINGS_REAL:
        return sizeof(double);
    case SETTINGS_LOGICAL:
        return sizeof(bool);
    case SETTINGS_STRING:
        return SETTINGS_STRING_MAX + 1;
    case SETTINGS_LIST:
    case SETTINGS_REALS:
        break;
    }
    fatal("'%s' is a list", key->key);
}

void settings_complete(struct settings *to, const struct settings *from, const char *group)
{
    for (int i = 0; i < settings_key_count; i++) {
        const struct settings_key *key = &settings_keys[i];
        if (strcmp(key->group, group) != 0 || !settings_is_zero(to, key))
            continue;
        if (settings_element(key) > 0)
            copy_list(key, settings_member(to, key), settings_value(from, key));
        else
            memcpy(settings_member(to, key), settings_value(from, key), member_bytes(key));
    }
}
