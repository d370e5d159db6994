/* Files: long and short transfers at odd places, past the page cache and through it; folders; publishing. */
#include "io/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/random.h"
#include "tap.h"

enum {
    SIZE = 20 << 20
};

static char folder[64] = "file-test-XXXXXX";
static unsigned char expected[SIZE], found[SIZE];

static void path_in_folder(char path[128], const char *name)
{
    snprintf(path, 128, "%s/%s", folder, name);
}

/* Writes at many places, then compares the whole file as the system sees it, then reads at other places. */
static void transfers(void)
{
    char path[128];
    struct err err = {""};
    path_in_folder(path, "data");
    FILE *plain = fopen(path, "wb");
    bool made = plain && fwrite(expected, 1, SIZE, plain) == SIZE;
    if (plain)
        fclose(plain);
    struct file *file = file_open(path, true, &err);
    if (!ok(made && file, "a file is opened"))
        return;
    static unsigned char data[SIZE];
    for (int i = 0; i < SIZE; i++)
        data[i] = (unsigned char)(random_mix((uint64_t)i) >> 8);
    bool right = true;
    for (uint64_t n = 0; n < 60; n++) {
        int64_t most = n % 3 == 0 ? SIZE : n % 3 == 1 ? 70000 : 3 << 20, offset = (int64_t)(random_bits(1, n) % SIZE);
        if (n % 4 == 0)
            offset = offset / 4096 * 4096;
        int64_t bytes = (int64_t)(random_bits(2, n) % (uint64_t)most);
        bytes = bytes < SIZE - offset ? bytes : SIZE - offset;
        int64_t from = (int64_t)(random_bits(3, n) % (uint64_t)(SIZE - bytes + 1)); /* memory is not aligned */
        memcpy(expected + offset, data + from, (size_t)bytes);
        right = right && file_write(file, offset, data + from, bytes, &err) == 0;
    }
    ok(right && file_flush(file, &err) == 0, "writes at odd places %s", err.text);
    file_close(file);
    plain = fopen(path, "rb");
    ok(plain && fread(found, 1, SIZE, plain) == SIZE && memcmp(found, expected, SIZE) == 0 && getc(plain) == EOF,
       "every byte is where it belongs, the length is the same");
    if (plain)
        fclose(plain);
    file = file_open(path, false, &err);
    right = file != NULL;
    for (uint64_t n = 0; n < 60 && right; n++) {
        int64_t offset = (int64_t)(random_bits(4, n) % SIZE), bytes = (int64_t)(random_bits(5, n) % (4 << 20));
        bytes = bytes < SIZE - offset ? bytes : SIZE - offset;
        right = file_read(file, offset, found + n, bytes < SIZE - 60 ? bytes : SIZE - 60, &err) == 0 &&
                memcmp(found + n, expected + offset, (size_t)bytes) == 0;
    }
    ok(right, "reads at odd places");
    ok(file_read(file, SIZE - 5, found, 6, &err) < 0 && strstr(err.text, path), "beyond the end: %s", err.text);
    ok(file_read(file, 4096, found, SIZE - 4095, &err) < 0, "far beyond the end: %s", err.text);
    ok(file_write(file, 0, found, 2 << 20, &err) < 0, "writing what is open to be read: %s", err.text);
    file_close(file);
    file = file_open("/dev/full", true, &err);
    ok(file && file_write(file, 0, found, 2 << 20, &err) < 0 && strstr(err.text, "No space"), "no room: %s", err.text);
    file_close(file);
    ok(!file_open("no/such/file", false, &err), "no file: %s", err.text);
}

/* A file in memory with holes has the same bytes on disk, and blocks for the holes. */
static void saving(void)
{
    struct err err = {""};
    char path[128], *memory = file_in_memory(&err);
    path_in_folder(path, "saved");
    FILE *stream = memory ? fopen(memory, "w+b") : NULL;
    if (!ok(stream, "a file in memory %s", err.text))
        return;
    unlink(memory);
    memset(expected, 0, SIZE);
    static const int64_t places[] = {0, 5000, (3 << 20) + 7, SIZE - 300000};
    for (int i = 0; i < 4; i++) {
        memset(expected + places[i], i + 1, 200000);
        fseek(stream, places[i], SEEK_SET);
        fwrite(expected + places[i], 1, 200000, stream);
    }
    fflush(stream);
    ok(ftruncate(fileno(stream), SIZE) == 0 && file_save(fileno(stream), path, &err) == 0, "is saved %s", err.text);
    FILE *saved = fopen(path, "rb");
    ok(saved && fread(found, 1, SIZE, saved) == SIZE && memcmp(found, expected, SIZE) == 0 && getc(saved) == EOF,
       "with the same bytes");
    if (saved)
        fclose(saved);
    ok(file_save(fileno(stream), "/dev/full", &err) < 0 && strstr(err.text, "No space"), "no room: %s", err.text);
    fclose(stream);
    free(memory);
}

static void names(void)
{
    struct err err = {""};
    char deep[128], path[128], file[160];
    path_in_folder(deep, "a/b//c/");
    ok(file_make_folders(deep, &err) == 0 && file_make_folders(deep, &err) == 0, "folders are made, again too");
    struct stat there;
    ok(stat(deep, &there) == 0 && S_ISDIR(there.st_mode), "they are there");
    path_in_folder(path, "a/file");
    FILE *stream = fopen(path, "w");
    if (stream)
        fclose(stream);
    snprintf(file, sizeof file, "%s/below", path);
    ok(file_make_folders(file, &err) < 0 && strstr(err.text, "Not a directory"), "below a file: %s", err.text);
    char *partial = file_partial(path);
    ok(strcmp(partial + strlen(path), ".partial") == 0, "the partial name");
    ok(file_publish(partial, path, &err) < 0, "what is not there cannot be published: %s", err.text);
    ok(file_publish(path, partial, &err) == 0 && access(partial, F_OK) == 0 && access(path, F_OK) != 0, "published");
    ok(file_remove(partial, &err) == 0 && file_remove(partial, &err) == 0 && access(partial, F_OK) != 0, "removed");
    ok(file_remove(deep, &err) < 0, "a folder is not removed: %s", err.text);
    free(partial);
}

int main(void)
{
    if (!mkdtemp(folder))
        return 1;
    transfers();
    saving();
    names();
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command) != 0)
        tap_note("%s is left behind", folder);
    return tap_done();
}
