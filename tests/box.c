/* Boxes: pieces, runs and digests against walking through every element. */
#include "io/box.h"

#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "tap.h"

enum {
    MOST = 4096
}; /* elements of a tensor */

/* Calls of visit(): every element of a box in order, by its index in the tensor and its place in memory. */
struct walk {
    int64_t index[MOST], place[MOST];
    int64_t count;
};

static void walk(struct walk *walk, const struct box *box, const int64_t *shape, int64_t stride)
{
    walk->count = 0;
    int64_t at[BOX_MAX_AXES] = {0}, elements = 1;
    for (int a = 0; a < box->axes; a++)
        elements *= box->count[a];
    for (; walk->count < elements; walk->count++) {
        int64_t index = 0, place = 0;
        for (int a = 0; a < box->axes; a++)
            index = index * shape[a] + box->start[a] + at[a];
        for (int a = 1; a < box->axes; a++)
            place = place * box->count[a] + at[a];
        walk->index[walk->count] = index;
        walk->place[walk->count] = place + (box->axes > 0 ? at[0] * stride : 0);
        for (int a = box->axes - 1; a >= 0 && ++at[a] == box->count[a]; a--)
            at[a] = 0;
    }
}

static uint64_t draws;

static int64_t draw(int64_t below)
{
    return (int64_t)(random_bits(3, draws++) % (uint64_t)below);
}

/* A tensor of up to 5 axes, a box in it, sometimes all of an axis, sometimes none. */
static struct box draw_box(int64_t *shape, int64_t *stride)
{
    struct box box = {.axes = (int)draw(6)};
    int64_t row = 1;
    for (int a = 0; a < box.axes; a++) {
        shape[a] = 1 + draw(5);
        bool whole = draw(2);
        box.start[a] = whole ? 0 : draw(shape[a]);
        box.count[a] = whole ? shape[a] : draw(12) ? 1 + draw(shape[a] - box.start[a]) : 0;
        row *= a > 0 ? box.count[a] : 1;
    }
    *stride = row + (draw(2) ? draw(4) : 0);
    return box;
}

static bool pieces_are_right(const struct box *box, const int64_t *shape, int64_t stride, int64_t most)
{
    static struct walk whole, part;
    walk(&whole, box, shape, stride);
    int64_t seen = 0;
    for (int64_t n = 0, pieces = box_pieces(box, most); n < pieces; n++) {
        struct box piece;
        int64_t at = box_piece(box, most, n, stride, &piece), row = 1;
        for (int a = 1; a < piece.axes; a++)
            row *= piece.count[a];
        walk(&part, &piece, shape, piece.axes > 0 && piece.count[0] > 1 ? stride : row);
        if (part.count > most || part.count == 0 || seen + part.count > whole.count)
            return false;
        for (int64_t i = 0; i < part.count; i++, seen++)
            if (part.index[i] != whole.index[seen] || part.place[i] + at != whole.place[seen])
                return false;
    }
    return seen == whole.count;
}

static bool runs_are_right(const struct box *box, const int64_t *shape, int64_t stride, bool *longest)
{
    static struct walk whole;
    walk(&whole, box, shape, stride);
    struct box_runs runs = box_runs(box, shape, stride);
    int64_t seen = 0;
    for (int64_t n = 0; n < runs.count; n++) {
        int64_t index, at = box_run(&runs, n, &index);
        for (int64_t i = 0; i < runs.length; i++, seen++)
            if (seen >= whole.count || whole.index[seen] != index + i || whole.place[seen] != at + i)
                return false;
        /* a run that could go on into the next one is too short */
        if (seen < whole.count && whole.index[seen] == index + runs.length && whole.place[seen] == at + runs.length)
            *longest = false;
    }
    return seen == whole.count;
}

static bool digest_is_right(const struct box *box, const int64_t *shape, int64_t stride)
{
    static struct walk whole;
    static float memory[2 * MOST];
    walk(&whole, box, shape, stride);
    for (int i = 0; i < 2 * MOST; i++)
        memory[i] = (float)i + 0.5f;
    uint64_t sum = 0;
    for (int64_t i = 0; i < whole.count; i++) {
        uint32_t bits;
        memcpy(&bits, &memory[whole.place[i]], sizeof bits);
        sum += random_mix(((uint64_t)whole.index[i] + 1) * 0x9E3779B97F4A7C15u ^ bits);
    }
    return sum == box_digest(box, shape, memory, stride);
}

/* A range of a tensor: its boxes hold its elements in order, and are no more than they need be. */
static bool range_is_right(void)
{
    static struct walk part;
    struct box boxes[9];
    int64_t shape[BOX_MAX_AXES], elements = 1;
    int axes = 1 + (int)draw(5);
    for (int a = 0; a < axes; a++) {
        shape[a] = 1 + draw(5);
        elements *= shape[a];
    }
    int64_t first = draw(elements), count = draw(8) ? 1 + draw(elements - first) : elements - first;
    int made = box_range(axes, shape, first, count, boxes);
    int64_t seen = 0;
    for (int i = 0; i < made && made < 2 * axes; i++) {
        walk(&part, &boxes[i], shape, axes > 1 ? box_elements(&boxes[i]) / boxes[i].count[0] : 1);
        for (int64_t k = 0; k < part.count; k++, seen++)
            if (part.index[k] != first + seen || part.place[k] != k)
                return false;
    }
    return seen == count && (count < elements || made == 1);
}

int main(void)
{
    bool pieces = true, runs = true, longest = true, digests = true, ranges = true;
    for (int trial = 0; trial < 20000; trial++) {
        int64_t shape[BOX_MAX_AXES], stride;
        struct box box = draw_box(shape, &stride);
        pieces = pieces && pieces_are_right(&box, shape, stride, 1 + draw(40));
        runs = runs && runs_are_right(&box, shape, stride, &longest);
        digests = digests && digest_is_right(&box, shape, stride);
        ranges = ranges && range_is_right();
    }
    const int64_t odd[] = {3, 5, 7};
    struct box boxes[5];
    ok(box_range(3, odd, 0, 105, boxes) == 1 && box_range(3, odd, 36, 5, boxes) == 1 &&
           box_range(3, odd, 36, 6, boxes) == 1 && box_range(3, odd, 36, 7, boxes) == 2 &&
           box_range(3, odd, 1, 103, boxes) == 5 && box_range(3, odd, 35, 0, boxes) == 0,
       "a whole tensor, a range inside a row and one of a row's rest are one box each");
    ok(ranges, "the boxes of a range hold its elements in order");
    ok(pieces, "pieces hold every element once and in order, none too many");
    ok(runs, "so do runs");
    ok(longest, "no run could be longer");
    ok(digests, "the digest of a box is the sum over its elements");
    return tap_done();
}
