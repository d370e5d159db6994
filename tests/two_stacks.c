/* The layer interface: a family that the program has never seen (two_stacks.h) trains on grids of as many ranks as this
 * test has, through every schedule and recompute mode, to the bits of one pipeline rank; and the gradients there are
 * slopes of the loss in double precision. */
#include <hdf5.h>
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/random.h"
#include "io/checkpoint.h"
#include "io/h5.h"
#include "run/check.h"
#include "run/trainer_state.h"
#include "tap.h"
#include "two_stacks.h"

enum {
    STEPS = 3,
    MICROBATCHES = 4,
    SIZE = 3,     /* sequences in a microbatch */
    SAMPLES = 31, /* of the stream: an evaluation ends with a microbatch that is cut short and one that is empty */
    TOKENS = SAMPLES * SEQUENCE + 1
};

struct schedule_case {
    enum schedule_choice schedule;
    int chunks;
};
static const struct schedule_case schedules[] = {
    {SCHEDULE_GPIPE, 1},       {SCHEDULE_1F1B, 1},       {SCHEDULE_EAGER_1F1B, 1}, {SCHEDULE_INTERLEAVED, 2},
    {SCHEDULE_INTERLEAVED, 3}, {SCHEDULE_LOOPED_BFS, 2}, {SCHEDULE_LOOPED_BFS, 3}, {SCHEDULE_ZB_H1, 1},
    {SCHEDULE_ZB_V, 2},        {SCHEDULE_V_HALF, 2},     {SCHEDULE_V_MIN, 2}};
enum {
    SCHEDULES = sizeof schedules / sizeof *schedules
};

struct grid_case {
    int pipeline, data, tensor;
    bool sequence_parallel;
};

/* One training. */
struct run {
    struct grid_case grid;
    struct schedule_case schedule;
    enum recompute_choice recompute;
    enum balance_choice balance;
    int64_t steps;
    double learning_rate;
};

/* What is left of it; `digests` on rank 0. */
struct outcome {
    int result;
    struct err err;
    double losses[STEPS], norms[STEPS], validation_loss;
    bool scratch; /* suffices for the sums over tensor ranks */
    struct text digests;
};

static char folder[] = "two-stacks-XXXXXX", corpus[64], checkpoint[64];
static int32_t tokens[TOKENS];

/* A stream in which a token depends on the one before. */
static void write_corpus(void)
{
    struct err err;
    const int64_t count = TOKENS;
    for (int i = 1; i < TOKENS; i++)
        tokens[i] = (tokens[i - 1] + 1 + (int32_t)(random_bits(7, (uint64_t)i) % 3)) % VOCABULARY;
    hid_t file = h5_create(&err);
    bool good = file >= 0 && h5_put_format(file, "ppmodel-dataset", 1, &err) == 0 &&
                h5_put_int64(file, "vocabulary", VOCABULARY, &err) == 0;
    hid_t stream = good ? h5_create_dataset(file, "/tokens", H5T_NATIVE_INT32, 1, &count, &err) : -1;
    struct box box = box_make(1, NULL, &count);
    good = stream >= 0 && h5_write_box(stream, H5T_NATIVE_INT32, &box, tokens, 1, &err) == 0 && H5Dclose(stream) >= 0 &&
           h5_save(file, corpus, &err) == 0;
    if (!good)
        fatal("%s", err.text);
}

static void make_settings(const struct run *run, struct settings *settings)
{
    settings_init(settings);
    settings->run.steps = run->steps;
    settings->run.threads = 1;
    settings->model.layers = ENCODERS + DECODERS + 3; /* as many stages as gpt2 has layers */
    settings->model.sequence = SEQUENCE;
    settings->model.vocabulary = VOCABULARY;
    settings->grid.pipeline = run->grid.pipeline;
    settings->grid.data = run->grid.data;
    settings->grid.tensor = run->grid.tensor;
    settings->grid.sequence_parallel = run->grid.sequence_parallel;
    settings->pipeline.schedule = run->schedule.schedule;
    settings->pipeline.chunks = run->schedule.chunks;
    settings->pipeline.recompute = run->recompute;
    settings->pipeline.balance = run->balance;
    settings->pipeline.microbatches = MICROBATCHES;
    settings->pipeline.microbatch_size = SIZE;
    settings->optimizer.learning_rate = settings->optimizer.min_learning_rate = run->learning_rate;
    settings->checkpoint.gradients = true;
    settings->data.shuffle = false;
    snprintf(settings->data.train, sizeof settings->data.train, "%s", corpus);
    snprintf(settings->checkpoint.directory, sizeof settings->checkpoint.directory, "%s", folder);
}

