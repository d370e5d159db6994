/* Each kind of layer alone, through the layer interface, against what PyTorch computes in double precision: outputs,
 * input gradients and weight gradients in every recompute mode, on any number of tensor ranks, with and without
 * sequence parallelism, all sequences at once or in parts; and against finite differences of the layer itself. */
#include <math.h>

#include "parallel/job.h"
#include "tests/device_choice.h"
#include "tests/layer_trial.h"
#include "tests/tap.h"

/* |found - right| / |size| */
static double relative(const double *found, const double *right, const double *size, int64_t count)
{
    double error = 0, squares = 0;
    for (int64_t i = 0; i < count; i++) {
        error += (found[i] - right[i]) * (found[i] - right[i]);
        squares += size[i] * size[i];
    }
    return count ? sqrt(error / squares) : 0;
}

enum what {
    FORWARD, /* output or losses */
    INPUT_GRADIENT,
    WEIGHT_GRADIENTS,
    WHATS
};

/* One check of an error, which goes into the table of the worst. */
static bool check_error(const struct trial *trial, enum what what, double error, const char *name)
{
    static const char *const names[WHATS] = {"forward", "input gradient", "weight gradients"};
    static const double limits[WHATS] = {1e-6, 5e-6, 5e-6};
    trial->worst[what] = fmax(trial->worst[what], error);
    return is_near(error, 0, limits[what], "%s: %s", name, names[what]);
}

/* Whether the tensor, where the layer has it, is right: rows from `first` on of the whole one. */
static void check_rows(const struct trial *trial, enum what what, const float *memory, const double *whole,
                       struct share rows, int64_t width, const char *name)
{
    if (!whole)
        return;
    const double *right = whole + rows.first * width;
    double *found = download(trial, memory, rows.count * width);
    check_error(trial, what, relative(found, right, right, rows.count * width), name);
    free(found);
}

static bool is_key_bias(const struct parameter *parameter)
{
    return strcmp(parameter->path, "blocks/attention/key/bias") == 0;
}

/* The worst error of the weights' gradients and the parameter that has it. With sequence parallelism every rank has the
 * part of its rows where a parameter is not split. */
static double gradient_error(const struct trial *trial, const char **worst)
{
    double largest = 0;
    for (int i = 0; i < trial->declaration.parameter_count; i++) {
        const struct parameter *p = &trial->declaration.parameters[i];
        int64_t count;
        double *right = cut(trial, i, trial->golden->gradients[i], &count);
        double *found = download(trial, trial->gradient_of[i], count);
        if (trial->context.circumstances.sequence_parallel && p->split < 0)
            control_sum(trial->context.tensor, found, count);
        /* The key's bias has a gradient of 0, because softmax does not see it: its error is judged by the query's. */
        int64_t same;
        double *size =
            cut(trial, is_key_bias(p) ? i - 1 : i, trial->golden->gradients[is_key_bias(p) ? i - 1 : i], &same);
        double error = relative(found, right, size, count);
        if (!(error <= largest)) {
            largest = error;
            *worst = p->path;
        }
        free(right);
        free(found);
        free(size);
    }
    return largest;
}

static void check_forward(const struct trial *trial, const struct part *part, const char *name)
{
    const struct golden *golden = trial->golden;
    check_rows(trial, FORWARD, part->out, golden->out, part->mine, golden->model.hidden, name);
    check_rows(trial, FORWARD, part->losses, golden->losses, part->all, 1, name);
}

static void check_input_gradient(const struct trial *trial, const struct part *part, const char *name)
{
    const struct golden *golden = trial->golden;
    check_rows(trial, INPUT_GRADIENT, part->in_gradient, golden->in_gradient, part->mine, golden->model.hidden, name);
}

static void check_gradients(const struct trial *trial, const char *name)
{
    const char *worst = "";
    double error = gradient_error(trial, &worst);
    if (!check_error(trial, WEIGHT_GRADIENTS, error, name))
        tap_note("worst: %s", worst);
}

/* All sequences at once; the gradients are written. */
static void check_whole(const struct trial *trial, const char *name)
{
    const struct layer_kind *kind = trial->layer.kind;
    struct part part;
    begin_part(&part, trial, 0, trial->golden->sequences, false);
    call(trial, kind->forward, &part);
    check_forward(trial, &part, name);
    call(trial, kind->backward_input, &part);
    check_input_gradient(trial, &part, name);
    call(trial, kind->backward_weight, &part);
    check_gradients(trial, name);
    end_part(&part, trial);
}

/* Two microbatches that are not full, both under way at once, weight gradients after all input gradients; the second
 * adds its gradients. */
