#include "io/checkpoint_parts.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "parallel/agree.h"

static struct box box_of(const struct checkpoint_tensor *tensor, const struct checkpoint_part *part)
{
    return box_make(tensor->axes, part->start, part->count);
}

static int check_part(const struct checkpoint_tensor *tensors, int tensor_count, const struct checkpoint_part *part,
                      struct err *err)
{
    if (part->tensor < 0 || part->tensor >= tensor_count)
        return err_set(err, "a part of tensor %d, where there are %d", part->tensor, tensor_count);
    const struct checkpoint_tensor *tensor = &tensors[part->tensor];
    int64_t row = 1;
    for (int a = 0; a < tensor->axes; a++) {
        if (part->start[a] < 0 || part->count[a] < 0 || part->start[a] > tensor->shape[a] - part->count[a])
            return err_set(err, "%s: a part leaves axis %d: %" PRId64 " + %" PRId64 " of %" PRId64, tensor->path, a,
                           part->start[a], part->count[a], tensor->shape[a]);
        row *= a > 0 ? part->count[a] : 1;
    }
    if (tensor->axes > 0 && part->count[0] > 1 && part->stride < row)
        return err_set(err, "%s: a part's stride of %" PRId64 " is less than its row of %" PRId64, tensor->path,
                       part->stride, row);
    return 0;
}

static int check_cover(const struct checkpoint_tensor *tensors, int tensor_count, const uint64_t *covered,
                       struct err *err)
{
    for (int i = 0; i < tensor_count; i++) {
        uint64_t elements = 1;
        for (int a = 0; a < tensors[i].axes; a++)
            elements *= (uint64_t)tensors[i].shape[a];
        if (covered[i] != elements)
            return err_set(err, "%s: the parts of all ranks cover %" PRIu64 " of %" PRIu64 " elements", tensors[i].path,
                           covered[i], elements);
    }
    return 0;
}

int checkpoint_check_parts(struct communicator *comm, const struct checkpoint_tensor *tensors, int tensor_count,
                           const struct checkpoint_part *parts, int part_count, struct err *err)
{
    uint64_t *covered = allocate((size_t)tensor_count, sizeof *covered);
    int result = 0;
    for (int i = 0; i < part_count && result == 0; i++) {
        result = check_part(tensors, tensor_count, &parts[i], err);
        if (result == 0 && parts[i].first) {
            struct box box = box_of(&tensors[parts[i].tensor], &parts[i]);
            covered[parts[i].tensor] += (uint64_t)box_elements(&box);
        }
    }
    result = agree(comm, result, err);
    if (result == 0) {
        control_sum_uint64(comm, covered, tensor_count);
        result = check_cover(tensors, tensor_count, covered, err);
    }
    free(covered);
    return result;
}

/* Sets `coming` and `rows` to the next piece, but for the place where the host finds it; false: there is none. */
static bool take_next(struct checkpoint_pieces *pieces)
{
    const int64_t most = staging_most(pieces->staging);
    while (pieces->next == pieces->count) {
        if (pieces->begun == pieces->part_count)
            return false;
        const struct checkpoint_part *part = &pieces->parts[pieces->begun++];
        pieces->box = box_of(&pieces->tensors[part->tensor], part);
        pieces->count = part->first || !pieces->only_first ? box_pieces(&pieces->box, most) : 0;
        pieces->next = 0;
    }
    const struct checkpoint_part *part = &pieces->parts[pieces->begun - 1];
    struct box *box = &pieces->coming.box;
    const int64_t offset = box_piece(&pieces->box, most, pieces->next++, part->stride, box);
    const int64_t rows = box->axes > 0 ? box->count[0] : 1;
    pieces->coming.part = part;
    pieces->rows = (struct staging_rows){part->data + offset, rows, box_elements(box) / rows, part->stride};
    return true;
}

static void show(struct checkpoint_pieces *pieces, struct staging_rows at)
{
    pieces->coming.data = at.data;
    pieces->coming.stride = at.stride;
}

static void fetch_ahead(struct checkpoint_pieces *pieces)
{
    pieces->ahead = take_next(pieces);
    if (pieces->ahead)
        show(pieces, staging_fetch(pieces->staging, pieces->rows));
}

void checkpoint_fetch_begin(struct checkpoint_pieces *pieces, struct staging *staging,
                            const struct checkpoint_tensor *tensors, const struct checkpoint_part *parts,
                            int part_count, bool only_first)
{
    *pieces = (struct checkpoint_pieces){
        .staging = staging, .tensors = tensors, .parts = parts, .part_count = part_count, .only_first = only_first};
    fetch_ahead(pieces);
}

bool checkpoint_fetch(struct checkpoint_pieces *pieces, struct checkpoint_piece *piece)
{
    if (!pieces->ahead)
        return false;
    staging_wait(pieces->staging);
    *piece = pieces->coming;
    fetch_ahead(pieces);
    return true;
}

void checkpoint_store_begin(struct checkpoint_pieces *pieces, struct staging *staging,
                            const struct checkpoint_tensor *tensors, const struct checkpoint_part *parts,
                            int part_count)
{
    *pieces =
        (struct checkpoint_pieces){.staging = staging, .tensors = tensors, .parts = parts, .part_count = part_count};
}

bool checkpoint_room(struct checkpoint_pieces *pieces, struct checkpoint_piece *piece)
{
    if (!take_next(pieces))
        return false;
    show(pieces, staging_room(pieces->staging, pieces->rows));
    *piece = pieces->coming;
    return true;
}

void checkpoint_store(struct checkpoint_pieces *pieces)
{
    staging_store(pieces->staging, pieces->rows);
}

void checkpoint_pieces_end(struct checkpoint_pieces *pieces)
{
    staging_wait(pieces->staging);
}

void checkpoint_digest_parts(struct communicator *comm, struct staging *staging,
                             const struct checkpoint_tensor *tensors, int tensor_count,
                             const struct checkpoint_part *parts, int part_count, uint64_t *digests)
{
    struct checkpoint_pieces pieces;
    struct checkpoint_piece piece;
    memset(digests, 0, (size_t)tensor_count * sizeof *digests);
    checkpoint_fetch_begin(&pieces, staging, tensors, parts, part_count, true);
    while (checkpoint_fetch(&pieces, &piece))
        digests[piece.part->tensor] +=
            box_digest(&piece.box, tensors[piece.part->tensor].shape, piece.data, piece.stride);
    checkpoint_pieces_end(&pieces);
    control_sum_uint64(comm, digests, tensor_count);
}