/* Whether there is scratch for the sum of every tensor between layers of this rank. */
static bool has_scratch(const struct trainer *trainer)
{
    bool enough = true;
    for (int i = 0; i + 1 < trainer->parameters.local_layers && trainer->grid.pipeline == 1; i++)
        for (int j = 0; j < trainer->model.declarations[i].after_count; j++) {
            const struct boundary *tensor = &trainer->model.declarations[i].after[j];
            enough = enough && trainer->memory.tensor_scratch >=
                                   context_tensor_scratch(trainer->grid.tensor_group, ELEMENT_FLOAT32,
                                                          SIZE * tensor->rows_per_sequence, tensor->width);
        }
    return enough;
}

/* Trains, evaluates and writes a checkpoint. */
static int train(const struct job *job, struct settings *settings, struct trainer *trainer, struct outcome *out)
{
    struct dataset *dataset;
    if (dataset_open(&dataset, job->world, settings->data.train, &out->err) < 0)
        return -1;
    trainer_describe(trainer);
    out->scratch = has_scratch(trainer);
    trainer_begin(trainer, dataset);
    bool finite = true;
    for (int64_t step = 0; step < settings->run.steps && finite; step++) {
        struct step_result result;
        trainer_step(trainer, NULL, NULL, &result);
        out->losses[step] = result.loss;
        out->norms[step] = result.gradient_norm;
        finite = result.finite;
        out->err = result.trouble;
    }
    out->validation_loss = trainer_evaluate(trainer, dataset, SAMPLES);
    dataset_close(dataset);
    return finite ? trainer_save(trainer, &out->err) : -1;
}

/* Runs on all ranks of the job. */
static void perform(const struct job *job, const struct run *run, struct outcome *out)
{
    struct settings settings;
    struct trainer *trainer = NULL;
    struct model model;
    *out = (struct outcome){0};
    make_settings(run, &settings);
    out->result = check_settings(&settings, job->world->size, &out->err);
    if (out->result == 0)
        out->result = two_stacks_create(&model, &out->err);
    if (out->result == 0)
        out->result = trainer_create(&trainer, job, &settings, &model, true, &out->err);
    if (out->result == 0)
        out->result = train(job, &settings, trainer, out);
    trainer_destroy(trainer);
    snprintf(checkpoint, sizeof checkpoint, "%s/step-%08lld.h5", folder, (long long)run->steps);
    if (out->result == 0 && job->world->rank == 0)
        out->result = checkpoint_digest(checkpoint, &out->digests, &out->err);
    settings_fini(&settings);
}

static void read_tensor(hid_t file, const char *tree, const struct two_stacks_shape *shape, double *values)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", tree, shape->path);
    hid_t set = H5Dopen2(file, path, H5P_DEFAULT), space = set < 0 ? -1 : H5Dget_space(set);
    if (space < 0 || H5Sget_simple_extent_npoints(space) != shape->count ||
        H5Dread(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) < 0)
        fatal("%s of the checkpoint is not as it should be", path);
    H5Sclose(space);
    H5Dclose(set);
}

/* The largest error of a tensor's gradient, relative to its length: along itself and along random directions its
 * component must be the loss's slope. */
