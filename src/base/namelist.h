/* Strict reader of Fortran namelists: the syntax alone, it knows no groups and no keys.
 *
 * What it accepts, gfortran's READ(nml=...) reads with the same values: case-insensitive names, `!` comments, 'it''s'
 * and "double" quoted strings, .true. .t. true t (and false), integers, reals with the exponents e and d, lists
 * separated by commas or blanks over any number of lines, repeats 3*1.0, elements a(2) = 5 and sections
 * a(2:4) = 5, 6, 7, groups from &name to /. Beyond that it is strict: null values, text between groups, &end, unquoted
 * strings, strings over several lines, exponents without a letter, infinities and NaN are mistakes, and so are
 * comments and commas inside a list where gfortran reads other values than the Fortran standard says. */
#ifndef BASE_NAMELIST_H
#define BASE_NAMELIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/mistake.h"

enum namelist_kind {
    NAMELIST_INT,
    NAMELIST_REAL,
    NAMELIST_LOGICAL,
    NAMELIST_STRING
};

struct namelist_value {
    enum namelist_kind kind;
    const char *text; /* int, real: as strtoll and strtod read it; logical: "t" or "f"; string: without its quotes */
    int repeat;       /* 3 for 3*1.0, else 1 */
    struct place place;
};

struct namelist_assignment {
    const char *key; /* lower case */
    int group;       /* in namelist.groups */
    int low, high;   /* elements low to high, from 1; both 0 without an index */
    int first;       /* values[first] ... values[first + count - 1] */
    int count;
    int64_t total; /* values with their repeats: high - low + 1 where there is an index */
    bool broken;   /* a mistake was found behind the key: the values are not to be used */
    struct place place;
};

struct namelist_group {
    const char *name; /* lower case */
    struct place place;
};

/* A parsed text. All strings belong to it; places refer to the text it was made from. */
struct namelist {
    struct namelist_group *groups;
    struct namelist_assignment *assignments; /* in the order of the text */
    struct namelist_value *values;
    int group_count, assignment_count, value_count;
    int group_capacity, assignment_capacity, value_capacity;
    char *pool;
    size_t pool_used;
};

/* Parses a whole file. *out is overwritten and is to be given to namelist_fini in every case: what could be
 * understood is in it. Returns 0, or -1 with the mistakes added. */
int namelist_parse(const struct source *source, struct namelist *out, struct mistakes *mistakes);

/* Parses a list of values alone: the text of the source from `at` to its end, `verbatim` as one string that needs no
 * quotes. *out has one assignment to the key (the pointer is kept). Comments and ends of lines are mistakes. Otherwise
 * as namelist_parse. */
int namelist_parse_values(const struct source *source, size_t at, const char *key, bool verbatim, struct namelist *out,
                          struct mistakes *mistakes);

/* Frees what a parse allocated; all zero is allowed. */
void namelist_fini(struct namelist *namelist);

#endif
