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

void settings_fini(struct settings *settings)
{
    for (int i = 0; i < settings_key_count; i++) {
        if (settings_keys[i].type != SETTINGS_LIST)
            continue;
        struct settings_list *list = settings_member(settings, &settings_keys[i]);
        free(list->items);
        *list = (struct settings_list){0};
    }
}

void settings_copy(struct settings *to, const struct settings *from)
{
    *to = *from;
    for (int i = 0; i < settings_key_count; i++) {
        if (settings_keys[i].type != SETTINGS_LIST)
            continue;
        struct settings_list *list = settings_member(to, &settings_keys[i]);
        const int *items = list->items;
        list->items = NULL;
        if (list->count == 0)
            continue;
        list->items = allocate((size_t)list->count, sizeof *list->items);
        memcpy(list->items, items, (size_t)list->count * sizeof *items);
    }
}
