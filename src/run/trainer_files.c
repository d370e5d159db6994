#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/trace.h"
#include "parallel/agree.h"
#include "parallel/flight.h"
#include "run/snapshot.h"
#include "run/trainer_state.h"
#include "version.h"

static int trees_of(const struct trainer *trainer, bool optimizer, bool gradients, struct snapshot_tree *trees)
{
    int count = 0;
    trees[count++] = (struct snapshot_tree){"/model", trainer->weights,
                                            trainer->shards.weights_sharded ? SNAPSHOT_MOMENTS : SNAPSHOT_WHOLE};
    if (optimizer) {
        trees[count++] = (struct snapshot_tree){"/optimizer/first_moment", trainer->first_moment, SNAPSHOT_MOMENTS};
        trees[count++] = (struct snapshot_tree){"/optimizer/second_moment", trainer->second_moment, SNAPSHOT_MOMENTS};
    }
    if (gradients)
        trees[count++] = (struct snapshot_tree){"/gradients", trainer->gradient_arena, SNAPSHOT_GRADIENTS};
    return count;
}

int trainer_load(struct trainer *trainer, const char *path, bool whole, struct err *err)
{
    struct snapshot_tree trees[4];
    struct snapshot snapshot;
    struct checkpoint_info info = {0};
    int count = trees_of(trainer, whole, false, trees);
    snapshot_create(&snapshot, &trainer->model, &trainer->parameters, &trainer->shards, &trainer->grid, trees, count);
    double begin = clock_seconds();
    flight_begin(FLIGHT_CHECKPOINT_READ);
    int result = checkpoint_read(trainer->grid.world, path, whole ? &info : NULL, snapshot.tensors,
                                 snapshot.tensor_count, snapshot.parts, snapshot.part_count, err);
    flight_end();
    if (result == 0)
        log_line("loaded       %s, %s in %s", path,
                 text_bytes((double)parameters_total(&trainer->model) * sizeof(float) * count).text,
                 text_duration(clock_seconds() - begin).text);
    if (result == 0)
        trainer_convert(trainer);
    if (result == 0 && whole) {
        trainer->step = info.step;
        trainer->samples = info.samples;
        if (outliers_unpack(&trainer->outliers, info.outlier_window, info.outlier_count, err) < 0)
            result = err_prefix(err, "%s", path);
        if (result == 0 && info.seed != trainer->settings->run.seed)
            result = err_set(err, "%s was written with &run seed = %lld, but seed = %lld is given", path,
                             (long long)info.seed, (long long)trainer->settings->run.seed);
    }
    checkpoint_info_fini(&info);
    snapshot_destroy(&snapshot);
    return result;
}

int trainer_save(struct trainer *trainer, struct err *err)
{
    const struct settings *s = trainer->settings;
    struct snapshot_tree trees[4];
    struct snapshot snapshot;
    bucket_queue_drain(trainer->queue); /* the weights are complete */
    int count = trees_of(trainer, true, s->checkpoint.gradients, trees);
    snapshot_create(&snapshot, &trainer->model, &trainer->parameters, &trainer->shards, &trainer->grid, trees, count);
    struct text input = {0};
    settings_print(s, &input);
    struct checkpoint_info info = {.step = trainer->step,
                                   .samples = trainer->samples,
                                   .outlier_window = outliers_pack(&trainer->outliers),
                                   .outlier_count = outliers_numbers(&trainer->outliers),
                                   .seed = s->run.seed,
                                   .input = copy_text(text_string(&input)),
                                   .dataset = copy_text(s->data.train),
                                   .code = copy_text(PPMODEL_VERSION)};
    error_set_activity("CHECKPOINT");
    flight_begin(FLIGHT_CHECKPOINT_WRITE);
    double begin = clock_seconds();
    int result = checkpoint_write(trainer->grid.world, s->checkpoint.directory, &info, snapshot.tensors,
                                  snapshot.tensor_count, snapshot.parts, snapshot.part_count, err);
    if (result == 0)
        log_line("checkpoint   step %lld, %s in %s", (long long)trainer->step,
                 text_bytes((double)parameters_total(&trainer->model) * sizeof(float) * count).text,
                 text_duration(clock_seconds() - begin).text);
    if (result == 0)
        result = checkpoint_prune(trainer->grid.world, s->checkpoint.directory, s->checkpoint.keep,
                                  s->checkpoint.keep_every, err);
    flight_end();
    error_set_activity(NULL);
    checkpoint_info_fini(&info);
    text_fini(&input);
    snapshot_destroy(&snapshot);
    return result;
}

uint64_t trainer_digest(struct trainer *trainer)
{
    struct snapshot_tree tree;
    struct snapshot snapshot;
    bucket_queue_drain(trainer->queue); /* the weights are complete */
    int count = trees_of(trainer, false, false, &tree);
    snapshot_create(&snapshot, &trainer->model, &trainer->parameters, &trainer->shards, &trainer->grid, &tree, count);
    flight_begin(FLIGHT_DIGEST);
    uint64_t digest = checkpoint_digest_memory(trainer->grid.world, snapshot.tensors, snapshot.tensor_count,
                                               snapshot.parts, snapshot.part_count);
    flight_end();
    snapshot_destroy(&snapshot);
    return digest;
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

int trainer_write_trace(struct trainer *trainer, double origin, struct err *err)
{
    const struct grid *grid = &trainer->grid;
    char name[64];
    snprintf(name, sizeof name, "rank %d (p%d d%d t%d)", grid->rank, grid->p, grid->d, grid->t);
    struct text mine = {0};
    flight_begin(FLIGHT_WRITE_TRACE);
    trace_print(&mine, grid->rank, name, origin);
    int result = write_texts(trainer, &mine, err);
    flight_end();
    text_fini(&mine);
    return result;
}
