/* Text files that the user wrote: rank 0 reads them, all ranks get them. */
#ifndef RUN_INPUT_FILE_H
#define RUN_INPUT_FILE_H

#include "base/settings.h"
#include "parallel/communicator.h"

/* Appends the file's bytes to *text on every rank. Collective: 0 on all ranks, or -1 and the same *err on all where the
 * file cannot be read or is too large for a text. */
int input_file_read(struct communicator *world, const char *path, struct text *text, struct err *err);

/* Completes &machine from the preset that it names, a built-in one or a file with such a group. Collective: 0 on all
 * ranks, or -1 with *err, which is empty where rank 0 has already said what is wrong in the file. */
int input_file_machine(struct communicator *world, struct settings *settings, struct err *err);

#endif
