#include "run/check.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "kernels/kernels.h"
#include "pipeline/generate.h"
#include "plan/machine.h"

/* "1 2 4 8": the divisors of n, for messages. */
static struct err divisors(int n)
{
    struct err list = {0};
    size_t used = 0;
    for (int i = 1; i <= n && used + 16 < sizeof list.text; i++)
        if (n % i == 0)
            used += (size_t)snprintf(list.text + used, sizeof list.text - used, used ? " %d" : "%d", i);
    return list;
}

/* What a job of one rank most likely lacks, for messages: a launcher. */
static struct err started_how(int world_size, int64_t ranks)
{
    struct err how = {0};
    if (world_size == 1)
        snprintf(how.text, sizeof how.text, " (mpiexec -n %lld ./ppmodel ..., or srun -n %lld)", (long long)ranks,
                 (long long)ranks);
    return how;
}

/* Keys of parts that are not there yet: said, never ignored. */
static int check_built(const struct settings *s, struct err *err)
{
    bool plan = s->run.mode == MODE_PLAN; /* of what another build or machine does */
    struct err missing = {0};
    if (s->run.device == DEVICE_CUDA && !plan && device_cuda_count(&missing) == 0)
        return err_set(err, "&run device = 'cuda': %s; available here: 'cpu'", missing.text);
    if (s->run.precision == PRECISION_TF32 && s->run.device == DEVICE_CPU && !plan)
        return err_set(err, "&run precision = 'tf32' is for device = 'cuda'; available here: 'fp32', 'bf16'");
    if (s->run.sample_every > 0)
        return err_set(err, "&run sample_every > 0 is not built yet");
    if (s->evaluate.scores[0])
        return err_set(err, "&evaluate scores is not built yet");
    return 0;
}

static int check_model(struct settings *s, struct err *err)
{
    if (s->model.hidden % s->model.heads != 0)
        return err_set(err, "&model hidden = %d is not divisible by &model heads = %d", s->model.hidden,
                       s->model.heads);
    if (s->model.family == FAMILY_GPT2 && s->model.kv_heads != 0 && s->model.kv_heads != s->model.heads)
        return err_set(err, "&model kv_heads = %d: family 'gpt2' has as many as heads = %d; leave kv_heads at 0",
                       s->model.kv_heads, s->model.heads);
    s->model.kv_heads = s->model.heads;
    if (s->model.hidden / s->model.heads > 256)
        return err_set(err,
                       "&model hidden / heads = %d: heads of more than 256 elements are not supported; raise heads",
                       s->model.hidden / s->model.heads);
    if (s->model.ffn_hidden == 0)
        s->model.ffn_hidden = 4 * s->model.hidden;
    return 0;
}

static int check_grid(struct settings *s, int world_size, struct err *err)
{
    int64_t share = (int64_t)s->grid.pipeline * s->grid.tensor;
    if (s->grid.data == 0 && world_size % share == 0)
        s->grid.data = (int)(world_size / share);
    if (s->grid.data == 0)
        return err_set(
            err,
            "&grid pipeline = %d times tensor = %d is %lld, which does not divide the %d rank%s of this job; "
            "start %lld ranks or a multiple of that%s, or make the product one of %s",
            s->grid.pipeline, s->grid.tensor, (long long)share, world_size, world_size == 1 ? "" : "s",
            (long long)share, started_how(world_size, share).text, divisors(world_size).text);
    if (share * s->grid.data != world_size)
        return err_set(err,
                       "&grid pipeline = %d, data = %d and tensor = %d make %lld ranks, but the job has %d; start %lld "
                       "ranks%s, or choose sizes whose product is %d (its divisors: %s)",
                       s->grid.pipeline, s->grid.data, s->grid.tensor, (long long)(share * s->grid.data), world_size,
                       (long long)(share * s->grid.data), started_how(world_size, share * s->grid.data).text,
                       world_size, divisors(world_size).text);
    if (s->model.heads % s->grid.tensor != 0)
        return err_set(err, "&model heads = %d is not divisible by &grid tensor = %d; tensor must be one of %s",
                       s->model.heads, s->grid.tensor, divisors(s->model.heads).text);
    if (s->model.ffn_hidden % s->grid.tensor != 0)
        return err_set(err, "&model ffn_hidden = %d is not divisible by &grid tensor = %d", s->model.ffn_hidden,
                       s->grid.tensor);
    return 0;
}

