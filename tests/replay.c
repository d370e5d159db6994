/* A layer that goes wrong in one computation of one microbatch, on one rank or all: the replay of the step names that
 * rank, direction, stage, microbatch, layer and tensor, on every schedule; and what cannot be found again is told as
 * that. On four ranks. */
#include "run/replay.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/pack.h"
#include "model/gpt2.h"
#include "parallel/agree.h"
#include "run/check.h"
#include "tap.h"

enum {
    STAGES_MOST = 4,
    BLOCKS = 5,
    MICROBATCHES = 5,
    BAD_STEP = 2, /* from 0 */
    MLP_NORM_WEIGHT = 10,
    UP_BIAS = 13
};

enum where {
    IN_INPUT, /* spoilt on the way between two layers */
    IN_OUTPUT,
    IN_LOSSES,
    IN_OUTPUT_GRADIENT, /* spoilt on the way */
    IN_INPUT_GRADIENT,
    IN_NORM_GRADIENT, /* written by the input gradient */
    IN_WEIGHT_GRADIENT,
    IN_SUM,        /* each rank's weight gradient is finite */
    IN_OUTPUT_ONCE /* not again in the replay */
};

static struct fault {
    enum where where;
    int layer, microbatch;
    int rank; /* -1: all that have the layer */
    const struct layer *target;
    int calls[3]; /* of the target's forward, input and weight gradient */
} fault;

static struct communicator *world;

/* Counts a call; whether this is the one that goes wrong. */
static bool strikes(const struct layer *layer, enum stage_pass pass)
{
    if (layer != fault.target)
        return false;
    int call = fault.calls[pass]++, step = call / MICROBATCHES;
    return call % MICROBATCHES == fault.microbatch && (fault.rank < 0 || fault.rank == world->rank) &&
           (fault.where == IN_OUTPUT_ONCE ? step == BAD_STEP : step >= BAD_STEP);
}

static const struct layer_kind *sound(const struct layer *layer)
{
    const struct layer_kind *kinds[] = {&gpt2_embedding, &gpt2_block, &gpt2_head};
    int i = 0;
    while (strcmp(kinds[i]->name, layer->kind->name) != 0)
        i++;
    return kinds[i];
}

static void forward(const struct layer *layer, const struct context *context, const struct passage *passage)
{
    bool strike = strikes(layer, PASS_FORWARD);
    if (strike && fault.where == IN_INPUT)
        *(float *)(uintptr_t)passage->in[0] = NAN;
    sound(layer)->forward(layer, context, passage);
    if (!strike)
        return;
    if (fault.where == IN_OUTPUT || fault.where == IN_OUTPUT_ONCE)
        ((float *)passage->out[0])[3] = NAN;
    else if (fault.where == IN_LOSSES)
        passage->losses[2] = INFINITY;
}

static void backward_input(const struct layer *layer, const struct context *context, const struct passage *passage)
{
    bool strike = strikes(layer, PASS_INPUT);
    if (strike && fault.where == IN_OUTPUT_GRADIENT)
        *(float *)(uintptr_t)passage->out_gradient[0] = NAN;
    sound(layer)->backward_input(layer, context, passage);
    if (!strike)
        return;
    if (fault.where == IN_INPUT_GRADIENT)
        ((float *)passage->in_gradient[0])[1] = -INFINITY;
    else if (fault.where == IN_NORM_GRADIENT)
        passage->gradients[MLP_NORM_WEIGHT][4] = NAN;
}

static void backward_weight(const struct layer *layer, const struct context *context, const struct passage *passage)
{
    sound(layer)->backward_weight(layer, context, passage);
    if (!strikes(layer, PASS_WEIGHT))
        return;
    if (fault.where == IN_WEIGHT_GRADIENT)
        passage->gradients[UP_BIAS][0] = NAN;
    else if (fault.where == IN_SUM)
        passage->gradients[UP_BIAS][0] = 3e38F;
}

/* gpt2 with another kind, of the same name, for the layer that goes wrong. */
static int create_model(struct model *model, const struct settings *settings, struct err *err)
{
    static struct layer_kind kind;
    if (model_create(model, settings, err) < 0)
        return -1;
    struct layer *target = &model->layers[fault.layer];
    kind = *target->kind;
    kind.forward = forward;
    kind.backward_input = backward_input;
    kind.backward_weight = backward_weight;
    target->kind = &kind;
    fault.target = target;
    return 0;
}

/* A grid with its schedule, and where its stages are. */
struct setting {
    const char *words; /* overrides */
    int pipeline, data, tensor, stages;
    int blocks[STAGES_MOST], rank[STAGES_MOST]; /* in each stage; the pipeline rank that has it */
};

static int stage_of(const struct setting *setting, int layer)
{
    int stage = 0;
    for (int last = setting->blocks[0]; stage < setting->stages - 1 && layer > last; last += setting->blocks[stage])
        stage++;
    return stage;
}

