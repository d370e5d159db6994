/* The rows of the declared table of keys, for those who work on any key: the parser and the printer. */
#ifndef BASE_SETTINGS_TABLE_H
#define BASE_SETTINGS_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/settings.h"

enum settings_type {
    SETTINGS_INT,
    SETTINGS_COUNT,
    SETTINGS_REAL,
    SETTINGS_LOGICAL,
    SETTINGS_STRING,
    SETTINGS_CHOICE,
    SETTINGS_LIST,
    SETTINGS_REALS
};

struct settings_bound {
    int64_t whole; /* of integers, lengths and elements */
    double real;
    bool open; /* the real itself is not allowed */
};

struct settings_key {
    const char *group, *key;
    enum settings_type type;
    size_t offset;     /* of the member in struct settings */
    const char *value; /* the default, as in a namelist; "": an empty list */
    struct settings_bound low, high;
    const char *const *names; /* of a choice, closed by NULL */
    const char *unit;         /* "" where there is none */
    const char *help;
};

/* All keys, group by group, and their number. */
extern const struct settings_key settings_keys[];
extern const int settings_key_count;

/* The names of all groups, and their number. */
extern const char *const settings_groups[];
extern const int settings_group_count;

/* The row of a key; NULL: there is none. */
const struct settings_key *settings_find(const char *group, const char *key);

/* Where the key's value is. */
void *settings_member(struct settings *settings, const struct settings_key *key);
const void *settings_value(const struct settings *settings, const struct settings_key *key);

/* Bytes of a list's element; 0 where the key is no list. The structs of all lists begin with items and count. */
size_t settings_element(const struct settings_key *key);

/* Whether the value is 0, .false., empty or the first choice. */
bool settings_is_zero(const struct settings *settings, const struct settings_key *key);

/* Appends what the key may hold: "1 to 65536", "> 0 and <= 1", "'train' 'evaluate' ...", "at most 4096 bytes". */
void settings_print_allowed(const struct settings_key *key, struct text *out);

#endif
