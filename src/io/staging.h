/* How elements in memory of a device pass to and from the host: through two buffers of memory that the device copies to
 * and from by itself. One is on its way while the host works on the other, and there is never a second copy of more
 * than these. Where the host reads the device's memory, nothing is copied: what it is given is that memory itself. */
#ifndef IO_STAGING_H
#define IO_STAGING_H

#include <stdint.h>

#include "kernels/kernels.h"

enum {
    STAGING_ELEMENTS = 8 << 20 /* of a buffer: 32 MiB of float32, long enough for a disk and for a device */
};

struct staging;

/* `rows` rows of `length` elements each, `stride` elements apart. */
struct staging_rows {
    float *data;
    int64_t rows, length, stride;
};

/* For memory of this device. Copies are queued on the stream: what was queued there before has written the elements,
 * and what comes behind reads what was stored. elements (>= 1): of a buffer. Ends the job when the host has not enough
 * memory for the buffers. Local, as is all of this. */
struct staging *staging_create(const struct device *device, struct stream *stream, int64_t elements);
void staging_destroy(struct staging *staging); /* before the stream is closed; NULL is allowed */

/* How many elements can pass at once: those of a buffer, or any number where nothing is copied. */
int64_t staging_most(const struct staging *staging);

/* Begins to bring rows of the device's memory, staging_most() elements at most, to the host; nothing else may be under
 * way. Returns them as the host finds them, not to be written, from the next staging_wait on until the fetch after the
 * next one begins. */
struct staging_rows staging_fetch(struct staging *staging, struct staging_rows rows);

/* Where the host may write the elements that staging_store() then brings to those rows, staging_most() at most. */
struct staging_rows staging_room(struct staging *staging, struct staging_rows rows);

/* Begins to bring what the host wrote into the room for these rows, the last one that it was given, to the device's
 * memory. That room is no longer the host's; elements of that memory between the rows stay as they are. */
void staging_store(struct staging *staging, struct staging_rows rows);

/* Waits until all that was begun is done. */
void staging_wait(struct staging *staging);

#endif