static double slope_error(double *weights[TENSORS], int tensor, const double *gradient, int64_t samples)
{
    const int64_t count = two_stacks_shapes[tensor].count;
    double *at = allocate((size_t)count, sizeof *at), worst = 0, length = 0;
    float *direction = allocate((size_t)count, sizeof *direction);
    memcpy(at, weights[tensor], (size_t)count * sizeof *at);
    for (int64_t i = 0; i < count; i++)
        length += gradient[i] * gradient[i];
    length = sqrt(length);
    for (int n = 0; n < 5; n++) {
        double size = 0, component = 0, loss[2];
        random_normal(random_key(11, two_stacks_shapes[tensor].path), n * count, count, 1, direction);
        for (int64_t i = 0; i < count; i++) {
            direction[i] = n == 0 ? (float)gradient[i] : direction[i];
            size += (double)direction[i] * direction[i];
        }
        size = sqrt(size);
        for (int side = 0; side < 2; side++) {
            for (int64_t i = 0; i < count; i++)
                weights[tensor][i] = at[i] + (side ? 1e-4 : -1e-4) * direction[i] / size;
            loss[side] = two_stacks_loss(weights, tokens, samples);
        }
        for (int64_t i = 0; i < count; i++)
            component += gradient[i] * direction[i] / size;
        worst = fmax(worst, fabs(component - (loss[1] - loss[0]) / 2e-4) / length);
    }
    memcpy(weights[tensor], at, (size_t)count * sizeof *at);
    free(at);
    free(direction);
    return worst;
}

/* The loss and the gradients of a step that left the weights where they were. */
static void check_slopes(const struct job *world, const struct job *job, struct run run, const char *name)
{
    struct outcome out = {.losses = {0}};
    double *weights[TENSORS], *gradients[TENSORS], errors[TENSORS] = {0}, loss = 0;
    run.steps = 1;
    run.learning_rate = 0;
    if (job)
        perform(job, &run, &out);
    if (world->world->rank == 0 && out.result == 0) {
        struct err err;
        hid_t file = h5_open(checkpoint, &err);
        if (file < 0)
            fatal("%s", err.text);
        for (int i = 0; i < TENSORS; i++) {
            weights[i] = allocate((size_t)two_stacks_shapes[i].count, sizeof(double));
            gradients[i] = allocate((size_t)two_stacks_shapes[i].count, sizeof(double));
            read_tensor(file, "/model", &two_stacks_shapes[i], weights[i]);
            read_tensor(file, "/gradients", &two_stacks_shapes[i], gradients[i]);
        }
        H5Fclose(file);
        const int64_t samples = MICROBATCHES * SIZE * run.grid.data;
        loss = two_stacks_loss(weights, tokens, samples);
        for (int i = 0; i < TENSORS; i++)
            errors[i] = slope_error(weights, i, gradients[i], samples);
        for (int i = 0; i < TENSORS; i++) {
            free(weights[i]);
            free(gradients[i]);
        }
    }
    ok(out.result == 0, "%s: a step at a learning rate of 0%s%s", name, out.err.text[0] ? ": " : "", out.err.text);
    is_near(out.losses[0] / (job && loss > 0 ? loss
                             : out.losses[0] ? out.losses[0]
                                             : 1),
            job ? 1 : 0, 1e-6, "%s: the loss is that in double precision", name);
    for (int i = 0; i < TENSORS; i++)
        is_near(errors[i], 0, 5e-6, "%s: the gradient of %s is the loss's slope", name, two_stacks_shapes[i].path);
    text_fini(&out.digests);
}

static void name_run(const struct run *run, char name[128])
{
    snprintf(name, 128, "%dx%dx%d%s %s of %d, recompute %s, %s balance", run->grid.pipeline, run->grid.data,
             run->grid.tensor, run->grid.sequence_parallel ? " sequence parallel" : "",
             schedule_names[run->schedule.schedule], run->schedule.chunks, recompute_names[run->recompute],
             balance_names[run->balance]);
}

/* Whether every number of the run is that of the reference, which only the ranks of the reference know. */
static void compare(const struct job *world, const struct outcome *found, const struct outcome *reference,
                    const char *name)
{
    double right[2 * STEPS + 1], mine[2 * STEPS + 1];
    memcpy(right, reference->losses, sizeof reference->losses);
    memcpy(right + STEPS, reference->norms, sizeof reference->norms);
    right[2 * STEPS] = reference->validation_loss;
    memcpy(mine, found->losses, sizeof found->losses);
    memcpy(mine + STEPS, found->norms, sizeof found->norms);
    mine[2 * STEPS] = found->validation_loss;
    control_broadcast(world->world, right, sizeof right, 0);
    if (!ok(found->result == 0 && found->scratch, "%s: trains", name))
        tap_note("%s", found->err.text);
    ok(memcmp(right, mine, sizeof right) == 0, "%s: the same losses and norms", name);
    bool first = world->world->rank == 0;
    is_text(first ? text_string(&found->digests) : "", first ? text_string(&reference->digests) : "",
            "%s: the same weights, moments and gradients", name);
}

