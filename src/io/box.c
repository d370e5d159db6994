#include "io/box.h"

#include <stddef.h>

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

int box_range(int axes, const int64_t *shape, int64_t first, int64_t count, struct box *boxes)
{
    int made = 0;
    while (count > 0) {
        /* The outermost axis of which a whole index begins here and fits, and as many of its indices as do. */
        int axis = axes - 1;
        int64_t inner = 1;
        while (axis > 0 && first % (inner * shape[axis]) == 0 && inner * shape[axis] <= count)
            inner *= shape[axis--];
        struct box *box = &boxes[made++];
        *box = box_make(axes, NULL, shape);
        int64_t index = first / inner;
        for (int a = axis; a >= 0; a--) {
            box->start[a] = index % shape[a];
            box->count[a] = 1;
            index /= shape[a];
        }
        int64_t left = shape[axis] - box->start[axis];
        box->count[axis] = count / inner < left ? count / inner : left;
        first += box->count[axis] * inner;
        count -= box->count[axis] * inner;
    }
    return made;
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

struct box_runs box_runs(const struct box *box, const int64_t *shape, int64_t stride)
{
    struct box_runs runs = {.box = *box, .length = 1, .axis = box->axes, .stride = stride, .row = 1};
    for (int64_t a = 1; a < box->axes; a++)
        runs.row *= box->count[a];
    for (int64_t a = box->axes - 1, inner = 1; a >= 0; a--) {
        runs.apart[a] = inner;
        runs.first += box->start[a] * inner;
        inner *= shape[a];
    }
    int64_t elements = box_elements(box);
    if (elements == 0)
        return runs;
    while (runs.axis > 1 || (runs.axis == 1 && (stride == runs.row || box->count[0] == 1))) {
        runs.axis--;
        runs.length *= box->count[runs.axis];
        if (box->count[runs.axis] != shape[runs.axis]) /* a range of this axis, all of those behind it */
            break;
    }
    runs.count = elements / runs.length;
    return runs;
}

int64_t box_run(const struct box_runs *runs, int64_t n, int64_t *index)
{
    int64_t behind = n * runs->length; /* elements of the box before this run */
    *index = runs->first;
    for (int a = runs->axis - 1; a >= 0; a--) {
        *index += n % runs->box.count[a] * runs->apart[a];
        n /= runs->box.count[a];
    }
    return behind / runs->row * runs->stride + behind % runs->row;
}

uint64_t box_digest(const struct box *box, const int64_t *shape, const float *data, int64_t stride)
{
    struct box_runs runs = box_runs(box, shape, stride);
    uint64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum) if (runs.count > 1 && runs.length <= 65536)
    for (int64_t n = 0; n < runs.count; n++) {
        int64_t index, at = box_run(&runs, n, &index);
        sum += digest_part(data + at, index, runs.length);
    }
    return sum;
}
