/* libFuzzer target: any bytes as an input file, then any lines as arguments of the command line.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Isrc -I. tests/namelist_fuzz.c src/base/{error,memory,text}.c \
 *         src/base/{mistake,scan,namelist,settings,settings_parse,settings_print}.c -lm -o namelist_fuzz
 *     ./namelist_fuzz -max_total_time=600
 *
 * What is accepted must be printed, read back and be printed the same; what is not must have a message. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/settings.h"

enum {
    OVERRIDES_MAX = 8
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void check_round_trip(const struct settings *settings)
{
    struct settings *again = calloc(1, sizeof *again);
    struct text printed = {0}, reprinted = {0}, messages = {0};
    demand(again, "out of memory");
    settings_print(settings, &printed);
    settings_init(again);
    int failed = settings_parse(again, printed.bytes, printed.length, "printed", NULL, 0, &messages);
    demand(!failed, "the printed settings are refused");
    settings_print(again, &reprinted);
    demand(!strcmp(printed.bytes, reprinted.bytes), "the printed settings read differently");
    text_fini(&printed);
    text_fini(&reprinted);
    text_fini(&messages);
    settings_fini(again);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* The file ends at the first byte 0xFF, behind it each such byte ends an argument. */
    const uint8_t *end = memchr(data, 0xff, size);
    size_t length = end ? (size_t)(end - data) : size;
    char *text = malloc(length ? length : 1), *arguments = malloc(size - length + 1);
    struct settings *settings = calloc(1, sizeof *settings);
    demand(text && arguments && settings, "out of memory");
    memcpy(text, data, length);
    memcpy(arguments, data + length, size - length);
    arguments[size - length] = 0;
    const char *overrides[OVERRIDES_MAX];
    int count = 0;
    for (size_t i = 0; i < size - length; i++) {
        if ((uint8_t)arguments[i] != 0xff)
            continue;
        arguments[i] = 0;
        if (count < OVERRIDES_MAX)
            overrides[count++] = arguments + i + 1;
    }
    struct text messages = {0};
    settings_init(settings);
    if (settings_parse(settings, text, length, "file", overrides, count, &messages))
        demand(!strncmp(text_string(&messages), "file:", 5) || !strncmp(text_string(&messages), "command line: ", 14),
               "no place in the first message");
    else
        check_round_trip(settings);
    text_fini(&messages);
    settings_fini(settings);
    free(settings);
    free(text);
    free(arguments);
    return 0;
}