static int check_pipeline(struct settings *s, struct err *err)
{
    if (s->pipeline.schedule != SCHEDULE_CSV &&
        generate_check(schedule_names[s->pipeline.schedule], s->pipeline.chunks, err) < 0)
        return -1;
    int64_t stages = (int64_t)s->grid.pipeline * s->pipeline.chunks, most = (int64_t)s->model.layers + 2;
    if (stages > most)
        return err_set(
            err,
            "&grid pipeline = %d times &pipeline chunks = %d makes %lld stages, but &model layers = %d gives "
            "at most %lld (each block, the embedding and the head alone); the largest pipeline with these "
            "chunks is %lld",
            s->grid.pipeline, s->pipeline.chunks, (long long)stages, s->model.layers, (long long)most,
            (long long)(most / s->pipeline.chunks));
    int64_t row =
        (int64_t)s->pipeline.microbatch_size * s->grid.data; /* sequences of one microbatch on all pipelines */
    if (s->pipeline.microbatches == 0 && s->pipeline.global_batch == 0)
        s->pipeline.microbatches = 8;
    if (s->pipeline.microbatches == 0) {
        if (s->pipeline.global_batch % row != 0)
            return err_set(err,
                           "&pipeline global_batch = %lld is not a multiple of microbatch_size = %d times &grid data = "
                           "%d; the nearest are %lld and %lld",
                           (long long)s->pipeline.global_batch, s->pipeline.microbatch_size, s->grid.data,
                           (long long)(s->pipeline.global_batch / row * row),
                           (long long)((s->pipeline.global_batch / row + 1) * row));
        int64_t microbatches = s->pipeline.global_batch / row;
        if (microbatches > 1 << 20)
            return err_set(err, "&pipeline global_batch = %lld makes %lld microbatches, more than %d",
                           (long long)s->pipeline.global_batch, (long long)microbatches, 1 << 20);
        s->pipeline.microbatches = (int)microbatches;
    }
    int64_t batch = row * s->pipeline.microbatches;
    if (s->pipeline.global_batch != 0 && s->pipeline.global_batch != batch)
        return err_set(err,
                       "&pipeline global_batch = %lld contradicts microbatches = %d times microbatch_size = %d times "
                       "&grid data = %d, which is %lld; leave one of global_batch and microbatches at 0",
                       (long long)s->pipeline.global_batch, s->pipeline.microbatches, s->pipeline.microbatch_size,
                       s->grid.data, (long long)batch);
    s->pipeline.global_batch = batch;
    if (s->pipeline.stage_layers.count > 0 && s->pipeline.balance != BALANCE_EXPLICIT)
        return err_set(err, "&pipeline stage_layers is given, but balance = '%s'; set balance = 'explicit'",
                       balance_names[s->pipeline.balance]);
    if (s->pipeline.schedule == SCHEDULE_CSV && !s->pipeline.schedule_file[0])
        return err_set(err, "&pipeline schedule = 'csv' needs schedule_file");
    if (s->pipeline.schedule != SCHEDULE_CSV && s->pipeline.schedule_file[0])
        return err_set(err, "&pipeline schedule_file is given, but schedule = '%s'; set schedule = 'csv'",
                       schedule_names[s->pipeline.schedule]);
    return 0;
}

