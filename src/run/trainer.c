#include <stdlib.h>

#include "base/memory.h"
#include "kernels/host_memory.h"
#include "parallel/agree.h"
#include "parallel/flight.h"
#include "pipeline/generate.h"
#include "plan/balance.h"
#include "plan/program.h"
#include "run/devices.h"
#include "run/input_file.h"
#include "run/modes.h"
#include "run/trainer_state.h"

static int make_program(struct program *program, struct schedule *computations, struct err *err)
{
    struct proven proven;
    int result = program_prove(&proven, computations, err);
    program->schedule = proven.schedule;
    program->validation = proven.validation;
    return result;
}

static void program_destroy(struct program *program)
{
    executor_destroy(program->executor);
    validate_destroy(program->validation);
    schedule_destroy(program->schedule);
}

static int make_schedules(struct trainer *trainer, const struct text *csv, bool training, struct err *err)
{
    const struct settings *s = trainer->settings;
    struct schedule *train = program_computations(s, csv, err);
    if (!train)
        return -1;
    struct schedule *forward =
        generate_forward_only(s->grid.pipeline, s->pipeline.chunks, train->placement, s->pipeline.microbatches, err);
    if (!training)
        schedule_destroy(train);
    else if (make_program(&trainer->train, train, err) < 0) {
        schedule_destroy(forward);
        return s->pipeline.schedule == SCHEDULE_CSV ? err_prefix(err, "%s", s->pipeline.schedule_file) : -1;
    }
    return make_program(&trainer->evaluate, forward, err);
}

/* What decides what the ranks hold, for this tensor rank. */
static struct layout layout_of(const struct trainer *trainer)
{
    const struct settings *s = trainer->settings;
    return (struct layout){.model = &trainer->model,
                           .circumstances = trainer->context.circumstances,
                           .data = s->grid.data,
                           .sharded = s->optimizer.sharded,
                           .train = {trainer->train.schedule, trainer->train.validation},
                           .evaluate = {trainer->evaluate.schedule, trainer->evaluate.validation}};
}

/* Cuts the model into stages and writes the cut back into the settings, so that resolved.nml gives the same run. */
static int cut_model(struct trainer *trainer, struct settings *settings, struct err *err)
{
    const struct layout layout = layout_of(trainer);
    const struct schedule *schedule = trainer->evaluate.schedule;
    const struct model *model = &trainer->model;
    trainer->first_layer = allocate((size_t)schedule->stages + 1, sizeof *trainer->first_layer);
    trainer->stage_of_layer = allocate((size_t)model->layer_count, sizeof *trainer->stage_of_layer);
    if (balance_stages(settings, &layout, trainer->first_layer, err) < 0)
        return -1;
    struct settings_list *list = &settings->pipeline.stage_layers;
    free(list->items);
    list->items = allocate((size_t)schedule->stages, sizeof *list->items);
    list->count = schedule->stages;
    for (int stage = 0; stage < schedule->stages; stage++) {
        int first = trainer->first_layer[stage], last = trainer->first_layer[stage + 1];
        for (int layer = first; layer < last; layer++)
            trainer->stage_of_layer[layer] = stage;
        list->items[stage] = model_blocks(model, first, last);
    }
    settings->pipeline.balance = BALANCE_EXPLICIT;
    return 0;
}

/* This rank's stages under one program. */
static struct stage **make_stages(struct trainer *trainer, const struct program *program, const struct slice *slices)
{
    int chunks = program->schedule->chunks, local_layer = 0;
    struct stage **stages = allocate((size_t)chunks, sizeof(struct stage *));
    for (int chunk = 0; chunk < chunks; chunk++) {
        struct circumstances circumstances = trainer->context.circumstances;
        circumstances.live = program->validation->peak_sets[slices[chunk].stage];
        stages[chunk] =
            stage_create(&trainer->model, slices[chunk], &circumstances,
                         footprint_splits(program->schedule, slices[chunk].stage), &trainer->parameters, local_layer);
        local_layer += slices[chunk].last - slices[chunk].first;
    }
    return stages;
}

static int make_executor(struct trainer *trainer, struct program *program, struct stage **stages, struct err *err)
{
    program->executor = executor_create(&trainer->grid, program->schedule, program->validation, stages, &trainer->model,
                                        &trainer->context, err);
    return program->executor ? 0 : -1;
}

