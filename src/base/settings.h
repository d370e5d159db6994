/* The whole input of a run: its members, defaults, reading, checking and printing. The keys are declared in
 * base/settings_keys.h. What one key alone can tell is checked here; relations between keys are not. */
#ifndef BASE_SETTINGS_H
#define BASE_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/settings_keys.h"
#include "base/text.h"

/* enum mode_choice { MODE_TRAIN, ... }; and `mode_names[MODE_TRAIN]` is "train"; a NULL closes the names. */
#define SETTINGS_CONSTANT(constant, spelling) constant,
#define SETTINGS_ENUM(name, choices)                \
    enum name##_choice{choices(SETTINGS_CONSTANT)}; \
    extern const char *const name##_names[];
SETTINGS_CHOICES(SETTINGS_ENUM)
#undef SETTINGS_ENUM
#undef SETTINGS_CONSTANT

struct settings_list {
    int *items; /* NULL when empty */
    int count;
};

struct settings_reals {
    double *items; /* NULL when empty */
    int count;
};

/* settings.run.mode, settings.model.layers ...: one member for each key, of the type in its row of the table.
 * The groups are struct run_settings, struct model_settings ... Strings are char [SETTINGS_STRING_MAX + 1]. */
#define SETTINGS_MEMBER_INT(key) int key;
#define SETTINGS_MEMBER_COUNT(key) int64_t key;
#define SETTINGS_MEMBER_REAL(key) double key;
#define SETTINGS_MEMBER_LOGICAL(key) bool key;
#define SETTINGS_MEMBER_STRING(key) char key[SETTINGS_STRING_MAX + 1];
#define SETTINGS_MEMBER_LIST(key) struct settings_list key;
#define SETTINGS_MEMBER_REALS(key) struct settings_reals key;
#define SETTINGS_MEMBER_CHOICE(name) enum name##_choice SETTINGS_MEMBER_NAME
#define SETTINGS_MEMBER_NAME(key) key;
#define SETTINGS_MEMBER(group, key, type, ...) SETTINGS_MEMBER_##type(key)
#define SETTINGS_GROUP(group, keys) \
    struct group##_settings {       \
        keys(SETTINGS_MEMBER)       \
    } group;
struct settings {
    SETTINGS_GROUPS(SETTINGS_GROUP)
};
#undef SETTINGS_GROUP
#undef SETTINGS_MEMBER

/* The defaults. To be released by settings_fini, which leaves the lists empty. */
void settings_init(struct settings *settings);
void settings_fini(struct settings *settings);

/* *to = *from with lists of its own; `to` needs no settings_init, and settings_fini later. */
void settings_copy(struct settings *to, const struct settings *from);

/* Takes over from `from` every key of the group that is 0, .false., empty or not given in *to. */
void settings_complete(struct settings *to, const struct settings *from, const char *group);

/* Reads a namelist into *settings (after settings_init), then the overrides `group.key=value`. There strings may do
 * without quotes and a list replaces the whole one of the file. `file` is the name for messages. Returns 0, or -1 when
 * there is any mistake: then one message for each is appended to `messages`, several lines each, and *settings is good
 * for settings_fini alone. Local. */
int settings_parse(struct settings *settings, const char *text, size_t length, const char *file,
                   const char *const *overrides, int override_count, struct text *messages);

/* Appends all settings as a commented namelist. Reading it gives the same settings, reals to the last bit. */
void settings_print(const struct settings *settings, struct text *out);

/* The same for one group, without comments and without what is 0 or empty. */
void settings_print_group(const struct settings *settings, const char *group, struct text *out);

/* Appends all groups and keys with their default, type, allowed values, unit and explanation: a namelist too. */
void settings_defaults_print(struct text *out);

#endif
