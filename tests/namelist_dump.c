/* Prints what namelist_parse reads, in a form that namelist_gfortran.py compares with the Fortran runtime's reading.
 *
 *     namelist_dump FILE...
 *
 * For each file `= file`, then `& group` for each group, `group key index kind value` for each value (numbers as an
 * integer where they are one and as the bits of the double, strings as hexadecimal bytes) and `! message` for each
 * mistake. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/namelist.h"

enum {
    FILE_MAX = 1 << 20,
    REPEAT_MAX = 100 /* more values than any key of the test takes */
};

static void print_value(const struct namelist_value *value)
{
    double real;
    uint64_t bits;
    switch (value->kind) {
    case NAMELIST_INT:
    case NAMELIST_REAL:
        real = strtod(value->text, NULL);
        memcpy(&bits, &real, sizeof bits);
        if (value->kind == NAMELIST_INT)
            printf("int %s %016llX\n", value->text, (unsigned long long)bits);
        else
            printf("real - %016llX\n", (unsigned long long)bits);
        return;
    case NAMELIST_LOGICAL:
        printf("logical %s\n", value->text);
        return;
    case NAMELIST_STRING:
        printf("string x");
        for (const char *c = value->text; *c; c++)
            printf("%02X", (unsigned)(unsigned char)*c);
        printf("\n");
        return;
    }
}

static void print_namelist(const struct namelist *namelist)
{
    for (int i = 0; i < namelist->group_count; i++)
        printf("& %s\n", namelist->groups[i].name);
    for (int i = 0; i < namelist->assignment_count; i++) {
        const struct namelist_assignment *assignment = &namelist->assignments[i];
        long long element = assignment->low ? assignment->low : 1;
        for (int v = 0; v < assignment->count; v++) {
            const struct namelist_value *value = &namelist->values[assignment->first + v];
            for (int r = 0; r < value->repeat && r < REPEAT_MAX; r++) {
                printf("%s %s %lld ", namelist->groups[assignment->group].name, assignment->key, element++);
                print_value(value);
            }
        }
    }
}

int main(int argc, char **argv)
{
    char *buffer = allocate(FILE_MAX, 1);
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file) {
            perror(argv[i]);
            return 1;
        }
        struct source source = {argv[i], buffer, fread(buffer, 1, FILE_MAX, file), true};
        fclose(file);
        struct namelist namelist;
        struct mistakes mistakes = {0};
        struct text text = {0};
        printf("= %s\n", argv[i]);
        if (namelist_parse(&source, &namelist, &mistakes)) {
            mistakes_print(&mistakes, &text);
            for (char *line = text.bytes; *line; line += strcspn(line, "\n") + 1)
                if (!strncmp(line, argv[i], strlen(argv[i])))
                    printf("! %.*s\n", (int)strcspn(line, "\n"), line);
        } else {
            print_namelist(&namelist);
        }
        text_fini(&text);
        mistakes_fini(&mistakes);
        namelist_fini(&namelist);
    }
    free(buffer);
    return 0;
}