static void check_parts(const struct trial *trial, const char *name)
{
    const struct layer_kind *kind = trial->layer.kind;
    const int64_t first = trial->golden->sequences - 1;
    call_fn *const calls[] = {kind->forward, kind->backward_input, kind->backward_weight};
    struct part parts[2];
    begin_part(&parts[0], trial, 0, first, false);
    begin_part(&parts[1], trial, first, trial->golden->sequences - first, true);
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 2; i++)
            call(trial, calls[c], &parts[i]);
    for (int i = 0; i < 2; i++) {
        check_forward(trial, &parts[i], name);
        check_input_gradient(trial, &parts[i], name);
    }
    check_gradients(trial, name);
    for (int i = 0; i < 2; i++)
        end_part(&parts[i], trial);
}

/* sum(out * out_gradient), or the mean loss, whose gradient the layer says it has. */
static double objective(const struct trial *trial, const struct part *part)
{
    double sum = 0;
    call(trial, trial->layer.kind->forward, part);
    if (trial->golden->losses) {
        double *losses = download(trial, part->losses, part->all.count);
        for (int64_t i = 0; i < part->all.count; i++)
            sum += losses[i] * trial->context.loss_scale;
        free(losses);
        return sum;
    }
    double *out = download(trial, part->out, part->count);
    for (int64_t i = 0; i < part->count; i++)
        sum += out[i] * trial->golden->out_gradient[i];
    free(out);
    return sum;
}

/* Steps from x along its gradient g, both ways: the objective's slope must be |g|. */
static void check_slope(const struct trial *trial, const struct part *part, float *memory, const double *x,
                        const float *gradient, int64_t count, const char *name)
{
    const double step = 0.02;
    double *g = download(trial, gradient, count), *moved = allocate((size_t)count, sizeof *moved), length = 0, value[2];
    for (int64_t i = 0; i < count; i++)
        length += g[i] * g[i];
    length = sqrt(length);
    for (int side = 0; side < 2; side++) {
        for (int64_t i = 0; i < count; i++)
            moved[i] = x[i] + (side ? step : -step) * g[i] / length;
        upload(trial, memory, moved, count);
        value[side] = objective(trial, part);
    }
    upload(trial, memory, x, count);
    is_near((value[1] - value[0]) / (2 * step * length), 1, 1e-3, "%s: %s: slope", trial->layer.kind->name, name);
    free(g);
    free(moved);
}

static void check_slopes(const struct trial *trial)
{
    const struct golden *golden = trial->golden;
    struct part part;
    begin_part(&part, trial, 0, golden->sequences, false);
    call(trial, trial->layer.kind->forward, &part);
    call(trial, trial->layer.kind->backward_input, &part);
    call(trial, trial->layer.kind->backward_weight, &part);
    if (golden->in)
        check_slope(trial, &part, part.in, golden->in, part.in_gradient, part.count, "input");
    for (int i = 0; i < trial->declaration.parameter_count; i++)
        if (!is_key_bias(&trial->declaration.parameters[i]))
            check_slope(trial, &part, trial->weights + trial->offset[i], golden->weights[i], trial->gradient_of[i],
                        trial->offset[i + 1] - trial->offset[i], trial->declaration.parameters[i].path);
    end_part(&part, trial);
}

/* Recompute modes, sequence parallelism and whole or in parts, in all combinations. */
static void check_kind(const struct layer_kind *kind, struct communicator *tensor)
{
    static const char *const modes[] = {"none", "selective", "full"};
    struct golden golden;
    double worst[WHATS] = {0};
    load_golden(&golden, kind);
    struct circumstances circumstances = {
        .sequences = golden.sequences, .tensor = tensor->size, .t = tensor->rank, .device = device_of(1)};
    for (int i = 0; i < 3 * 2 * 2; i++) {
        const bool shared = i / 2 % 2, in_parts = i % 2;
        if (shared && tensor->size == 1)
            continue;
        char name[64];
        snprintf(name, sizeof name, "%s, recompute %s%s%s", kind->name, modes[i / 4],
                 shared ? ", sequence parallel" : "", in_parts ? ", in parts" : "");
        circumstances.recompute = (enum recompute_choice)(i / 4);
        circumstances.sequence_parallel = shared;
        circumstances.live = in_parts ? 2 : 1;
        struct trial trial;
        begin_trial(&trial, &golden, kind, tensor, &circumstances);
        trial.worst = worst;
        (in_parts ? check_parts : check_whole)(&trial, name);
        if (tensor->size == 1 && i == 0)
            check_slopes(&trial);
        end_trial(&trial);
    }
    control_max(tensor, worst, WHATS);
    tap_note("%s: worst relative errors: forward %.1e, input gradient %.1e, weight gradients %.1e", kind->name,
             worst[FORWARD], worst[INPUT_GRADIENT], worst[WEIGHT_GRADIENTS]);
    free_golden(&golden);
}

int main(int argc, char **argv)
{
    const char *missing = device_choice_open(argv[0]);
    if (missing != NULL)
        return tap_skip_all(missing);
    struct job job;
    job_begin(&argc, &argv, &job);
    check_kind(&gpt2_embedding, job.world);
    check_kind(&gpt2_block, job.world);
    check_kind(&gpt2_head, job.world);
    int status = tap_done();
    job_end(&job);
    return status;
}
