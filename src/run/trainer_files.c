#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/trace.h"
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
    int result = checkpoint_read(trainer->grid.world, trainer->staging, path, whole ? &info : NULL, snapshot.tensors,
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
    int result = checkpoint_write(trainer->grid.world, trainer->staging, s->checkpoint.directory, &info,
                                  snapshot.tensors, snapshot.tensor_count, snapshot.parts, snapshot.part_count, err);
    if (result == 0)
        log_line("checkpoint   step %lld, %s in %s", (long long)trainer->step,
                 text_bytes((double)parameters_total(&trainer->model) * sizeof(float) * count).text,
                 text_duration(clock_seconds() - begin).text);
    if (result == 0)
        result = checkpoint_prune(trainer->grid.world, s->checkpoint.directory, s->checkpoint.keep,
                                  s->checkpoint.keep_every, err);
    flight_end();
    error_set_activity(NULL);
    trace_record_own("CHECKPOINT", TRACE_STEP, begin, trainer->step);
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
    uint64_t digest = checkpoint_digest_memory(trainer->grid.world, trainer->staging, snapshot.tensors,
                                               snapshot.tensor_count, snapshot.parts, snapshot.part_count);
    flight_end();
    snapshot_destroy(&snapshot);
    return digest;
}
