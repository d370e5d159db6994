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

static int describe_tensor(hid_t file, const struct checkpoint_tensor *tensor, uint64_t digest, struct err *err)
{
    hid_t dataset = h5_create_dataset(file, tensor->path, H5T_NATIVE_FLOAT, tensor->axes, tensor->shape, err);
    if (dataset < 0)
        return -1;
    int result = h5_put_uint64(dataset, "digest", digest, err);
    if (H5Dclose(dataset) < 0 && result == 0)
        result = h5_error(err, "%s cannot be closed", tensor->path);
    return result;
}

/* Writes everything but the elements, whose space is reserved; on one rank. */
static int describe(const char *directory, const char *partial, const struct checkpoint_info *info,
                    const struct checkpoint_tensor *tensors, int tensor_count, const uint64_t *digests, struct err *err)
{
    if (file_make_folders(directory, err) < 0)
        return -1;
    hid_t file = h5_create(err);
    if (file < 0)
        return -1;
    int result = describe_run(file, info, err);
    for (int i = 0; i < tensor_count && result == 0; i++)
        result = describe_tensor(file, &tensors[i], digests[i], err);
    if (result == 0)
        return h5_save(file, partial, err);
    H5Fclose(file);
    return err_prefix(err, "%s", partial);
}

/* Writes a part piece by piece; the disk takes up each while the next is copied. */
static int write_part(hid_t file, int descriptor, const struct checkpoint_tensor *tensor,
                      const struct checkpoint_part *part, struct err *err)
{
    struct box box = checkpoint_box(tensor, part);
    if (!part->first || box_elements(&box) == 0)
        return 0;
    hid_t dataset = H5Dopen2(file, tensor->path, H5P_DEFAULT);
    haddr_t offset = dataset < 0 ? HADDR_UNDEF : H5Dget_offset(dataset);
    int result = offset == HADDR_UNDEF ? h5_error(err, "%s: cannot be opened", tensor->path) : 0;
    for (int64_t n = 0, pieces = box_pieces(&box, BOX_PIECE); n < pieces && result == 0; n++) {
        struct box piece;
        const float *data = part->data + box_piece(&box, BOX_PIECE, n, part->stride, &piece);
        result = h5_write_box(dataset, H5T_NATIVE_FLOAT, &piece, data, part->stride, err);
        if (result < 0)
            err_prefix(err, "%s", tensor->path);
        int64_t from = box_first(&piece, tensor->shape), to = box_last(&piece, tensor->shape) + 1;
        file_begin_flush(descriptor, (int64_t)offset + from * (int64_t)sizeof *data,
                         (to - from) * (int64_t)sizeof *data);
    }
    if (dataset >= 0)
        H5Dclose(dataset);
    return result;
}

/* Writes this rank's parts and waits until they are on disk. Collective; what is found wrong is this rank's alone. */
static int write_parts(struct communicator *comm, const char *partial, const struct checkpoint_tensor *tensors,
                       const struct checkpoint_part *parts, int part_count, struct err *err)
{
    hid_t file = h5_open_together(comm, partial, true, err);
    if (file < 0)
        return -1;
    int descriptor = file_open_to_flush(partial, err);
    int result = descriptor < 0 ? -1 : 0;
    for (int i = 0; i < part_count && result == 0; i++)
        result = write_part(file, descriptor, &tensors[parts[i].tensor], &parts[i], err);
    if (result < 0)
        err_prefix(err, "%s", partial);
    if (H5Fclose(file) < 0 && result == 0)
        result = h5_error(err, "%s: cannot be closed", partial);
    struct err last;
    if (descriptor >= 0 && file_flush_and_close(descriptor, partial, &last) < 0 && result == 0) {
        *err = last;
        result = -1;
    }
    return result;
}

static int write_file(struct communicator *comm, const char *directory, const char *partial,
                      const struct checkpoint_info *info, const struct checkpoint_tensor *tensors, int tensor_count,
                      const uint64_t *digests, const struct checkpoint_part *parts, int part_count, struct err *err)
{
    int result = comm->rank == 0 ? describe(directory, partial, info, tensors, tensor_count, digests, err) : 0;
    if (agree(comm, result, err) < 0)
        return -1;
    return agree(comm, write_parts(comm, partial, tensors, parts, part_count, err), err);
}

int checkpoint_write(struct communicator *comm, const char *directory, const struct checkpoint_info *info,
                     const struct checkpoint_tensor *tensors, int tensor_count, const struct checkpoint_part *parts,
                     int part_count, struct err *err)
{
    if (checkpoint_check_parts(comm, tensors, tensor_count, parts, part_count, err) < 0)
        return -1;
    uint64_t *digests = allocate((size_t)tensor_count, sizeof *digests);
    checkpoint_digest_parts(comm, tensors, tensor_count, parts, part_count, digests);
    char *path = checkpoint_path(directory, info->step), *partial = file_partial(path);
    int result = write_file(comm, directory, partial, info, tensors, tensor_count, digests, parts, part_count, err);
    if (result == 0)
        result = agree(comm, comm->rank == 0 ? file_publish(partial, path, err) : 0, err);
    struct err second;
    if (result < 0 && comm->rank == 0)
        (void)file_remove(partial, &second); /* the first error is the one to tell */
    free(partial);
    free(path);
    free(digests);
    return result;
}