static void read_settings(struct settings *settings, const struct setting *setting, const char *dataset)
{
    struct text text = {0}, messages = {0};
    text_add(&text, "&run steps = 9 threads = 1 /\n&data train = '%s' /\n", dataset);
    text_add(&text, "&model layers = %d hidden = 12 heads = 2 sequence = 7 vocabulary = 256 /\n", BLOCKS);
    text_add(&text, "&grid pipeline = %d data = %d tensor = %d /\n", setting->pipeline, setting->data, setting->tensor);
    text_add(&text, "&pipeline microbatches = %d microbatch_size = 2 balance = 'explicit' chunks = %d stage_layers = ",
             MICROBATCHES, setting->stages / setting->pipeline);
    for (int stage = 0; stage < setting->stages; stage++)
        text_add(&text, "%d ", setting->blocks[stage]);
    text_add(&text, "/\n");
    char words[256];
    const char *overrides[8];
    int count = 0;
    snprintf(words, sizeof words, "%s", setting->words);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " "))
        overrides[count++] = word;
    struct err err;
    settings_init(settings);
    if (settings_parse(settings, text_string(&text), text.length, "replay", overrides, count, &messages) < 0)
        fatal("%s", text_string(&messages));
    if (check_settings(settings, world->size, &err) < 0)
        fatal("%s", err.text);
    text_fini(&text);
    text_fini(&messages);
}

/* What the message must be. */
static struct err expected(const struct setting *setting)
{
    const int stage = stage_of(setting, fault.layer), p = setting->rank[stage], index = fault.layer - 1;
    const char *kind = fault.layer == 0 ? "embedding" : fault.layer > BLOCKS ? "head" : "block";
    int rank = fault.rank >= 0 ? fault.rank : p * setting->data * setting->tensor;
    struct err text, tensor = {0};
    switch (fault.where) {
    case IN_INPUT:
        err_set(&tensor, "input 'residual'");
        break;
    case IN_OUTPUT:
        err_set(&tensor, "output 'residual'");
        break;
    case IN_LOSSES:
        err_set(&tensor, "the loss");
        break;
    case IN_OUTPUT_GRADIENT:
        err_set(&tensor, "the gradient of output 'residual'");
        break;
    case IN_INPUT_GRADIENT:
        err_set(&tensor, "the gradient of input 'residual'");
        break;
    case IN_NORM_GRADIENT:
        err_set(&tensor, "the gradient of blocks/mlp_norm/weight[%d]", index);
        break;
    case IN_WEIGHT_GRADIENT:
        err_set(&tensor, "the gradient of blocks/mlp/up/bias[%d]", index);
        break;
    case IN_SUM:
        err_set(&text,
                "step %d: the gradient of blocks/mlp/up/bias[%d] (rank %d (p%d d0 t0), stage %d, layer %d: block) is "
                "not finite as a sum over ranks, though all that it adds up is",
                BAD_STEP + 1, index, rank, p, stage, fault.layer);
        return text;
    case IN_OUTPUT_ONCE:
        err_set(&text,
                "step %d: the loss of data rank 0 and the gradient of final_norm/bias (rank 2 (p1 d0 t0), stage 1, "
                "layer %d: head) came out not finite, but in a replay of the step every number is finite: this machine "
                "does not compute or transfer the same every time",
                BAD_STEP + 1, BLOCKS + 1);
        return text;
    }
    err_set(&text, "rank %d (p%d d%d t%d) step %d %s stage %d microbatch %d, layer %d (%s): %.500s%s", rank, p,
            rank / setting->tensor % setting->data, rank % setting->tensor, BAD_STEP + 1,
            fault.where <= IN_LOSSES ? "FORWARD" : "BACKWARD", stage, fault.microbatch, fault.layer, kind, tensor.text,
            fault.where == IN_INPUT || fault.where == IN_OUTPUT_GRADIENT
                ? " is not finite, though it was where it was written"
                : " is the first tensor that is not finite");
    return text;
}

struct trial {
    const char *name;
    const struct setting *setting;
    enum where where;
    int layer, microbatch;
    int rank; /* -1: all that have the layer */
};

static void check(const struct job *job, const char *dataset_path, const struct trial *what)
{
    struct settings settings;
    struct trainer *trainer = NULL;
    struct dataset *dataset = NULL;
    struct err err = {0};
    struct model model;
    fault = (struct fault){what->where, what->layer, what->microbatch, what->rank, NULL, {0}};
    read_settings(&settings, what->setting, dataset_path);
    if (dataset_open(&dataset, world, dataset_path, &err) < 0 || create_model(&model, &settings, &err) < 0 ||
        trainer_create(&trainer, job, &settings, &model, true, &err) < 0)
        fatal("%s", err.text);
    trainer_begin(trainer, dataset);
    struct step_result step;
    bool finite = true;
    for (int i = 0; i < BAD_STEP; i++) {
        trainer_step(trainer, NULL, NULL, &step);
        finite = finite && step.finite;
    }
    uint64_t digest = trainer_digest(trainer);
    trainer_step(trainer, NULL, NULL, &step);
    ok(finite && !step.finite && trainer_steps_done(trainer) == BAD_STEP, "%s: the step ends the training", what->name);
    is_text(step.trouble.text, expected(what->setting).text, "%s: %s", what->name, step.trouble.text);
    ok(trainer_digest(trainer) == digest, "%s: no weight has changed", what->name);
    trainer_destroy(trainer);
    dataset_close(dataset);
    settings_fini(&settings);
}

