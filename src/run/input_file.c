#include "run/input_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "parallel/agree.h"
#include "plan/machine.h"

#define INPUT_MAX (64 << 20) /* bytes */

static int read_file(const char *path, struct text *text, struct err *err)
{
    char piece[65536];
    size_t bytes;
    FILE *file = fopen(path, "rb");
    if (!file)
        return err_set(err, "cannot read %s: %s", path, strerror(errno));
    while (text->length <= INPUT_MAX && (bytes = fread(piece, 1, sizeof piece, file)) > 0)
        text_add_bytes(text, piece, bytes);
    int failed = ferror(file);
    fclose(file);
    if (failed)
        return err_set(err, "cannot read %s: %s", path, strerror(errno));
    if (text->length > INPUT_MAX)
        return err_set(err, "%s is larger than %d MiB: not an input of this program", path, INPUT_MAX >> 20);
    return 0;
}

int input_file_read(struct communicator *world, const char *path, struct text *text, struct err *err)
{
    if (agree(world, world->rank == 0 ? read_file(path, text, err) : 0, err) < 0)
        return -1;
    uint64_t length = text->length;
    control_broadcast(world, &length, sizeof length, 0);
    char *bytes = allocate(length, 1);
    if (world->rank == 0)
        memcpy(bytes, text_string(text), length);
    control_broadcast(world, bytes, length, 0);
    if (world->rank != 0)
        text_add_bytes(text, bytes, length);
    free(bytes);
    return 0;
}

int input_file_machine(struct communicator *world, struct settings *settings, struct err *err)
{
    if (!machine_is_file(settings))
        return machine_complete(settings, err);
    struct text text = {0}, messages = {0};
    int result = input_file_read(world, settings->machine.preset, &text, err);
    if (result == 0) {
        result = machine_complete_from(settings, text_string(&text), text.length, &messages);
        if (result < 0 && world->rank == 0)
            fputs(text_string(&messages), stderr);
        err->text[0] = 0;
    }
    text_fini(&text);
    text_fini(&messages);
    return result;
}
