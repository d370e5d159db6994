/* Files and folders on disk: moving many bytes, and what makes a file durable. Local; errors carry the path and the
 * system's message. */
#ifndef IO_FILE_H
#define IO_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* Makes the folder and those above it where they are missing, and sees that files can be written there. */
int file_make_folders(const char *path, struct err *err);

/* Whether there is something of this name; removes a folder if it is empty. */
bool file_exists(const char *path);
void file_remove_empty(const char *path);

/* Makes an empty file in memory (shared memory's file system) and returns its path, owned by the caller, who unlinks it
 * as soon as it is open; NULL on error. */
char *file_in_memory(struct err *err);

/* Writes a file in memory to disk, replacing one of that name, and reserves the blocks of its holes where the file
 * system can: so a full disk is found before much is written, and the blocks lie together. */
int file_save(int memory, const char *path, struct err *err);

/* An open file that exists. Long transfers go past the page cache where the file system allows it: what is written
 * once and read once, by others, needs no second copy in memory, and making one takes longer than a fast disk does. */
struct file;

struct file *file_open(const char *path, bool write, struct err *err); /* NULL on error */
void file_close(struct file *file);                                    /* NULL is allowed */

/* Moves any number of bytes; reading beyond the file's end is an error. */
int file_write(struct file *file, int64_t offset, const void *data, int64_t bytes, struct err *err);
int file_read(struct file *file, int64_t offset, void *data, int64_t bytes, struct err *err);

/* Holds a file open, so that its length can be looked at later: its descriptor, or -1 with *err. Then
 * its bytes, -1 where the system does not tell; and the end of it, which takes -1 too. */
int file_hold(const char *path, struct err *err);
int64_t file_length(int descriptor);
void file_let_go(int descriptor);

/* Waits until all that this process wrote is on disk. */
int file_flush(struct file *file, struct err *err);

/* Renames and flushes the folder: the file is complete under its final name, replacing an older one, also after a
 * power cut. */
int file_publish(const char *partial, const char *path, struct err *err);

/* Removes a file; one that is not there is no error. */
int file_remove(const char *path, struct err *err);

/* <path>.partial: the name while the file is written; owned by the caller. */
char *file_partial(const char *path);

#endif
