#define _GNU_SOURCE /* fallocate, O_DIRECT, sync_file_range */

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
    if (result == 0 && access(path, W_OK | X_OK) != 0)
        result = system_error(err, path, "nothing can be written into this folder");
    free(part);
    return result;
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

void file_remove_empty(const char *path)
{
    (void)rmdir(path);
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

/* Move all bytes, in as many calls as it takes; -1 with errno. */
static int read_all(int descriptor, void *data, int64_t bytes, int64_t offset)
{
    for (char *to = data; bytes > 0;) {
        ssize_t moved = pread(descriptor, to, (size_t)bytes, offset);
        if (moved <= 0) {
            errno = moved == 0 ? ENODATA : errno;
            return -1;
        }
        to += moved;
        offset += moved;
        bytes -= moved;
    }
    return 0;
}

static int write_all(int descriptor, const void *data, int64_t bytes, int64_t offset)
{
    for (const char *from = data; bytes > 0;) {
        ssize_t moved = pwrite(descriptor, from, (size_t)bytes, offset);
        if (moved < 0)
            return -1;
        from += moved;
        offset += moved;
        bytes -= moved;
    }
    return 0;
}

/* Bytes from ... to of one file into the other. */
static int copy_range(int memory, int disk, off_t from, off_t to)
{
    char buffer[65536];
    for (int64_t count; from < to; from += count) {
        count = to - from < (off_t)sizeof buffer ? to - from : (off_t)sizeof buffer;
        if (read_all(memory, buffer, count, from) < 0 || write_all(disk, buffer, count, from) < 0)
            return -1;
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

enum {
    BLOCK = 4096,           /* addresses, offsets and lengths of direct transfers are multiples */
    DIRECT_LEAST = 1 << 20, /* shorter ones are better off in the page cache */
    PIECE = 8 << 20
};

struct file {
    char *path;
    int cached, direct; /* descriptors: through the page cache; past it, or -1 */
    char *piece;        /* aligned, PIECE bytes */
    int64_t waiting;    /* bytes written into the page cache since the disk was last told to take them up */
};

struct file *file_open(const char *path, bool write, struct err *err)
{
    int mode = (write ? O_RDWR : O_RDONLY) | O_CLOEXEC, cached = open(path, mode);
    if (cached < 0) {
        system_error(err, path, "cannot be opened");
        return NULL;
    }
    struct file *file = allocate(1, sizeof *file);
    *file = (struct file){.path = copy_text(path), .cached = cached, .direct = open(path, mode | O_DIRECT)};
    file->piece = aligned_alloc(BLOCK, PIECE);
    if (!file->piece)
        fatal("out of host memory: %d bytes for a file's transfers", PIECE);
    return file;
}

void file_close(struct file *file)
{
    if (!file)
        return;
    close(file->cached);
    if (file->direct >= 0)
        close(file->direct);
    free(file->piece);
    free(file->path);
    free(file);
}

/* A file system may let a file be opened for direct transfers and then refuse them: from now on through the cache. */
static bool refused(struct file *file)
{
    if (errno != EINVAL)
        return false;
    close(file->direct);
    file->direct = -1;
    return true;
}

static int write_cached(struct file *file, const char *from, int64_t bytes, int64_t offset)
{
    file->waiting += bytes;
    return write_all(file->cached, from, bytes, offset);
}

/* offset and bytes are multiples of BLOCK */
static int write_direct(struct file *file, const char *from, int64_t bytes, int64_t offset)
{
    for (int64_t count; bytes > 0; from += count, offset += count, bytes -= count) {
        count = bytes < PIECE ? bytes : PIECE;
        memcpy(file->piece, from, (size_t)count);
        if (write_all(file->direct, file->piece, count, offset) < 0)
            return refused(file) ? write_cached(file, from, bytes, offset) : -1;
    }
    return 0;
}

static int read_direct(struct file *file, char *to, int64_t bytes, int64_t offset)
{
    for (int64_t count; bytes > 0; to += count, offset += count, bytes -= count) {
        count = bytes < PIECE ? bytes : PIECE;
        if (read_all(file->direct, file->piece, count, offset) < 0)
            return refused(file) ? read_all(file->cached, to, bytes, offset) : -1;
        memcpy(to, file->piece, (size_t)count);
    }
    return 0;
}

/* A transfer's bytes before the first and in the whole blocks that may go past the cache. */
struct split {
    int64_t head, blocks;
};

static struct split split(const struct file *file, int64_t offset, int64_t bytes)
{
    if (file->direct < 0 || bytes < DIRECT_LEAST)
        return (struct split){.head = bytes};
    int64_t head = (BLOCK - offset % BLOCK) % BLOCK;
    return (struct split){.head = head, .blocks = (bytes - head) / BLOCK * BLOCK};
}

int file_write(struct file *file, int64_t offset, const void *data, int64_t bytes, struct err *err)
{
    const char *from = data;
    struct split of = split(file, offset, bytes);
    int64_t tail = of.head + of.blocks;
    if (write_cached(file, from, of.head, offset) < 0 ||
        write_direct(file, from + of.head, of.blocks, offset + of.head) < 0 ||
        write_cached(file, from + tail, bytes - tail, offset + tail) < 0)
        return system_error(err, file->path, "cannot be written");
    if (file->waiting >= PIECE) { /* the disk works while the next bytes are made; a hint */
        (void)sync_file_range(file->cached, 0, 0, SYNC_FILE_RANGE_WRITE);
        file->waiting = 0;
    }
    return 0;
}

int file_read(struct file *file, int64_t offset, void *data, int64_t bytes, struct err *err)
{
    char *to = data;
    struct split of = split(file, offset, bytes);
    int64_t tail = of.head + of.blocks;
    if (read_all(file->cached, to, of.head, offset) < 0 ||
        read_direct(file, to + of.head, of.blocks, offset + of.head) < 0 ||
        read_all(file->cached, to + tail, bytes - tail, offset + tail) < 0)
        return errno == ENODATA ? err_set(err, "%s: ends too early", file->path)
                                : system_error(err, file->path, "cannot be read");
    return 0;
}

int file_hold(const char *path, struct err *err)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    return descriptor < 0 ? system_error(err, path, "cannot be opened") : descriptor;
}

int64_t file_length(int descriptor)
{
    struct stat there;
    return fstat(descriptor, &there) == 0 ? (int64_t)there.st_size : -1;
}

void file_let_go(int descriptor)
{
    if (descriptor >= 0)
        close(descriptor);
}

int file_flush(struct file *file, struct err *err)
{
    return fsync(file->cached) != 0 ? system_error(err, file->path, "cannot be flushed to disk") : 0;
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
