/* What writing and reading a checkpoint have in common: this rank's parts of the tensors. */
#ifndef IO_CHECKPOINT_PARTS_H
#define IO_CHECKPOINT_PARTS_H

#include "io/box.h"
#include "io/checkpoint.h"

/* Whether every part lies within its tensor and those marked first cover each tensor once, by the number of elements.
 * Collective. */
int checkpoint_check_parts(struct communicator *comm, const struct checkpoint_tensor *tensors, int tensor_count,
                           const struct checkpoint_part *parts, int part_count, struct err *err);

/* A box of one of this rank's parts, small enough to pass at once, as the host finds it. */
struct checkpoint_piece {
    const struct checkpoint_part *part;
    struct box box;
    float *data; /* in memory like a part, with a stride of its own */
    int64_t stride;
};

/* Goes through this rank's parts piece by piece. */
struct checkpoint_pieces {
    struct staging *staging;
    const struct checkpoint_tensor *tensors;
    const struct checkpoint_part *parts;
    int part_count;
    bool only_first; /* leaves out the parts that are not marked first */

    int begun; /* parts; the last of them is `box`, cut into `count` pieces, of which `next` were taken */
    struct box box;
    int64_t next, count;
    bool ahead;                     /* `coming` is being fetched */
    struct checkpoint_piece coming; /* the last piece taken */
    struct staging_rows rows;       /* where it lies in the device's memory */
};

/* From the device to the host: each piece that checkpoint_fetch gives may be read until the next call, while the one
 * behind it is on its way; false: there are no more. */
void checkpoint_fetch_begin(struct checkpoint_pieces *pieces, struct staging *staging,
                            const struct checkpoint_tensor *tensors, const struct checkpoint_part *parts,
                            int part_count, bool only_first);
bool checkpoint_fetch(struct checkpoint_pieces *pieces, struct checkpoint_piece *piece);

/* From the host to the device, all parts: room for each piece, false: there are no more; what was written there is
 * brought to the device by checkpoint_store and may still be read until the next call for room. */
void checkpoint_store_begin(struct checkpoint_pieces *pieces, struct staging *staging,
                            const struct checkpoint_tensor *tensors, const struct checkpoint_part *parts,
                            int part_count);
bool checkpoint_room(struct checkpoint_pieces *pieces, struct checkpoint_piece *piece);
void checkpoint_store(struct checkpoint_pieces *pieces);

/* Ends either, before all pieces were taken too: waits until all that was stored is there and nothing is on its way. */
void checkpoint_pieces_end(struct checkpoint_pieces *pieces);

/* Each tensor's digest from the parts marked first of all ranks. Collective. */
void checkpoint_digest_parts(struct communicator *comm, struct staging *staging,
                             const struct checkpoint_tensor *tensors, int tensor_count,
                             const struct checkpoint_part *parts, int part_count, uint64_t *digests);

#endif
