#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/trace.h"
#include "parallel/agree.h"
#include "parallel/flight.h"
#include "run/trainer_state.h"

#define TRACE_CAPACITY (1 << 20) /* spans: 64 MiB, used as they come */

void trainer_begin_trace(struct trainer *trainer)
{
    executor_begin_trace(trainer->train.executor);
    trace_open(TRACE_CAPACITY);
    clock_compare(trainer->grid.world, &trainer->trace_began);
}

/* Rank 0 writes the ranks' texts one after another. */
static int write_texts(const struct trainer *trainer, const struct text *mine, struct err *err)
{
    const struct grid *grid = &trainer->grid;
    struct communicator *world = grid->world;
    uint64_t bytes = mine->length, *all = allocate((size_t)grid->size, sizeof *all);
    control_gather(world, all, &bytes, sizeof bytes, 0);
    int result = 0;
    if (grid->rank != 0) {
        world->ops->wait(world->ops->send(world, text_string(mine), bytes, 0, 0));
    } else {
        struct text path = {0};
        text_add(&path, "%s/%s", trainer->settings->run.output, trainer->settings->trace.file);
        FILE *file = fopen(text_string(&path), "w");
        bool good = file && fputs(TRACE_HEAD, file) >= 0 && fwrite(text_string(mine), 1, bytes, file) == bytes;
        for (int rank = 1; rank < grid->size; rank++) {
            char *text = allocate((size_t)all[rank], 1);
            world->ops->wait(world->ops->receive(world, text, all[rank], rank, 0));
            good = good && fwrite(text, 1, all[rank], file) == all[rank];
            free(text);
        }
        good = good && fputs(TRACE_TAIL, file) >= 0;
        if (!file || fclose(file) != 0 || !good)
            result = err_set(err, "cannot write %s: %s", text_string(&path), strerror(errno));
        text_fini(&path);
    }
    free(all);
    return agree(world, result, err);
}

int trainer_end_trace(struct trainer *trainer, double origin, struct err *err)
{
    const struct grid *grid = &trainer->grid;
    const struct clock_reading *began = &trainer->trace_began;
    struct clock_reading ended;
    char name[64];
    snprintf(name, sizeof name, "rank %d (p%d d%d t%d)", grid->rank, grid->p, grid->d, grid->t);
    flight_begin(FLIGHT_WRITE_TRACE);
    clock_compare(grid->world, &ended);
    control_broadcast(grid->world, &origin, sizeof origin, 0);
    const struct trace_clock clock = {
        .origin = origin, .at = {began->here, ended.here}, .ahead = {began->ahead, ended.ahead}};
    struct text mine = {0};
    trace_print(&mine, grid->rank, name, &clock);
    trace_close();
    int result = write_texts(trainer, &mine, err);
    flight_end();
    text_fini(&mine);
    return result;
}