static int check_training(const struct settings *s, struct err *err)
{
    if (s->run.mode == MODE_EVALUATE || s->run.evaluate_every > 0) {
        if (!s->data.validation[0])
            return err_set(err, "%s needs &data validation, a dataset",
                           s->run.mode == MODE_EVALUATE ? "&run mode = 'evaluate'" : "&run evaluate_every > 0");
    }
    if (s->run.mode == MODE_EVALUATE && !s->checkpoint.load_weights[0] && !s->checkpoint.directory[0] &&
        (strcmp(s->checkpoint.resume, "auto") == 0 || strcmp(s->checkpoint.resume, "none") == 0))
        return err_set(err, "&run mode = 'evaluate' needs weights: &checkpoint directory, load_weights or resume");
    if (s->run.mode != MODE_TRAIN)
        return 0;
    if (!s->data.train[0])
        return err_set(err, "&run mode = 'train' needs &data train, a dataset");
    if (s->run.stop_at > s->run.steps)
        return err_set(err, "&run stop_at = %lld is beyond steps = %lld", (long long)s->run.stop_at,
                       (long long)s->run.steps);
    if (s->optimizer.min_learning_rate > s->optimizer.learning_rate && s->optimizer.decay != DECAY_CONSTANT)
        return err_set(err, "&optimizer min_learning_rate = %g is above learning_rate = %g",
                       s->optimizer.min_learning_rate, s->optimizer.learning_rate);
    if (s->optimizer.warmup_steps > s->run.steps)
        return err_set(err, "&optimizer warmup_steps = %lld is more than &run steps = %lld",
                       (long long)s->optimizer.warmup_steps, (long long)s->run.steps);
    if (s->optimizer.decay == DECAY_WSD && s->optimizer.decay_steps + s->optimizer.warmup_steps > s->run.steps)
        return err_set(err, "&optimizer warmup_steps = %lld and decay_steps = %lld together exceed &run steps = %lld",
                       (long long)s->optimizer.warmup_steps, (long long)s->optimizer.decay_steps,
                       (long long)s->run.steps);
    if (s->optimizer.decay == DECAY_WSD && s->optimizer.decay_steps == 0)
        return err_set(err, "&optimizer decay = 'wsd' needs decay_steps, the length of the fall at the end");
    if (s->optimizer.decay != DECAY_WSD && s->optimizer.decay_steps > 0)
        return err_set(err, "&optimizer decay_steps is only for decay = 'wsd', but decay = '%s'",
                       decay_names[s->optimizer.decay]);
    if (s->checkpoint.every > 0 && !s->checkpoint.directory[0])
        return err_set(err, "&checkpoint every = %lld needs directory", (long long)s->checkpoint.every);
    if (s->checkpoint.load_weights[0] && strcmp(s->checkpoint.resume, "auto") != 0 &&
        strcmp(s->checkpoint.resume, "none") != 0)
        return err_set(err, "&checkpoint resume and load_weights both name a file; give one");
    if (s->trace.first_step > 0 && s->trace.last_step < s->trace.first_step)
        return err_set(err, "&trace last_step = %lld is before first_step = %lld", (long long)s->trace.last_step,
                       (long long)s->trace.first_step);
    return 0;
}

/* A search chooses grid and schedule itself. */
static int check_search(const struct settings *s, struct err *err)
{
    if (s->pipeline.global_batch == 0)
        return err_set(err, "&plan devices = %d needs &pipeline global_batch, the sequences of one step",
                       s->plan.devices);
    if (machine_peak(s) <= 0)
        return err_set(err,
                       "&plan devices = %d needs a machine: &machine preset, a name or what mode = 'bench' wrote, or "
                       "its peak in %s",
                       s->plan.devices, precision_names[s->run.precision]);
    if (s->pipeline.balance == BALANCE_EXPLICIT)
        return err_set(err,
                       "&plan devices = %d searches over grids, and &pipeline balance = 'explicit' holds for one; "
                       "set balance = 'cost'",
                       s->plan.devices);
    return 0;
}

int check_settings(struct settings *settings, int world_size, struct err *err)
{
    enum mode_choice mode = settings->run.mode;
    if (mode == MODE_GENERATE)
        return err_set(err, "&run mode = '%s' is not built yet; 'train', 'evaluate', 'plan' and 'bench' are",
                       mode_names[mode]);
    if (settings->run.verbose && settings->run.quiet)
        return err_set(err, "&run verbose and quiet contradict each other; set one of them");
    if (check_built(settings, err) < 0 || check_model(settings, err) < 0 || machine_check(settings, err) < 0)
        return -1;
    if (mode == MODE_PLAN && settings->plan.devices > 0)
        return check_search(settings, err);
    if (mode == MODE_PLAN) { /* whatever grid is asked for */
        int64_t ranks = (int64_t)settings->grid.pipeline * settings->grid.tensor *
                        (settings->grid.data > 0 ? settings->grid.data : 1);
        if (ranks > INT_MAX)
            return err_set(err, "&grid makes %lld ranks, too many to number", (long long)ranks);
        world_size = (int)ranks;
    }
    if (check_grid(settings, world_size, err) < 0 || check_pipeline(settings, err) < 0)
        return -1;
    return check_training(settings, err);
}
