#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "io/checkpoint_parts.h"
#include "io/file.h"
#include "io/h5.h"
#include "parallel/agree.h"

/* What the file says of a tensor's digest. */
struct stored_digest {
    uint64_t value;
    bool there;
};

void checkpoint_info_fini(struct checkpoint_info *info)
{
    free(info->input);
    free(info->dataset);
    free(info->code);
    free(info->outlier_window);
    *info = (struct checkpoint_info){0};
}

static int get_optional_text(hid_t file, const char *name, char **text, struct err *err)
{
    return h5_has(file, name) ? h5_get_text(file, name, text, err) : 0;
}

static int examine_run(hid_t file, struct checkpoint_info *info, struct err *err)
{
    if (h5_get_int64(file, "step", &info->step, err) < 0 || h5_get_int64(file, "samples", &info->samples, err) < 0 ||
        h5_get_int64(file, "seed", &info->seed, err) < 0 || get_optional_text(file, "input", &info->input, err) < 0 ||
        get_optional_text(file, "dataset", &info->dataset, err) < 0 ||
        get_optional_text(file, "code", &info->code, err) < 0)
        return -1;
    if (info->step < 0 || info->samples < 0)
        return err_set(err, "attribute '%s' is negative", info->step < 0 ? "step" : "samples");
    return h5_has(file, "outlier_window")
               ? h5_get_doubles(file, "outlier_window", &info->outlier_window, &info->outlier_count, err)
               : 0;
}

/* "[4, 3]" */
static void print_shape(struct text *text, int axes, const int64_t *shape)
{
    for (int a = 0; a < axes; a++)
        text_add(text, "%s%" PRId64, a ? ", " : "[", shape[a]);
    text_add(text, axes ? "]" : "[]");
}

static int check_shape(hid_t dataset, const struct checkpoint_tensor *tensor, struct err *err)
{
    int64_t shape[H5S_MAX_RANK];
    int axes = h5_shape(dataset, shape, err);
    if (axes < 0)
        return -1;
    if (axes == tensor->axes && memcmp(shape, tensor->shape, (size_t)axes * sizeof *shape) == 0)
        return 0;
    struct text found = {0}, expected = {0};
    print_shape(&found, axes, shape);
    print_shape(&expected, tensor->axes, tensor->shape);
    err_set(err, "has shape %s; expected was %s: the file is of another model than &model", text_string(&found),
            text_string(&expected));
    text_fini(&found);
    text_fini(&expected);
    return -1;
}

static int examine_tensor(hid_t file, const struct checkpoint_tensor *tensor, struct stored_digest *digest,
                          struct err *err)
{
    if (!h5_exists(file, tensor->path))
        return err_set(err, "the tensor is missing");
    hid_t dataset = H5Dopen2(file, tensor->path, H5P_DEFAULT);
    if (dataset < 0)
        return h5_error(err, "cannot be opened as a dataset");
    int result = check_shape(dataset, tensor, err);
    if (result == 0 && h5_class(dataset) != H5T_FLOAT)
        result = err_set(err, "does not hold floating-point numbers");
    if (result == 0 && h5_has(dataset, "digest")) {
        digest->there = true;
        result = h5_get_uint64(dataset, "digest", &digest->value, err);
    }
    H5Dclose(dataset);
    return result;
}

/* Looks at everything but the elements; on one rank. */
static int examine(const char *path, struct checkpoint_info *info, const struct checkpoint_tensor *tensors,
                   int tensor_count, struct stored_digest *digests, struct err *err)
{
    hid_t file = h5_open(path, err);
    if (file < 0)
        return -1;
    int result = h5_check_format(file, "ppmodel-checkpoint", 1, err);
    if (result == 0 && info)
        result = examine_run(file, info, err);
    for (int i = 0; i < tensor_count && result == 0; i++) {
        result = examine_tensor(file, &tensors[i], &digests[i], err);
        if (result < 0)
            err_prefix(err, "%s", tensors[i].path);
    }
    H5Fclose(file);
    return result < 0 ? err_prefix(err, "%s", path) : 0;
}

/* From a dataset of any layout and type, through HDF5. */
static int read_converted(hid_t dataset, const struct checkpoint_piece *piece, struct err *err)
{
    int result = 0;
    for (int64_t n = 0, count = box_pieces(&piece->box, BOX_PIECE); n < count && result == 0; n++) {
        struct box box;
        float *data = piece->data + box_piece(&piece->box, BOX_PIECE, n, piece->stride, &box);
        result = h5_read_box(dataset, H5T_NATIVE_FLOAT, &box, data, piece->stride, err);
    }
    return result;
}

static int read_plain(struct file *raw, int64_t offset, const struct checkpoint_tensor *tensor,
                      const struct checkpoint_piece *piece, struct err *err)
{
    struct box_runs runs = box_runs(&piece->box, tensor->shape, piece->stride);
    int result = 0;
    for (int64_t n = 0; n < runs.count && result == 0; n++) {
        int64_t index, at = box_run(&runs, n, &index);
        result = file_read(raw, offset + index * (int64_t)sizeof(float), piece->data + at,
                           runs.length * (int64_t)sizeof(float), err);
    }
    return result;
}

