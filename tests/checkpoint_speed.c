/* How fast checkpoints are written (flushed to disk) and read, and whether a part larger than 2 GiB survives.
 *
 *     mpiexec -n 2 checkpoint_speed [gigabytes [folder]]     (default: 1.5 GB in the current folder)
 *
 * Beside it stands a plain file of the same size, written in blocks of 8 MiB by one rank and flushed: what
 * `dd bs=8M conv=fsync` does. */
#include <fcntl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/random.h"
#include "io/checkpoint.h"
#include "parallel/job.h"
#include "tap.h"

enum {
    TENSORS = 24,
    ROWS = 16
};

static struct staging *staging; /* of the CPU, whose memory is the host's */

static void note_speed(const char *what, double bytes, double seconds)
{
    tap_note("%-46s %6.2f GB in %6.2f s: %6.2f GB/s", what, bytes / 1e9, seconds, bytes / 1e9 / seconds);
}

static float value(int tensor, int64_t index)
{
    return (float)(random_bits((uint64_t)tensor, (uint64_t)index) >> 40);
}

static double plain(const char *folder, double bytes)
{
    char path[512], *block = allocate(8 << 20, 1);
    snprintf(path, sizeof path, "%s/plain", folder);
    double begin = MPI_Wtime();
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    for (double done = 0; done < bytes && file >= 0; done += 8 << 20)
        if (write(file, block, 8 << 20) != 8 << 20)
            break;
    bool whole = file >= 0 && fsync(file) == 0 && close(file) == 0;
    double seconds = MPI_Wtime() - begin;
    unlink(path);
    free(block);
    return whole ? seconds : 0;
}

/* Writes and reads tensors whose parts this rank holds; false where something differs. The data stay in the parts. */
static bool round_trip(struct communicator *world, const char *folder, const char *name,
                       const struct checkpoint_tensor *tensors, int tensor_count, struct checkpoint_part *parts,
                       int part_count, double bytes)
{
    struct checkpoint_info info = {.step = 1}, read;
    struct err err;
    char *path = checkpoint_path(folder, 1), what[64];
    for (int p = 0; p < part_count; p++) {
        int64_t row = tensors[parts[p].tensor].shape[1];
        for (int64_t i = 0; i < parts[p].count[0] * row; i++)
            parts[p].data[i] = value(parts[p].tensor, parts[p].start[0] * row + i);
    }
    control_barrier(world);
    double begin = MPI_Wtime();
    int result = checkpoint_write(world, staging, folder, &info, tensors, tensor_count, parts, part_count, &err);
    snprintf(what, sizeof what, "%s: written and flushed", name);
    note_speed(what, bytes, MPI_Wtime() - begin);
    if (result < 0)
        tap_note("%s", err.text);
    for (int p = 0; p < part_count; p++)
        memset(parts[p].data, 0, (size_t)(parts[p].count[0] * tensors[parts[p].tensor].shape[1]) * sizeof(float));
    control_barrier(world);
    begin = MPI_Wtime();
    if (result == 0)
        result = checkpoint_read(world, staging, path, &read, tensors, tensor_count, parts, part_count, &err);
    snprintf(what, sizeof what, "%s: read and checked", name);
    note_speed(what, bytes, MPI_Wtime() - begin);
    if (result < 0)
        tap_note("%s", err.text);
    bool same = result == 0;
    for (int p = 0; p < part_count; p++) {
        int64_t row = tensors[parts[p].tensor].shape[1];
        for (int64_t i = 0; i < parts[p].count[0] * row && same; i++)
            same = parts[p].data[i] == value(parts[p].tensor, parts[p].start[0] * row + i);
    }
    if (world->rank == 0)
        unlink(path);
    free(path);
    return same;
}

static bool spread(struct communicator *world, const char *folder, double bytes)
{
    struct checkpoint_tensor tensors[TENSORS];
    struct checkpoint_part parts[TENSORS];
    memset(tensors, 0, sizeof tensors);
    memset(parts, 0, sizeof parts);
    int64_t columns = (int64_t)(bytes / TENSORS / ROWS / sizeof(float));
    int64_t from = ROWS * world->rank / world->size, to = ROWS * (world->rank + 1) / world->size;
    for (int t = 0; t < TENSORS; t++) {
        snprintf(tensors[t].path, sizeof tensors[t].path, "/model/blocks/%d/weight", t);
        tensors[t].axes = 2;
        tensors[t].shape[0] = ROWS;
        tensors[t].shape[1] = columns;
        parts[t] = (struct checkpoint_part){.tensor = t,
                                            .start = {from},
                                            .count = {to - from, columns},
                                            .data = allocate((size_t)((to - from) * columns), sizeof(float)),
                                            .stride = columns,
                                            .first = true};
    }
    bool same = round_trip(world, folder, "checkpoint", tensors, TENSORS, parts, TENSORS, bytes);
    for (int t = 0; t < TENSORS; t++)
        free(parts[t].data);
    return same;
}

static bool one_large(struct communicator *world, const char *folder)
{
    struct checkpoint_tensor tensor = {"/model/embedding/token", 2, {3, ((int64_t)5 << 27) / 3 + 1}}; /* 2.5 GiB */
    int64_t elements = tensor.shape[0] * tensor.shape[1];
    bool mine = world->rank == world->size - 1;
    struct checkpoint_part part = {
        .count = {tensor.shape[0], tensor.shape[1]}, .stride = tensor.shape[1], .first = true};
    part.data = mine ? allocate((size_t)elements, sizeof(float)) : NULL;
    bool same =
        round_trip(world, folder, "one part of 2.5 GiB", &tensor, 1, &part, mine, (double)elements * sizeof(float));
    free(part.data);
    return same;
}

int main(int argc, char **argv)
{
    struct job job;
    job_begin(&argc, &argv, &job);
    const struct device *device = device_cpu(omp_get_max_threads());
    struct stream *stream = device->stream_open();
    staging = staging_create(device, stream, STAGING_ELEMENTS);
    double bytes = (argc > 1 ? atof(argv[1]) : 1.5) * 1e9;
    const char *folder = argc > 2 ? argv[2] : ".";
    double seconds = job.world->rank == 0 ? plain(folder, bytes) : 0;
    control_barrier(job.world);
    note_speed("a plain file, written and flushed", bytes, seconds);
    ok(spread(job.world, folder, bytes), "what %d ranks wrote together is what they read", job.world->size);
    ok(one_large(job.world, folder), "a part of 2.5 GiB on one rank");
    staging_destroy(staging);
    device->stream_close(stream);
    tap_done();
    job_end(&job);
    return 0;
}