static void make_parts(struct trainer *trainer, bool training)
{
    const struct schedule *schedule = trainer->evaluate.schedule;
    struct slice *slices = allocate((size_t)schedule->chunks, sizeof *slices);
    for (int chunk = 0; chunk < schedule->chunks; chunk++) {
        int stage = schedule_stage_of(schedule, trainer->grid.p, chunk);
        slices[chunk] = (struct slice){stage, trainer->first_layer[stage], trainer->first_layer[stage + 1]};
    }
    parameters_create(&trainer->parameters, &trainer->model, slices, schedule->chunks, trainer->grid.tensor,
                      trainer->grid.t);
    trainer->forward_stages = make_stages(trainer, &trainer->evaluate, slices);
    if (training)
        trainer->stages = make_stages(trainer, &trainer->train, slices);
    free(slices);
}

static void *take(const struct trainer *trainer, size_t bytes, const char *what, struct err *err)
{
    if (bytes == 0)
        return NULL;
    void *memory = trainer->context.device->allocate(bytes);
    if (!memory && !err->text[0])
        err_set(err,
                "%s: not enough memory for %s, %s; this rank needs %s: weights %s, gradients %s, moments %s, "
                "activations %s, buffers %s, workspace %s",
                error_place(), what, text_bytes((double)bytes).text,
                text_bytes((double)footprint_total(&trainer->memory)).text,
                text_bytes((double)(trainer->memory.weights + trainer->memory.computed)).text,
                text_bytes((double)trainer->memory.gradients).text, text_bytes((double)trainer->memory.moments).text,
                text_bytes((double)trainer->memory.activations).text, text_bytes((double)trainer->memory.buffers).text,
                text_bytes((double)trainer->memory.workspace).text);
    return memory;
}

/* The planner counts, and all parts must get by with that. */
static void count_memory(struct trainer *trainer, bool training)
{
    const struct footprint *memory = &trainer->memory;
    const struct parameters *parameters = &trainer->parameters;
    const struct shards *shards = &trainer->shards;
    struct layout layout = layout_of(trainer);
    struct footprint_sizes *sizes = footprint_sizes_create(&layout);
    trainer->memory = footprint_of_rank(sizes, trainer->first_layer, trainer->grid.p, parameters, shards);
    footprint_sizes_destroy(sizes);
    bool right = memory->weights == (size_t)shards->weight_elements * sizeof(float) &&
                 memory->computed == parameters->computed_bytes &&
                 executor_bytes(trainer->evaluate.executor) <= memory->arena;
    if (training)
        right = right && memory->gradients == (size_t)parameters->gradient_elements * sizeof(float) &&
                memory->moments == 2 * (size_t)shards->moment_elements * sizeof(float) &&
                executor_bytes(trainer->train.executor) <= memory->arena &&
                bucket_queue_bytes(trainer->queue) == memory->queue_scratch &&
                gradients_bytes(trainer->gradients) == memory->sum_scratch;
    if (!right)
        fatal("the memory counted beforehand is not what the parts need: this is a defect of ppmodel");
}

/* What the process holds before its arenas, once the libraries behind the device have what they take for themselves at
 * their first matrix product. */
static size_t resident_before(const struct trainer *trainer)
{
    const struct device *device = trainer->context.device;
    const int64_t width = 512;
    const size_t bytes = (size_t)(width * width) * sizeof(float);
    char *memory = device->allocate(3 * bytes);
    if (!memory)
        return 0;
    device->zero(trainer->context.stream, memory, 3 * bytes);
    device->linear(trainer->context.stream, ELEMENT_FLOAT32, memory, NULL, memory + bytes, memory + 2 * bytes, NULL,
                   width, width, width, width);
    device->stream_wait(trainer->context.stream);
    device->release(memory, 3 * bytes);
    return device->memory_taken();
}