static int read_piece(hid_t file, struct file *raw, const struct checkpoint_tensor *tensor,
                      const struct checkpoint_piece *piece, struct err *err)
{
    hid_t dataset = H5Dopen2(file, tensor->path, H5P_DEFAULT);
    if (dataset < 0)
        return h5_error(err, "%s: cannot be opened", tensor->path);
    int64_t offset = h5_offset(dataset, H5T_NATIVE_FLOAT);
    int result = offset < 0 ? read_converted(dataset, piece, err) : read_plain(raw, offset, tensor, piece, err);
    H5Dclose(dataset);
    return result < 0 ? err_prefix(err, "%s", tensor->path) : 0;
}

/* Also gives this rank's share in each tensor's digest: it is cheapest while the elements are at hand. */
static int read_pieces(hid_t file, struct file *raw, struct checkpoint_pieces *pieces, uint64_t *digests,
                       struct err *err)
{
    struct checkpoint_piece piece;
    int result = 0;
    while (result == 0 && checkpoint_room(pieces, &piece)) {
        const struct checkpoint_tensor *tensor = &pieces->tensors[piece.part->tensor];
        result = read_piece(file, raw, tensor, &piece, err);
        if (result == 0)
            checkpoint_store(pieces);
        if (result == 0 && piece.part->first)
            digests[piece.part->tensor] += box_digest(&piece.box, tensor->shape, piece.data, piece.stride);
    }
    checkpoint_pieces_end(pieces);
    return result;
}

/* digests: each tensor's, of what all ranks have read. */
static int read_parts(struct communicator *comm, struct staging *staging, const char *path,
                      const struct checkpoint_tensor *tensors, int tensor_count, const struct checkpoint_part *parts,
                      int part_count, uint64_t *digests, struct err *err)
{
    hid_t file = h5_open_together(comm, path, err);
    if (file < 0)
        return -1;
    struct file *raw = file_open(path, false, err);
    struct checkpoint_pieces pieces;
    checkpoint_store_begin(&pieces, staging, tensors, parts, part_count);
    int result = raw ? read_pieces(file, raw, &pieces, digests, err) : -1;
    if (raw && result < 0)
        err_prefix(err, "%s", path);
    file_close(raw);
    H5Fclose(file);
    if (agree(comm, result, err) < 0)
        return -1;
    control_sum_uint64(comm, digests, tensor_count);
    return 0;
}

/* The same verdict on all ranks: each has all digests. */
static int check_digests(const char *path, const struct checkpoint_tensor *tensors, int tensor_count,
                         const struct stored_digest *stored, const uint64_t *found, struct err *err)
{
    for (int i = 0; i < tensor_count; i++)
        if (stored[i].there && stored[i].value != found[i])
            return err_set(err,
                           "%s: %s: its elements have the digest %016" PRIx64 ", not the stored %016" PRIx64
                           "; the file is damaged",
                           path, tensors[i].path, found[i], stored[i].value);
    return 0;
}

static void broadcast_text(struct communicator *comm, char **text)
{
    int64_t bytes = *text ? (int64_t)strlen(*text) + 1 : 0;
    control_broadcast(comm, &bytes, sizeof bytes, 0);
    if (bytes == 0)
        return;
    if (comm->rank > 0)
        *text = allocate((size_t)bytes, 1);
    control_broadcast(comm, *text, (size_t)bytes, 0);
}

static void broadcast_info(struct communicator *comm, struct checkpoint_info *info)
{
    int64_t numbers[4] = {info->step, info->samples, info->seed, info->outlier_count};
    control_broadcast(comm, numbers, sizeof numbers, 0);
    info->step = numbers[0];
    info->samples = numbers[1];
    info->seed = numbers[2];
    info->outlier_count = numbers[3];
    broadcast_text(comm, &info->input);
    broadcast_text(comm, &info->dataset);
    broadcast_text(comm, &info->code);
    if (info->outlier_count == 0)
        return;
    if (comm->rank > 0)
        info->outlier_window = allocate((size_t)info->outlier_count, sizeof *info->outlier_window);
    control_broadcast(comm, info->outlier_window, (size_t)info->outlier_count * sizeof *info->outlier_window, 0);
}

int checkpoint_read(struct communicator *comm, struct staging *staging, const char *path, struct checkpoint_info *info,
                    const struct checkpoint_tensor *tensors, int tensor_count, const struct checkpoint_part *parts,
                    int part_count, struct err *err)
{
    if (info)
        *info = (struct checkpoint_info){0};
    if (checkpoint_check_parts(comm, tensors, tensor_count, parts, part_count, err) < 0)
        return -1;
    struct stored_digest *stored = allocate((size_t)tensor_count, sizeof *stored);
    uint64_t *found = allocate((size_t)tensor_count, sizeof *found);
    int result = comm->rank == 0 ? examine(path, info, tensors, tensor_count, stored, err) : 0;
    result = agree(comm, result, err);
    if (result == 0) {
        control_broadcast(comm, stored, (size_t)tensor_count * sizeof *stored, 0);
        result = read_parts(comm, staging, path, tensors, tensor_count, parts, part_count, found, err);
    }
    if (result == 0)
        result = check_digests(path, tensors, tensor_count, stored, found, err);
    if (info && result == 0)
        broadcast_info(comm, info);
    else if (info)
        checkpoint_info_fini(info);
    free(found);
    free(stored);
    return result;
}
