#include "pipeline/generate.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "pipeline/generators.h"

/* More (stage, microbatch) pairs than this are a mistake: the table alone would take 6 GiB. */
#define MOST_CELLS (INT64_C(1) << 26)

/* When the forward would start if every stage took one unit of time. In a loop, groups of P microbatches go round
 * together, so that a rank is never asked for two at once; in a V, one microbatch enters every V units (for V = 2 the
 * two chunks of a rank then start at times of different parity). */
static int64_t forward_start(const struct schedule *schedule, int stage, int microbatch)
{
    if (schedule->placement == PLACEMENT_V)
        return stage + (int64_t)schedule->chunks * microbatch;
    int group = microbatch / schedule->ranks;
    return stage + (int64_t)group * schedule->stages + microbatch % schedule->ranks;
}

/* Each rank takes its forwards in the order of forward_start(). A microbatch starts later on each further stage, so the
 * order of starts is one in which everything could run one after the other: no cycle can arise. */
static void forward_only(struct schedule *schedule, int rank)
{
    int *next = allocate((size_t)schedule->chunks, sizeof *next); /* microbatch of each chunk */
    for (int64_t left = (int64_t)schedule->chunks * schedule->microbatches; left > 0; left--) {
        int first = -1;
        int64_t earliest = 0;
        for (int chunk = 0; chunk < schedule->chunks; chunk++) {
            int64_t start = forward_start(schedule, schedule_stage_of(schedule, rank, chunk), next[chunk]);
            if (next[chunk] < schedule->microbatches && (first < 0 || start < earliest)) {
                first = chunk;
                earliest = start;
            }
        }
        generate_append(schedule, rank, FORWARD, schedule_stage_of(schedule, rank, first), next[first]++);
    }
    free(next);
}

const struct generator generate_table[] = {
    {"gpipe", 1, 1, PLACEMENT_LOOP, generate_breadth_first},
    {"1f1b", 1, 1, PLACEMENT_LOOP, generate_1f1b},
    {"eager-1f1b", 1, 1, PLACEMENT_LOOP, generate_eager_1f1b},
    {"interleaved", 2, INT_MAX, PLACEMENT_LOOP, generate_interleaved},
    {"looped-bfs", 2, INT_MAX, PLACEMENT_LOOP, generate_breadth_first},
    {"zb-h1", 1, 1, PLACEMENT_LOOP, generate_zb_h1},
    {"zb-v", 2, 2, PLACEMENT_V, generate_zb_v},
    {"v-half", 2, 2, PLACEMENT_V, generate_v_half},
    {"v-min", 2, 2, PLACEMENT_V, generate_v_min},
    {NULL, 0, 0, PLACEMENT_LOOP, NULL},
};

static bool allows(const struct generator *generator, int chunks)
{
    return chunks >= generator->fewest_chunks && chunks <= generator->most_chunks;
}

/* "'gpipe', '1f1b'": the schedules that allow so many chunks, all of them for 0. */
static struct err names_for(int chunks)
{
    struct err names = {""};
    for (const struct generator *row = generate_table; row->name; row++) {
        size_t used = strlen(names.text);
        if (chunks == 0 || allows(row, chunks))
            snprintf(names.text + used, sizeof names.text - used, "%s'%s'", used ? ", " : "", row->name);
    }
    return names;
}

static const struct generator *find(const char *name, struct err *err)
{
    for (const struct generator *row = generate_table; row->name; row++)
        if (strcmp(row->name, name) == 0)
            return row;
    err_set(err, "&pipeline schedule = '%s' is not one of %s", name, names_for(0).text);
    return NULL;
}

int generate_check(const char *name, int chunks, struct err *err)
{
    const struct generator *generator = find(name, err);
    if (!generator)
        return -1;
    if (allows(generator, chunks))
        return 0;
    return err_set(err, "&pipeline schedule = '%s' needs chunks = %d%s, not %d (schedules with chunks = %d: %s)", name,
                   generator->fewest_chunks, generator->most_chunks > generator->fewest_chunks ? " or more" : "",
                   chunks, chunks, names_for(chunks).text);
}

static int check_size(int ranks, int chunks, int microbatches, struct err *err)
{
    if (ranks < 1 || chunks < 1 || microbatches < 1)
        return err_set(err, "a schedule needs at least one rank, chunk and microbatch, not %d, %d and %d", ranks,
                       chunks, microbatches);
    if ((int64_t)ranks * chunks > MOST_CELLS / microbatches)
        return err_set(err, "%d pipeline ranks with %d chunks and %d microbatches make a schedule too large to hold",
                       ranks, chunks, microbatches);
    return 0;
}

struct schedule *generate_schedule(const char *name, int ranks, int chunks, int microbatches, struct err *err)
{
    const struct generator *generator = find(name, err);
    if (!generator || check_size(ranks, chunks, microbatches, err) < 0 || generate_check(name, chunks, err) < 0)
        return NULL;
    struct schedule *schedule = schedule_create(ranks, chunks, microbatches, generator->placement);
    for (int rank = 0; rank < ranks; rank++)
        generator->generate(schedule, rank);
    return schedule;
}

struct schedule *generate_forward_only(int ranks, int chunks, enum placement placement, int microbatches,
                                       struct err *err)
{
    if (check_size(ranks, chunks, microbatches, err) < 0)
        return NULL;
    struct schedule *schedule = schedule_create(ranks, chunks, microbatches, placement);
    schedule->forward_only = true;
    for (int rank = 0; rank < ranks; rank++)
        forward_only(schedule, rank);
    return schedule;
}