static int take_memory(struct trainer *trainer, bool training, struct err *err)
{
    const struct footprint *memory = &trainer->memory;
    const double limit = trainer->settings->plan.memory_gib * 0x1p30;
    err->text[0] = 0;
    if (limit > 0 && (double)footprint_total(memory) > limit)
        return err_set(err, "%s: needs %s, which is more than &plan memory_gib = %g", error_place(),
                       text_bytes((double)footprint_total(memory)).text, trainer->settings->plan.memory_gib);
    trainer->weights = take(trainer, memory->weights, "weights", err);
    trainer->computed = take(trainer, memory->computed, "weights for computations", err);
    trainer->activations = take(trainer, memory->arena, "activations", err);
    trainer->context.workspace = take(trainer, memory->workspace, "workspace", err);
    trainer->context.tensor_scratch = take(trainer, memory->tensor_scratch, "tensor-parallel sums", err);
    if (training) {
        trainer->gradient_arena = take(trainer, memory->gradients, "gradients", err);
        trainer->first_moment = take(trainer, memory->moments / 2, "first moments", err);
        trainer->second_moment = take(trainer, memory->moments / 2, "second moments", err);
        trainer->queue_scratch = take(trainer, memory->queue_scratch, "gradient sums", err);
        trainer->scratch = take(trainer, memory->sum_scratch, "sums of shared gradients", err);
    }
    if (memory->computed == 0)
        trainer->computed = (char *)trainer->weights;
    return err->text[0] ? -1 : 0;
}

static void attach(struct trainer *trainer, bool training)
{
    const struct device *device = trainer->context.device;
    int chunks = trainer->evaluate.schedule->chunks;
    for (int chunk = 0; chunk < chunks; chunk++)
        stage_attach(trainer->forward_stages[chunk], trainer->computed, NULL);
    executor_attach(trainer->evaluate.executor, trainer->activations, &trainer->context);
    if (!training)
        return;
    for (int chunk = 0; chunk < chunks; chunk++)
        stage_attach(trainer->stages[chunk], trainer->computed, trainer->gradient_arena);
    executor_attach(trainer->train.executor, trainer->activations, &trainer->context);
    bucket_queue_attach(trainer->queue, trainer->computed, trainer->gradient_arena, trainer->queue_scratch);
    gradients_attach(trainer->gradients, trainer->gradient_arena, trainer->scratch);
    device->zero(trainer->context.stream, trainer->gradient_arena, trainer->memory.gradients); /* gaps stay 0 */
    device->zero(trainer->context.stream, trainer->first_moment, trainer->memory.moments / 2);
    device->zero(trainer->context.stream, trainer->second_moment, trainer->memory.moments / 2);
}

static void make_batches(struct trainer *trainer, bool training)
{
    const struct settings *s = trainer->settings;
    struct batch_shape shape = {.microbatches = s->pipeline.microbatches,
                                .microbatch_size = s->pipeline.microbatch_size,
                                .sequence = trainer->model.sequence,
                                .data = trainer->grid.data,
                                .d = trainer->grid.d,
                                .device = trainer->context.device};
    for (int field = 0; field < EXECUTOR_FIELDS; field++)
        shape.reads[field] = executor_reads(trainer->evaluate.executor, field);
    batch_create(&trainer->evaluation_batch, &shape);
    trainer->whole = allocate((size_t)shape.microbatches, sizeof *trainer->whole);
    for (int i = 0; i < 2 && training; i++)
        batch_create(&trainer->batches[i], &shape);
    trainer->losses_bytes =
        (size_t)(shape.microbatches * shape.microbatch_size * shape.sequence) * sizeof *trainer->losses;
    trainer->losses = host_memory(trainer->context.device, trainer->losses_bytes, "losses");
    /* Squares of every logical parameter, losses of the data ranks, and four numbers of each rank. */
    trainer->vector_count =
        (int64_t)trainer->parameters.logical_count * trainer->grid.tensor + trainer->grid.data + 4 * trainer->grid.size;
    trainer->vector = allocate((size_t)trainer->vector_count, sizeof *trainer->vector);
}

/* The initial weights of elements first ... first + count - 1 of a share, which lie together at `weights`. */
static void initialize_share(const struct trainer *trainer, const struct parameter_share *share, int64_t first,
                             int64_t count, float *weights)
{
    const uint64_t seed = (uint64_t)trainer->settings->run.seed;
    const int64_t most = staging_most(trainer->staging);
    for (int64_t done = 0, piece; done < count; done += piece) {
        piece = count - done < most ? count - done : most;
        const struct staging_rows rows = {weights + done, 1, piece, piece};
        parameters_initialize(share, seed, first + done, piece, staging_room(trainer->staging, rows).data);
        staging_store(trainer->staging, rows);
    }
}