/* All schedules on one grid: on up to three pipeline ranks alone with all recompute modes, else with one in turn. */
static void check_grid(const struct job *world, struct grid_case grid)
{
    const int small = grid.data * grid.tensor;
    MPI_Comm few;
    MPI_Comm_split(MPI_COMM_WORLD, world->world->rank < small ? 0 : MPI_UNDEFINED, world->world->rank, &few);
    struct job some = *world, *job = NULL;
    if (few != MPI_COMM_NULL) {
        some.world = comm_mpi_open(few);
        MPI_Comm_free(&few);
        job = &some;
    }
    struct run plain = {.grid = {1, grid.data, grid.tensor, grid.sequence_parallel},
                        .schedule = {SCHEDULE_1F1B, 1},
                        .recompute = RECOMPUTE_NONE,
                        .balance = BALANCE_COST,
                        .steps = STEPS,
                        .learning_rate = 0.01};
    static const enum balance_choice balances[] = {BALANCE_COST, BALANCE_UNIFORM, BALANCE_COST, BALANCE_PARAMETERS};
    char name[128];
    name_run(&plain, name);
    check_slopes(world, job, plain, name);
    struct outcome reference = {.losses = {1, 0}};
    if (job)
        perform(job, &plain, &reference);
    ok(reference.result == 0, "%s: the reference trains: %s", name, reference.err.text);
    ok(reference.losses[STEPS - 1] < reference.losses[0], "%s: the loss falls", name);
    for (int i = 0; i < 3 * SCHEDULES; i++) {
        if ((small > 1 || grid.pipeline > 3) && i / SCHEDULES != i % 3)
            continue;
        struct run run = plain;
        run.grid = grid;
        run.schedule = schedules[i % SCHEDULES];
        run.recompute = (enum recompute_choice)(i / SCHEDULES);
        run.balance = balances[i % 4];
        struct outcome found;
        name_run(&run, name);
        perform(world, &run, &found);
        compare(world, &found, &reference, name);
        text_fini(&found.digests);
    }
    text_fini(&reference.digests);
    if (job)
        communicator_close(job->world);
}

int main(int argc, char **argv)
{
    static const struct grid_case grids[] = {{1, 1, 1, false}, {2, 1, 1, false}, {1, 2, 1, false}, {1, 1, 2, false},
                                             {1, 1, 2, true},  {3, 1, 1, false}, {4, 1, 1, false}, {2, 2, 1, false},
                                             {2, 1, 2, true},  {5, 1, 1, false}};
    struct job job;
    job_begin(&argc, &argv, &job);
    log_open(false, false);
    if (job.world->rank == 0 && !mkdtemp(folder))
        fatal("no folder %s", folder);
    control_broadcast(job.world, folder, sizeof folder, 0);
    snprintf(corpus, sizeof corpus, "%s/corpus.h5", folder);
    if (job.world->rank == 0)
        write_corpus();
    control_barrier(job.world);
    for (size_t i = 0; i < sizeof grids / sizeof *grids; i++)
        if (grids[i].pipeline * grids[i].data * grids[i].tensor == job.world->size)
            check_grid(&job, grids[i]);
    control_barrier(job.world);
    bool removed = true;
    for (int64_t step = 1; step <= STEPS && job.world->rank == 0; step++) {
        char *path = checkpoint_path(folder, step);
        removed = (remove(path) == 0 || (step != 1 && step != STEPS)) && removed;
        free(path);
    }
    if (job.world->rank == 0)
        removed = remove(corpus) == 0 && remove(folder) == 0 && removed;
    ok(removed, "nothing is left behind");
    tap_done();
    job_end(&job);
    return 0;
}
