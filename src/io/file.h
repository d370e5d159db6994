/* Files and folders on disk: what makes a file durable. Local; errors carry the system's message. */
#ifndef IO_FILE_H
#define IO_FILE_H

#include <stdint.h>

#include "base/error.h"

/* Makes the folder and those above it where they are missing. */
int file_make_folders(const char *path, struct err *err);

/* Makes an empty file in memory (shared memory's file system) and returns its path, owned by the caller, who unlinks it
 * as soon as it is open; NULL on error. */
char *file_in_memory(struct err *err);

/* Writes a file in memory to disk, replacing one of that name, and reserves the blocks of its holes where the file
 * system can: so a full disk is found before much is written, and the blocks lie together. */
int file_save(int memory, const char *path, struct err *err);

/* Opens an existing file for file_begin_flush() and file_flush(); returns the descriptor. */
int file_open_to_flush(const char *path, struct err *err);

/* Starts to write these bytes to disk and does not wait for it, so that the disk works while the next are made. */
void file_begin_flush(int descriptor, int64_t offset, int64_t bytes);

/* Waits until all that was written is on disk; closes the descriptor in any case. */
int file_flush_and_close(int descriptor, const char *path, struct err *err);

/* Renames and flushes the folder: the file is complete under its final name, replacing an older one, also after a
 * power cut. */
int file_publish(const char *partial, const char *path, struct err *err);

/* Removes a file; one that is not there is no error. */
int file_remove(const char *path, struct err *err);

/* <path>.partial: the name while the file is written; owned by the caller. */
char *file_partial(const char *path);

#endif
