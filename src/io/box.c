#include "io/box.h"

#include "base/digest.h"

struct box box_make(int axes, const int64_t *start, const int64_t *count)
{
    struct box box = {.axes = axes};
    for (int a = 0; a < axes; a++) {
        box.start[a] = start ? start[a] : 0;
        box.count[a] = count[a];
    }
    return box;
}

int64_t box_elements(const struct box *box)
{
    int64_t elements = 1;
    for (int a = 0; a < box->axes; a++)
        elements *= box->count[a];
    return elements;
}

/* How a box is cut: one index of each axis before `axis`, up to `per` of it, all of the `inner` elements behind it. */
struct cut {
    int axis;
    int64_t per, inner;
};

static struct cut cut_of(const struct box *box, int64_t most)
{
    struct cut cut = {.axis = box->axes - 1, .inner = 1};
    while (cut.axis > 0 && cut.inner * box->count[cut.axis] <= most)
        cut.inner *= box->count[cut.axis--];
    cut.per = most / cut.inner < box->count[cut.axis] ? most / cut.inner : box->count[cut.axis];
    return cut;
}

int64_t box_pieces(const struct box *box, int64_t most)
{
    if (box->axes == 0 || box_elements(box) == 0)
        return box->axes == 0;
    struct cut cut = cut_of(box, most);
    int64_t pieces = (box->count[cut.axis] + cut.per - 1) / cut.per;
    for (int a = 0; a < cut.axis; a++)
        pieces *= box->count[a];
    return pieces;
}

int64_t box_piece(const struct box *box, int64_t most, int64_t n, int64_t stride, struct box *piece)
{
    *piece = *box;
    if (box->axes == 0)
        return 0;
    struct cut cut = cut_of(box, most);
    int64_t steps = (box->count[cut.axis] + cut.per - 1) / cut.per;
    int64_t from = n % steps * cut.per, left = box->count[cut.axis] - from;
    n /= steps;
    piece->start[cut.axis] += from;
    piece->count[cut.axis] = left < cut.per ? left : cut.per;
    for (int a = cut.axis - 1; a >= 0; a--) {
        piece->start[a] += n % box->count[a];
        piece->count[a] = 1;
        n /= box->count[a];
    }
    int64_t offset = 0, apart = 1; /* of the axis's indices */
    for (int a = box->axes - 1; a >= 0; a--) {
        offset += (piece->start[a] - box->start[a]) * (a == 0 ? stride : apart);
        apart *= box->count[a];
    }
    return offset;
}

int64_t box_first(const struct box *box, const int64_t *shape)
{
    int64_t index = 0;
    for (int a = 0; a < box->axes; a++)
        index = index * shape[a] + box->start[a];
    return index;
}

int64_t box_last(const struct box *box, const int64_t *shape)
{
    int64_t index = 0;
    for (int a = 0; a < box->axes; a++)
        index = index * shape[a] + box->start[a] + box->count[a] - 1;
    return index;
}

uint64_t box_digest(const struct box *box, const int64_t *shape, const float *data, int64_t stride)
{
    if (box_elements(box) == 0)
        return 0;
    /* A run is contiguous in the tensor and in memory: whole axes, then a range of the axis before them. */
    int64_t run = 1, row = 1;
    for (int a = 1; a < box->axes; a++)
        row *= box->count[a];
    int axis = box->axes;
    while (axis > 1 || (axis == 1 && stride == row)) {
        axis--;
        run *= box->count[axis];
        if (box->count[axis] != shape[axis])
            break;
    }
    int64_t runs = box_elements(box) / run;
    int64_t apart[BOX_MAX_AXES]; /* indices of an axis, in the tensor */
    int64_t inner = 1;
    for (int a = box->axes - 1; a >= 0; a--) {
        apart[a] = inner;
        inner *= shape[a];
    }
    int64_t first = box_first(box, shape);
    uint64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum) if (runs > 1 && run <= 65536)
    for (int64_t n = 0; n < runs; n++) {
        int64_t index = first, rest = n;
        for (int a = axis - 1; a >= 0; a--) {
            index += rest % box->count[a] * apart[a];
            rest /= box->count[a];
        }
        int64_t behind = n * run; /* elements of the box before this run */
        sum += digest_part(data + (box->axes > 0 ? behind / row * stride + behind % row : 0), index, run);
    }
    return sum;
}
