#include "parallel/flight_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"

#define LOCK "flight.lock"

struct text flight_path(const char *folder, int rank, const char *ending)
{
    struct text path = {0};
    text_add(&path, "%s/flight-%d.%s", folder, rank, ending);
    return path;
}

static bool write_all(int descriptor, const void *data, size_t bytes, off_t offset)
{
    for (const char *from = data; bytes > 0;) {
        ssize_t moved = pwrite(descriptor, from, bytes, offset);
        if (moved <= 0)
            return false;
        from += moved;
        offset += moved;
        bytes -= (size_t)moved;
    }
    return true;
}

int flight_file_create(const char *folder, const struct flight_record *record, struct err *err)
{
    struct text path = flight_path(folder, record->rank, "record"), names = {0};
    for (int act = 0; act < FLIGHT_ACT_COUNT; act++)
        text_add(&names, "%s\n", flight_name(act));
    int descriptor = open(text_string(&path), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor < 0 || !write_all(descriptor, record, sizeof *record, 0) ||
        !write_all(descriptor, text_string(&names), names.length, sizeof *record)) {
        err_set(err, "cannot write %s: %s", text_string(&path), strerror(errno));
        if (descriptor >= 0)
            close(descriptor);
        descriptor = -1;
    }
    text_fini(&path);
    text_fini(&names);
    return descriptor;
}

void flight_file_write(int descriptor, const struct flight_record *record)
{
    (void)write_all(descriptor, record, sizeof *record, 0);
}

static bool read_all(int descriptor, void *data, size_t bytes)
{
    off_t offset = 0;
    for (char *to = data; bytes > 0;) {
        ssize_t moved = pread(descriptor, to, bytes, offset);
        if (moved <= 0)
            return false;
        to += moved;
        offset += moved;
        bytes -= (size_t)moved;
    }
    return true;
}

bool flight_file_read(const char *folder, int rank, uint64_t run, struct flight_record *record)
{
    enum {
        TRIES = 100 /* it may be under the owner's hands; a torn one is better than none */
    };
    struct text path = flight_path(folder, rank, "record");
    int descriptor = open(text_string(&path), O_RDONLY | O_CLOEXEC);
    bool good = descriptor >= 0;
    for (int i = 0; i < TRIES && good; i++) {
        good = read_all(descriptor, record, sizeof *record);
        if (record->beat == record->beat_again)
            break;
    }
    if (descriptor >= 0)
        close(descriptor);
    text_fini(&path);
    return good && memcmp(record->magic, "ppflight", sizeof record->magic) == 0 && record->version == FLIGHT_VERSION &&
           record->bytes == sizeof *record && record->run == run && record->rank == rank;
}

/* The rank in "flight-<rank>.<ending>", or -1 for other names. */
static int rank_of(const char *name, const char *ending)
{
    int rank, used = 0;
    if (sscanf(name, "flight-%d.%n", &rank, &used) != 1 || used == 0 || rank < 0 || strcmp(name + used, ending) != 0)
        return -1;
    return rank;
}

void flight_files_remove(const char *folder, const char *ending, int first)
{
    DIR *open_folder = opendir(folder);
    for (struct dirent *entry; open_folder && (entry = readdir(open_folder));) {
        int rank = rank_of(entry->d_name, ending);
        if (rank < 0 || rank < first)
            continue;
        struct text path = {0};
        text_add(&path, "%s/%s", folder, entry->d_name);
        (void)unlink(text_string(&path)); /* one that stays is of another run, which shows */
        text_fini(&path);
    }
    if (open_folder)
        closedir(open_folder);
}

bool flight_lock(const char *folder)
{
    struct text path = {0};
    text_add(&path, "%s/" LOCK, folder);
    int descriptor = open(text_string(&path), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    bool taken = descriptor >= 0 || errno != EEXIST; /* where no lock can be made each rank may report */
    if (descriptor >= 0)
        close(descriptor);
    text_fini(&path);
    return taken;
}

void flight_unlock(const char *folder)
{
    struct text path = {0};
    text_add(&path, "%s/" LOCK, folder);
    (void)unlink(text_string(&path));
    text_fini(&path);
}

double sighting_silence(const struct sighting *sighting, double wall)
{
    double silence = wall - sighting->record.wall; /* clocks of nodes may differ a little */
    return silence > 0 ? silence : 0;
}

double sighting_age(const struct sighting *sighting, double begin, double wall)
{
    double age = sighting->record.now - begin + sighting_silence(sighting, wall);
    return age > 0 ? age : 0;
}

static void add_number(struct text *out, const char *name, int64_t value)
{
    if (value >= 0)
        text_add(out, ",\"%s\":%lld", name, (long long)value);
}

static void add_entry(struct text *out, const struct sighting *sighting, const struct flight_entry *entry, double wall)
{
    text_add(out, "  {\"name\":\"%s\",\"begin\":%.6f", flight_name(entry->act),
             wall - sighting_age(sighting, entry->begin, wall));
    if (entry->end > 0)
        text_add(out, ",\"seconds\":%.9f", entry->end - entry->begin);
    add_number(out, "step", entry->step);
    add_number(out, "stage", entry->stage);
    add_number(out, "microbatch", entry->microbatch);
    add_number(out, "peer", entry->peer);
    add_number(out, "bytes", entry->bytes);
    add_number(out, "sequence", entry->sequence > 0 ? (int64_t)entry->sequence : -1);
    text_add(out, ",\"depth\":%d}", entry->depth);
}

static void add_entries(struct text *out, const struct sighting *sighting, double wall)
{
    const struct flight_record *record = &sighting->record;
    int depth = record->depth < FLIGHT_DEPTH ? record->depth : FLIGHT_DEPTH;
    text_add(out, "\n \"open\":[");
    for (int i = 0; i < depth; i++) {
        text_add(out, i ? ",\n" : "\n");
        add_entry(out, sighting, &record->open[i], wall);
    }
    text_add(out, "],\n \"ended\":[");
    uint64_t first = record->ended > FLIGHT_RING ? record->ended - FLIGHT_RING : 0;
    for (uint64_t i = first; i < record->ended; i++) {
        text_add(out, i > first ? ",\n" : "\n");
        add_entry(out, sighting, &record->ring[i % FLIGHT_RING], wall);
    }
    text_add(out, "]}\n");
}

void flight_json_write(const char *folder, int rank, const struct sighting *sighting, const char *standing,
                       int waits_for, double wall)
{
    const struct flight_record *record = &sighting->record;
    struct text path = flight_path(folder, rank, "json"), out = {0};
    text_add(&out, "{\"rank\":%d,\"standing\":\"%s\"", rank, standing);
    add_number(&out, "waits_for", waits_for);
    if (sighting->is_there) {
        text_add(&out,
                 ",\n \"run\":\"%016llx\",\"size\":%d,\"p\":%d,\"d\":%d,\"t\":%d,\"host\":\"%.*s\",\"process\":%d",
                 (unsigned long long)record->run, record->size, record->p, record->d, record->t, FLIGHT_HOST,
                 record->host, record->process);
        text_add(&out, ",\n \"wall\":%.6f,\"silence\":%.3f,\"step\":%d,", wall, sighting_silence(sighting, wall),
                 record->step);
        add_entries(&out, sighting, wall);
    } else {
        text_add(&out, "}\n");
    }
    FILE *file = fopen(text_string(&path), "w");
    if (file) { /* the message has told the most; a full disk must not keep the job from ending */
        (void)fwrite(text_string(&out), 1, out.length, file);
        (void)fclose(file);
    }
    text_fini(&path);
    text_fini(&out);
}
