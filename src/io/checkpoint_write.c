#include <stdlib.h>

#include "base/memory.h"
#include "io/checkpoint_parts.h"
#include "io/file.h"
#include "io/h5.h"
#include "parallel/agree.h"

static int describe_run(hid_t file, const struct checkpoint_info *info, struct err *err)
{
    if (h5_put_format(file, "ppmodel-checkpoint", 1, err) < 0 || h5_put_int64(file, "step", info->step, err) < 0 ||
        h5_put_int64(file, "samples", info->samples, err) < 0 || h5_put_int64(file, "seed", info->seed, err) < 0)
        return -1;
    if ((info->input && h5_put_text(file, "input", info->input, err) < 0) ||
        (info->dataset && h5_put_text(file, "dataset", info->dataset, err) < 0) ||
        (info->code && h5_put_text(file, "code", info->code, err) < 0))
        return -1;
    return info->outlier_count > 0
               ? h5_put_doubles(file, "outlier_window", info->outlier_window, info->outlier_count, err)
               : 0;
}

/* *offset: where the elements belong in the file. */
static int describe_tensor(hid_t file, const struct checkpoint_tensor *tensor, uint64_t digest, int64_t *offset,
                           struct err *err)
{
    hid_t dataset = h5_create_dataset(file, tensor->path, H5T_NATIVE_FLOAT, tensor->axes, tensor->shape, err);
    if (dataset < 0)
        return -1;
    *offset = h5_offset(dataset, H5T_NATIVE_FLOAT);
    int result = h5_put_uint64(dataset, "digest", digest, err);
    if (H5Dclose(dataset) < 0 && result == 0)
        result = h5_error(err, "%s cannot be closed", tensor->path);
    return result;
}

/* Writes everything but the elements, whose room is reserved; on one rank. */
static int describe(const char *directory, const char *partial, const struct checkpoint_info *info,
                    const struct checkpoint_tensor *tensors, int tensor_count, const uint64_t *digests,
                    int64_t *offsets, struct err *err)
{
    if (file_make_folders(directory, err) < 0)
        return -1;
    hid_t file = h5_create(err);
    if (file < 0)
        return -1;
    int result = describe_run(file, info, err);
    for (int i = 0; i < tensor_count && result == 0; i++)
        result = describe_tensor(file, &tensors[i], digests[i], &offsets[i], err);
    if (result == 0)
        return h5_save(file, partial, err);
    H5Fclose(file);
    return err_prefix(err, "%s", partial);
}

static int write_piece(struct file *file, int64_t offset, const struct checkpoint_tensor *tensor,
                       const struct checkpoint_piece *piece, struct err *err)
{
    struct box_runs runs = box_runs(&piece->box, tensor->shape, piece->stride);
    for (int64_t n = 0; n < runs.count; n++) {
        int64_t index, at = box_run(&runs, n, &index);
        if (file_write(file, offset + index * (int64_t)sizeof(float), piece->data + at,
                       runs.length * (int64_t)sizeof(float), err) < 0)
            return err_prefix(err, "%s", tensor->path);
    }
    return 0;
}

/* Writes this rank's parts and waits until they are on disk. */
static int write_parts(struct staging *staging, const char *partial, const int64_t *offsets,
                       const struct checkpoint_tensor *tensors, const struct checkpoint_part *parts, int part_count,
                       struct err *err)
{
    struct file *file = file_open(partial, true, err);
    if (!file)
        return -1;
    struct checkpoint_pieces pieces;
    struct checkpoint_piece piece;
    int result = 0;
    checkpoint_fetch_begin(&pieces, staging, tensors, parts, part_count, true);
    while (result == 0 && checkpoint_fetch(&pieces, &piece))
        result = write_piece(file, offsets[piece.part->tensor], &tensors[piece.part->tensor], &piece, err);
    checkpoint_pieces_end(&pieces);
    if (result == 0)
        result = file_flush(file, err);
    file_close(file);
    return result;
}

/* Collective. */
static int write_file(struct communicator *comm, struct staging *staging, const char *directory, const char *partial,
                      const struct checkpoint_info *info, const struct checkpoint_tensor *tensors, int tensor_count,
                      const struct checkpoint_part *parts, int part_count, struct err *err)
{
    uint64_t *digests = allocate((size_t)tensor_count, sizeof *digests);
    int64_t *offsets = allocate((size_t)tensor_count, sizeof *offsets);
    checkpoint_digest_parts(comm, staging, tensors, tensor_count, parts, part_count, digests);
    int result = 0;
    if (comm->rank == 0)
        result = describe(directory, partial, info, tensors, tensor_count, digests, offsets, err);
    result = agree(comm, result, err);
    if (result == 0) {
        control_broadcast(comm, offsets, (size_t)tensor_count * sizeof *offsets, 0);
        result = agree(comm, write_parts(staging, partial, offsets, tensors, parts, part_count, err), err);
    }
    free(offsets);
    free(digests);
    return result;
}

int checkpoint_write(struct communicator *comm, struct staging *staging, const char *directory,
                     const struct checkpoint_info *info, const struct checkpoint_tensor *tensors, int tensor_count,
                     const struct checkpoint_part *parts, int part_count, struct err *err)
{
    if (checkpoint_check_parts(comm, tensors, tensor_count, parts, part_count, err) < 0)
        return -1;
    char *path = checkpoint_path(directory, info->step), *partial = file_partial(path);
    int result = write_file(comm, staging, directory, partial, info, tensors, tensor_count, parts, part_count, err);
    if (result == 0)
        result = agree(comm, comm->rank == 0 ? file_publish(partial, path, err) : 0, err);
    struct err second;
    if (result < 0 && comm->rank == 0)
        (void)file_remove(partial, &second); /* the first error is the one to tell */
    free(partial);
    free(path);
    return result;
}
