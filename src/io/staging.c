#include "io/staging.h"

#include <stdlib.h>

#include "base/error.h"
#include "base/memory.h"
#include "kernels/host_memory.h"

struct staging {
    const struct device *device;
    struct stream *stream;
    int64_t elements;  /* of a buffer */
    float *buffers[2]; /* NULL: the host reads the device's memory */
    int next;          /* the buffer that is used next; a copy may be under way on the other one alone */
};

struct staging *staging_create(const struct device *device, struct stream *stream, int64_t elements)
{
    struct staging *staging = allocate(1, sizeof *staging);
    *staging = (struct staging){.device = device, .stream = stream, .elements = elements};
    for (int i = 0; i < 2 && !device->host_memory; i++) {
        staging->buffers[i] = host_memory(device, (size_t)elements * sizeof(float), "copies to and from the device");
    }
    return staging;
}

void staging_destroy(struct staging *staging)
{
    if (!staging)
        return;
    staging_wait(staging);
    for (int i = 0; i < 2 && !staging->device->host_memory; i++)
        staging->device->host_release(staging->buffers[i], (size_t)staging->elements * sizeof(float));
    free(staging);
}

int64_t staging_most(const struct staging *staging)
{
    return staging->device->host_memory ? INT64_MAX : staging->elements;
}

struct staging_rows staging_room(struct staging *staging, struct staging_rows rows)
{
    if (staging->device->host_memory)
        return rows;
    return (struct staging_rows){staging->buffers[staging->next], rows.rows, rows.length, rows.length};
}

/* Queues the copies from rows to as many others of that length: one, where both lie without gaps. */
static void copy_rows(struct staging *staging, struct staging_rows to, struct staging_rows from)
{
    if (from.rows == 1 || (to.stride == to.length && from.stride == from.length)) {
        from.length *= from.rows;
        from.rows = 1;
    }
    for (int64_t row = 0; row < from.rows; row++)
        staging->device->copy(staging->stream, to.data + row * to.stride, from.data + row * from.stride,
                              (size_t)from.length * sizeof(float));
}

struct staging_rows staging_fetch(struct staging *staging, struct staging_rows rows)
{
    struct staging_rows room = staging_room(staging, rows);
    if (!staging->device->host_memory) {
        copy_rows(staging, room, rows);
        staging->next = !staging->next;
    }
    return room;
}

void staging_store(struct staging *staging, struct staging_rows rows)
{
    if (staging->device->host_memory)
        return;
    struct staging_rows room = staging_room(staging, rows);
    staging_wait(staging); /* for the copy before, from the buffer that is the next room */
    copy_rows(staging, rows, room);
    staging->next = !staging->next;
}

void staging_wait(struct staging *staging)
{
    staging->device->stream_wait(staging->stream);
}