/* The initial weights; gaps are zeroed. */
static void initialize(struct trainer *trainer)
{
    const struct shards *shards = &trainer->shards;
    const struct parameters *parameters = &trainer->parameters;
    const struct device *device = trainer->context.device;
    trainer->staging = staging_create(device, trainer->context.stream, STAGING_ELEMENTS);
    if (trainer->memory.weights > 0)
        device->zero(trainer->context.stream, trainer->weights, trainer->memory.weights);
    for (int i = 0; i < parameters->count && !shards->weights_sharded; i++) {
        const struct parameter_share *share = &parameters->shares[i];
        if (share->gradient == share->weight)
            initialize_share(trainer, share, 0, share->count, trainer->weights + share->weight);
    }
    for (int b = 0; b < shards->bucket_count && shards->weights_sharded; b++) {
        const struct bucket *bucket = &shards->buckets[b];
        for (int i = bucket->first_range; i < bucket->first_range + bucket->ranges && bucket->first_end == b; i++)
            initialize_share(trainer, &parameters->shares[shards->shards[i].share], shards->shards[i].first,
                             shards->ranges[i].count, trainer->weights + shards->ranges[i].weight);
    }
    staging_wait(trainer->staging);
}

/* On a device that works behind the host: all that a step does between its ranks, once. */
static void warm_up(struct trainer *trainer, bool training)
{
    const struct device *device = trainer->context.device;
    if (device->host_memory)
        return;
    executor_warm_up(training ? trainer->train.executor : trainer->evaluate.executor);
    if (!training)
        return;
    for (int layer = 0; layer < trainer->parameters.local_layers; layer++)
        gradients_layer_done(trainer->gradients, layer);
    gradients_finish(trainer->gradients);
    device->zero(trainer->context.stream, trainer->gradient_arena, trainer->memory.gradients); /* gaps stay 0 */
}

static int create(struct trainer *trainer, struct settings *settings, const struct text *csv, bool training,
                  struct err *err)
{
    if (make_schedules(trainer, csv, training, err) < 0 || cut_model(trainer, settings, err) < 0)
        return -1;
    trainer->context.loss_scale = 1 / ((double)settings->pipeline.global_batch * (double)trainer->model.sequence);
    make_parts(trainer, training);
    return 0;
}

static int prepare(struct trainer **out, const struct job *job, struct settings *settings, const struct model *model,
                   bool training, struct err *err)
{
    struct trainer *trainer = allocate(1, sizeof *trainer);
    trainer->settings = settings;
    trainer->model = *model;
    *out = trainer;
    const struct device *device = devices_choose(job, settings, err);
    if (!device)
        return -1;
    struct stream *stream = device->stream_open();
    grid_open(&trainer->grid, job->world, settings->grid.pipeline, settings->grid.data, settings->grid.tensor, device,
              stream);
    trainer->context = (struct context){.device = device,
                                        .stream = stream,
                                        .tensor = trainer->grid.tensor_group,
                                        .tensor_counts = allocate((size_t)trainer->grid.tensor, sizeof(int64_t)),
                                        .circumstances = {.sequences = settings->pipeline.microbatch_size,
                                                          .tensor = trainer->grid.tensor,
                                                          .t = trainer->grid.t,
                                                          .sequence_parallel = settings->grid.sequence_parallel,
                                                          .recompute = settings->pipeline.recompute,
                                                          .device = device,
                                                          .live = 1}};
    struct text csv = {0};
    int result = 0;
    if (settings->pipeline.schedule == SCHEDULE_CSV)
        result = input_file_read(job->world, settings->pipeline.schedule_file, &csv, err);
    if (result == 0)
        result = agree(job->world, create(trainer, settings, &csv, training, err), err);
    text_fini(&csv);
    if (result < 0)
        return -1;
    shards_create(&trainer->shards, &trainer->parameters, trainer->grid.tensor, trainer->grid.data, trainer->grid.d,
                  training && settings->optimizer.sharded);
    if (training) {
        trainer->queue = bucket_queue_create(&trainer->grid, &trainer->shards);
        trainer->gradients = gradients_create(
            &trainer->grid, device, trainer->context.stream, &trainer->parameters, &trainer->shards, trainer->queue,
            &trainer->model, trainer->stage_of_layer, trainer->train.schedule, settings->grid.sequence_parallel);
    }
    result = make_executor(trainer, &trainer->evaluate, trainer->forward_stages, err);
    if (result == 0 && training)
        result = make_executor(trainer, &trainer->train, trainer->stages, err);
    if (agree(job->world, result, err) < 0)
        return -1;
    count_memory(trainer, training);
    trainer->resident = resident_before(trainer);
    if (agree(job->world, take_memory(trainer, training, err), err) < 0)
        return -1;
    attach(trainer, training);
    make_batches(trainer, training);
    initialize(trainer);
    trainer_convert(trainer);
    warm_up(trainer, training);
    return 0;
}

