#define _GNU_SOURCE /* fallocate, sync_file_range */

#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

static int system_error(struct err *err, const char *path, const char *what)
{
    return err_set(err, "%s: %s: %s", path, what, strerror(errno));
}

static int make_folder(const char *path, struct err *err)
{
    struct stat there;
    if (mkdir(path, 0777) == 0)
        return 0;
    if (errno == EEXIST && stat(path, &there) == 0) {
        if (S_ISDIR(there.st_mode))
            return 0;
        errno = ENOTDIR;
    }
    return system_error(err, path, "the folder cannot be made");
}

int file_make_folders(const char *path, struct err *err)
{
    char *part = copy_text(path);
    int result = 0;
    for (char *slash = strchr(part + 1, '/'); *path && slash && result == 0; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        result = make_folder(part, err);
        *slash = '/';
    }
    if (result == 0)
        result = make_folder(part, err);
    free(part);
    return result;
}

char *file_in_memory(struct err *err)
{
    char *path = copy_text("/dev/shm/ppmodel-XXXXXX");
    int descriptor = mkstemp(path);
    if (descriptor >= 0) {
        close(descriptor);
        return path;
    }
    system_error(err, path, "cannot be created");
    free(path);
    return NULL;
}

/* Bytes from ... to of one file into the other. */
static int copy_range(int memory, int disk, off_t from, off_t to)
{
    char buffer[65536];
    while (from < to) {
        size_t left = (size_t)(to - from);
        ssize_t bytes = pread(memory, buffer, left < sizeof buffer ? left : sizeof buffer, from);
        if (bytes <= 0)
            return -1;
        for (ssize_t done = 0; done < bytes;) {
            ssize_t written = pwrite(disk, buffer + done, (size_t)(bytes - done), from + done);
            if (written < 0)
                return -1;
            done += written;
        }
        from += bytes;
    }
    return 0;
}

static int save(int memory, int disk, const char *path, struct err *err)
{
    off_t size = lseek(memory, 0, SEEK_END);
    for (off_t from = 0; (from = lseek(memory, from, SEEK_DATA)) >= 0 && from < size;) { /* data; then a hole */
        off_t to = lseek(memory, from, SEEK_HOLE);
        if (copy_range(memory, disk, from, to) < 0)
            return system_error(err, path, "cannot be written");
        from = to;
    }
    if (size < 0 || ftruncate(disk, size) != 0)
        return system_error(err, path, "cannot be made long enough");
    if (size > 0 && fallocate(disk, 0, 0, size) != 0 && errno != EOPNOTSUPP && errno != ENOSYS)
        return system_error(err, path, "cannot be given its room on disk");
    return 0;
}

int file_save(int memory, const char *path, struct err *err)
{
    int disk = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (disk < 0)
        return system_error(err, path, "cannot be created");
    int result = save(memory, disk, path, err);
    if (close(disk) != 0 && result == 0)
        result = system_error(err, path, "cannot be closed");
    return result;
}

int file_open_to_flush(const char *path, struct err *err)
{
    int descriptor = open(path, O_WRONLY | O_CLOEXEC);
    return descriptor < 0 ? system_error(err, path, "cannot be opened") : descriptor;
}

void file_begin_flush(int descriptor, int64_t offset, int64_t bytes)
{
    /* a hint: where the file system does not know it, file_flush_and_close() does all the work */
    (void)sync_file_range(descriptor, offset, bytes, SYNC_FILE_RANGE_WRITE);
}

int file_flush_and_close(int descriptor, const char *path, struct err *err)
{
    int result = fsync(descriptor) != 0 ? system_error(err, path, "cannot be flushed to disk") : 0;
    if (close(descriptor) != 0 && result == 0)
        result = system_error(err, path, "cannot be closed");
    return result;
}

int file_publish(const char *partial, const char *path, struct err *err)
{
    if (rename(partial, path) != 0)
        return system_error(err, path, "cannot be given its name");
    const char *slash = strrchr(path, '/');
    char *folder = copy_text(slash ? path : ".");
    if (slash)
        folder[slash == path ? 1 : slash - path] = '\0';
    int result = 0, descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0)
        result = system_error(err, folder, "the folder cannot be opened");
    else if (fsync(descriptor) != 0 && errno != EINVAL) /* EINVAL: folders cannot be flushed here */
        result = system_error(err, folder, "the folder cannot be flushed to disk");
    if (descriptor >= 0)
        close(descriptor);
    free(folder);
    return result;
}

int file_remove(const char *path, struct err *err)
{
    return unlink(path) != 0 && errno != ENOENT ? system_error(err, path, "cannot be removed") : 0;
}

char *file_partial(const char *path)
{
    size_t bytes = strlen(path) + sizeof ".partial";
    char *partial = allocate(bytes, 1);
    snprintf(partial, bytes, "%s.partial", path);
    return partial;
}