/* 4 KiB of varied bytes as a dataset. */
static void make_dataset(char *path, size_t size)
{
    char text[64] = "replay-test-XXXXXX";
    struct err err;
    if (world->rank == 0) {
        int descriptor = mkstemp(text);
        unsigned char bytes[4096];
        for (int i = 0; i < (int)sizeof bytes; i++)
            bytes[i] = (unsigned char)(i * i / 7 + i);
        if (descriptor < 0 || write(descriptor, bytes, sizeof bytes) != (ssize_t)sizeof bytes || close(descriptor) != 0)
            fatal("cannot write %s", text);
        snprintf(path, size, "%s.h5", text);
        const char *input = text;
        struct packed packed;
        if (pack(&(struct pack){.inputs = &input, .input_count = 1, .output = path}, &packed, &err) != EXIT_DONE)
            fatal("%s", err.text);
        unlink(text);
    }
    control_broadcast(world, path, size, 0);
}

int main(int argc, char **argv)
{
    const struct setting
        four = {"pipeline.schedule=1f1b", 4, 1, 1, 4, {0, 3, 2, 0}, {0, 1, 2, 3}},
        recomputed = {"pipeline.schedule=eager-1f1b pipeline.recompute=full", 4, 1, 1, 4, {2, 1, 1, 1}, {0, 1, 2, 3}},
        split = {"pipeline.schedule=zb-h1", 4, 1, 1, 4, {2, 1, 1, 1}, {0, 1, 2, 3}},
        data = {"pipeline.schedule=gpipe", 2, 2, 1, 2, {3, 2}, {0, 1}},
        loop = {"pipeline.schedule=interleaved", 2, 2, 1, 4, {1, 2, 1, 1}, {0, 1, 0, 1}},
        turned = {"pipeline.schedule=zb-v", 2, 1, 2, 4, {1, 2, 1, 1}, {0, 1, 1, 0}},
        half = {"pipeline.schedule=v-half", 2, 2, 1, 4, {2, 1, 1, 1}, {0, 1, 1, 0}},
        rows = {"pipeline.schedule=1f1b grid.sequence_parallel=true", 2, 1, 2, 2, {2, 3}, {0, 1}};
    struct job job;
    job_begin(&argc, &argv, &job);
    world = job.world;
    char path[80];
    make_dataset(path, sizeof path);
    const struct trial trials[] = {
        {"1f1b, the forward of a block", &four, IN_OUTPUT, 2, 3, 1},
        {"1f1b, the embedding alone", &four, IN_OUTPUT, 0, 4, 0},
        {"1f1b, the loss", &four, IN_LOSSES, BLOCKS + 1, 2, 3},
        {"full recompute, an input gradient", &recomputed, IN_INPUT_GRADIENT, 3, 1, 1},
        {"zb-h1, an input gradient", &split, IN_INPUT_GRADIENT, 4, 2, 2},
        {"zb-h1, what the input gradient adds to a norm's", &split, IN_NORM_GRADIENT, 1, 2, 0},
        {"zb-h1, a weight gradient", &split, IN_WEIGHT_GRADIENT, 5, 1, 3},
        {"gpipe, a forward of the second data rank", &data, IN_OUTPUT, 4, 1, 3},
        {"gpipe, a weight gradient of the first data rank", &data, IN_WEIGHT_GRADIENT, 3, 4, 0},
        {"gpipe, a sum over data ranks", &data, IN_SUM, 2, 4, -1},
        {"gpipe, not again", &data, IN_OUTPUT_ONCE, 2, 3, 0},
        {"gpipe, an input between two stages", &data, IN_INPUT, 4, 1, 2},
        {"gpipe, an input within a stage", &data, IN_INPUT, 3, 0, 1},
        {"interleaved, the gradient between two stages", &loop, IN_OUTPUT_GRADIENT, 4, 2, 0},
        {"interleaved, a forward", &loop, IN_OUTPUT, 4, 3, 1},
        {"interleaved, an input gradient", &loop, IN_INPUT_GRADIENT, 3, 0, 3},
        {"zb-v, a forward of the second tensor rank", &turned, IN_OUTPUT, 5, 2, 1},
        {"zb-v, a weight gradient of the second tensor rank", &turned, IN_WEIGHT_GRADIENT, 2, 3, 3},
        {"v-half, all data ranks", &half, IN_NORM_GRADIENT, 3, 1, -1},
        {"sequence parallel, the rows of the second tensor rank", &rows, IN_OUTPUT, 1, 2, 1},
        {"sequence parallel, the rows of the first, backwards", &rows, IN_INPUT_GRADIENT, 4, 4, 2},
    };
    for (size_t i = 0; i < sizeof trials / sizeof *trials; i++)
        check(&job, path, &trials[i]);
    if (world->rank == 0)
        unlink(path);
    int status = tap_done();
    job_end(&job);
    return status;
}
