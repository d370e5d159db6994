/* Boxes of a tensor of any number of axes, row-major: making them of ranges, cutting them into pieces for transfers,
 * and their digest. */
#ifndef IO_BOX_H
#define IO_BOX_H

#include <stdint.h>

enum {
    BOX_MAX_AXES = 32,
    BOX_PIECE = 2 << 20 /* elements moved at once: 8 MiB of float32 */
};

struct box {
    int axes; /* 0: one value */
    int64_t start[BOX_MAX_AXES], count[BOX_MAX_AXES];
};

/* A box from arrays of `axes` numbers; start NULL: from the tensor's first element. */
struct box box_make(int axes, const int64_t *start, const int64_t *count);

int64_t box_elements(const struct box *box);

/* Elements first ... first + count - 1 of a row-major tensor of this shape as boxes that follow one another: at most
 * 2 * axes - 1 of them, for example the end of a row, whole rows and the beginning of a row. Returns their number; axes
 * is at least 1. */
int box_range(int axes, const int64_t *shape, int64_t first, int64_t count, struct box *boxes);

/* A box is cut into pieces of at most `most` (>= 1) elements, in order; each is one box. */
int64_t box_pieces(const struct box *box, int64_t most);

/* Piece n. Returns where its first element lies in memory in which indices of the first axis are `stride` elements
 * apart and the others are contiguous, in elements from the box's first. */
int64_t box_piece(const struct box *box, int64_t most, int64_t n, int64_t stride, struct box *piece);

/* The longest runs of a box that are contiguous both in the tensor and in memory laid out as above. */
struct box_runs {
    int64_t count, length; /* runs, elements in each */
    struct box box;
    int axis;      /* the runs differ in the indices of the axes before this one */
    int64_t first; /* index of the box's first element in the tensor */
    int64_t stride, row;
    int64_t apart[BOX_MAX_AXES]; /* elements of the tensor between neighbours on an axis */
};

struct box_runs box_runs(const struct box *box, const int64_t *shape, int64_t stride);

/* Where run n begins in memory, in elements from the box's first; *index: in the tensor. */
int64_t box_run(const struct box_runs *runs, int64_t n, int64_t *index);

/* The box's share of the digest (base/digest.h) of a tensor of this shape, from memory laid out as above. Threaded. */
uint64_t box_digest(const struct box *box, const int64_t *shape, const float *data, int64_t stride);

#endif