int trainer_create(struct trainer **out, const struct job *job, struct settings *settings, const struct model *model,
                   bool training, struct err *err)
{
    flight_begin(FLIGHT_PREPARE);
    int result = prepare(out, job, settings, model, training, err);
    flight_end();
    return result;
}

void trainer_convert(struct trainer *trainer)
{
    const struct shards *shards = &trainer->shards;
    const struct device *device = trainer->context.device;
    if (trainer->memory.computed == 0)
        return;
    for (int b = 0; b < shards->bucket_count; b++) {
        const struct bucket *bucket = &shards->buckets[b];
        if (bucket->first_end != b)
            continue;
        for (int i = bucket->first_range; i < bucket->first_range + bucket->ranges; i++) {
            const struct optimizer_range *range = &shards->ranges[i];
            device->convert(trainer->context.stream, range->element, trainer->computed + range->computed,
                            trainer->weights + range->weight, range->count);
        }
        device->stream_wait(trainer->context.stream);
        if (shards->sharded)
            bucket_queue_gather(trainer->queue, b);
    }
    if (shards->sharded)
        bucket_queue_drain(trainer->queue);
}

static void destroy_stages(struct stage **stages, int chunks)
{
    for (int chunk = 0; stages && chunk < chunks; chunk++)
        stage_destroy(stages[chunk]);
    free(stages);
}

void trainer_destroy(struct trainer *trainer)
{
    if (!trainer)
        return;
    const struct device *device = trainer->context.device;
    int chunks = trainer->evaluate.schedule ? trainer->evaluate.schedule->chunks : 0;
    model_destroy(&trainer->model);
    if (!device) { /* none could be chosen */
        free(trainer);
        return;
    }
    bucket_queue_destroy(trainer->queue);
    gradients_destroy(trainer->gradients);
    program_destroy(&trainer->train);
    program_destroy(&trainer->evaluate);
    destroy_stages(trainer->stages, chunks);
    destroy_stages(trainer->forward_stages, chunks);
    staging_destroy(trainer->staging);
    shards_destroy(&trainer->shards);
    parameters_destroy(&trainer->parameters);
    if (trainer->memory.computed > 0)
        device->release(trainer->computed, trainer->memory.computed);
    device->release(trainer->weights, trainer->memory.weights);
    device->release(trainer->gradient_arena, trainer->memory.gradients);
    device->release(trainer->first_moment, trainer->memory.moments / 2);
    device->release(trainer->second_moment, trainer->memory.moments / 2);
    device->release(trainer->activations, trainer->memory.arena);
    device->release(trainer->queue_scratch, trainer->memory.queue_scratch);
    device->release(trainer->scratch, trainer->memory.sum_scratch);
    device->release(trainer->context.workspace, trainer->memory.workspace);
    device->release(trainer->context.tensor_scratch, trainer->memory.tensor_scratch);
    for (int i = 0; i < 2; i++)
        batch_destroy(&trainer->batches[i]);
    batch_destroy(&trainer->evaluation_batch);
    grid_close(&trainer->grid);
    device->stream_close(trainer->context.stream);
    free(trainer->context.tensor_counts);
    free(trainer->first_layer);
    free(trainer->stage_of_layer);
    free(trainer->vector);
    free(trainer->whole);
    if (trainer->losses)
        device->host_release(trainer->losses, trainer->losses_bytes);
    free(trainer);
}
