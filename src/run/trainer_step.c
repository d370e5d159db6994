#include <math.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/trace.h"
#include "model/learning_rate.h"
#include "parallel/flight.h"
#include "run/replay.h"
#include "run/trainer_state.h"

#define NO_END INT64_MAX

static void layer_begin(void *of, int local_layer)
{
    struct trainer *trainer = of;
    bucket_queue_wait_weights(trainer->queue, local_layer);
}

static void layer_done(void *of, int local_layer)
{
    struct trainer *trainer = of;
    gradients_layer_done(trainer->gradients, local_layer);
}

static void progress(void *of)
{
    struct trainer *trainer = of;
    bucket_queue_progress(trainer->queue);
}

/* While the first messages are on their way the next step's batch is read. */
static void read_next_batch(void *of)
{
    struct trainer *trainer = of;
    if (trainer->step + 1 < trainer->settings->run.steps)
        batch_read(&trainer->batches[1 - trainer->present], trainer->dataset, &trainer->order,
                   trainer->samples + trainer->settings->pipeline.global_batch, NO_END);
}

void trainer_begin(struct trainer *trainer, struct dataset *dataset)
{
    trainer->dataset = dataset;
    trainer->order = (struct sample_order){.samples = dataset_samples(dataset, trainer->model.sequence),
                                           .seed = (uint64_t)trainer->settings->run.seed,
                                           .shuffle = trainer->settings->data.shuffle};
    if (trainer->step < trainer->settings->run.steps)
        batch_read(&trainer->batches[trainer->present], dataset, &trainer->order, trainer->samples, NO_END);
}

/* Sum of this rank's losses; 0 on ranks without the loss, and on all but one of the tensor ranks, which have the same.
 */
static double sum_losses(struct trainer *trainer, const struct executor *executor, const struct batch *batch)
{
    const struct device *device = trainer->context.device;
    const int64_t rows = batch->shape.microbatch_size * batch->shape.sequence;
    const float *losses = executor_losses(executor, 0);
    double sum = 0;
    if (!losses || trainer->grid.t != 0)
        return 0;
    device->copy(trainer->context.stream, trainer->losses, losses, trainer->losses_bytes);
    device->stream_wait(trainer->context.stream);
    for (int m = 0; m < batch->shape.microbatches; m++)
        for (int64_t row = 0; row < batch->sequences[m] * batch->shape.sequence; row++)
            sum += trainer->losses[m * rows + row];
    return sum;
}

/* The parts of the vector that the ranks exchange in a step; each entry is written by one rank and 0 elsewhere. */
struct exchange {
    double *squares;       /* [logical parameters, T] */
    double *losses;        /* [D] */
    double *busy;          /* [ranks] seconds */
    double *last_backward; /* [ranks] seconds since the step's start */
    double *memory;        /* [ranks] bytes */
    double *stop;          /* [ranks] */
};

static struct exchange exchange_of(const struct trainer *trainer)
{
    struct exchange x;
    x.squares = trainer->vector;
    x.losses = x.squares + (int64_t)trainer->parameters.logical_count * trainer->grid.tensor;
    x.busy = x.losses + trainer->grid.data;
    x.last_backward = x.busy + trainer->grid.size;
    x.memory = x.last_backward + trainer->grid.size;
    x.stop = x.memory + trainer->grid.size;
    return x;
}

/* Updates bucket after bucket, in the order of the next step's forwards; behind each one, where the optimizer is
 * sharded, its weights start on their way. */
static void update(struct trainer *trainer, double norm, double learning_rate)
{
    const struct settings *s = trainer->settings;
    const double clip = s->optimizer.clip_norm > 0 ? fmin(1, s->optimizer.clip_norm / (norm + 1e-6)) : 1;
    const double step = (double)(trainer->step + 1 - trainer->outliers.skipped); /* the moments know no skipped ones */
    const struct adamw adamw = {.learning_rate = learning_rate,
                                .beta1 = s->optimizer.beta1,
                                .beta2 = s->optimizer.beta2,
                                .epsilon = s->optimizer.epsilon,
                                .weight_decay = s->optimizer.weight_decay,
                                .correction1 = 1 - pow(s->optimizer.beta1, step),
                                .correction2 = 1 - pow(s->optimizer.beta2, step),
                                .scale = clip};
    const struct device *device = trainer->context.device;
    const struct shards *shards = &trainer->shards;
    flight_begin(FLIGHT_UPDATE_WEIGHTS);
    for (int b = 0; b < shards->bucket_count; b++) {
        const struct bucket *bucket = &shards->buckets[b];
        if (bucket->first_end != b)
            continue;
        device->adamw(trainer->context.stream, trainer->weights, trainer->first_moment, trainer->second_moment,
                      trainer->gradient_arena, trainer->memory.computed > 0 ? trainer->computed : NULL,
                      shards->ranges + bucket->first_range, bucket->ranges, &adamw);
        if (!shards->sharded)
            continue;
        bucket_queue_gather(trainer->queue, b);
    }
    device->stream_wait(trainer->context.stream);
    flight_end();
}

void trainer_step(struct trainer *trainer, int (*stop)(void *of), void *of, struct step_result *result)
{
    const struct settings *s = trainer->settings;
    const struct grid *grid = &trainer->grid;
    const struct batch *batch = &trainer->batches[trainer->present];
    double start = trainer->start = clock_seconds();
    *result = (struct step_result){.learning_rate = learning_rate_at(s, trainer->step + 1)};
    error_set_place("rank %d (p%d d%d t%d) step %lld", grid->rank, grid->p, grid->d, grid->t,
                    (long long)trainer->step + 1);
    flight_step(trainer->step + 1);

    struct executor_step run = {.number = trainer->step + 1,
                                .sequences = batch->sequences,
                                .fields = (const int32_t *const *)batch->fields,
                                .layer_begin = layer_begin,
                                .layer_done = layer_done,
                                .between = read_next_batch,
                                .progress = progress,
                                .of = trainer};
    struct executor_result ran;
    executor_run(trainer->train.executor, &run, &ran);

    error_set_activity("OPTIMIZER_STEP");
    flight_begin(OPTIMIZER_STEP);
    double computed = clock_seconds();
    gradients_finish(trainer->gradients);
    trace_record_own("FINISH_GRADIENTS", TRACE_COMPUTE, computed, run.number);
    double finished = clock_seconds();
    memset(trainer->vector, 0, (size_t)trainer->vector_count * sizeof *trainer->vector);
    struct exchange x = exchange_of(trainer);
    gradients_squares(trainer->gradients, x.squares);
    x.losses[grid->d] = sum_losses(trainer, trainer->train.executor, batch);
    x.busy[grid->rank] = ran.busy;
    x.last_backward[grid->rank] = ran.last_backward - start;
    x.memory[grid->rank] = (double)trainer->context.device->memory_peak();
    x.stop[grid->rank] = stop ? stop(of) : 0;
    flight_begin(FLIGHT_NORM_AGREEMENT);
    control_sum(grid->world, trainer->vector, trainer->vector_count);
    flight_end();
    trace_record_own("GRADIENT_NORM", TRACE_COMPUTE, finished, run.number);

    double squares = 0, loss = 0, busy = 0, last = 0;
    for (int64_t i = 0; i < (int64_t)trainer->parameters.logical_count * grid->tensor; i++)
        squares += x.squares[i];
    for (int d = 0; d < grid->data; d++)
        loss += x.losses[d];
    for (int rank = 0; rank < grid->size; rank++) {
        busy += x.busy[rank];
        last = fmax(last, x.last_backward[rank]);
        result->peak_memory = fmax(result->peak_memory, x.memory[rank]);
        result->stop = x.stop[rank] > result->stop ? (int)x.stop[rank] : result->stop;
    }
    result->loss = loss * trainer->context.loss_scale;
    result->gradient_norm = sqrt(squares);
    result->last_backward = last;
    result->bubble = 1 - busy / (grid->size * last);
    result->finite = isfinite(result->loss) && isfinite(result->gradient_norm);
    if (result->finite) {
        result->skipped = outliers_judge(&trainer->outliers, s->optimizer.skip_outliers, result->loss,
                                         result->gradient_norm, &result->reason);
        result->skips = trainer->outliers.skipped;
        double agreed = clock_seconds();
        if (!result->skipped)
            update(trainer, result->gradient_norm, result->learning_rate);
        trace_record_own("OPTIMIZER_STEP", TRACE_COMPUTE, agreed, run.number);
        trainer->step++;
        trainer->samples += s->pipeline.global_batch;
        trainer->present = 1 - trainer->present;
    } else {
        replay_step(trainer, x.squares, x.losses, &result->trouble);
    }
    flight_end();
    error_set_activity(NULL);
    trace_record_own("STEP", TRACE_STEP, start, run.number);
    result->seconds = clock_seconds() - start;
}

/* Of each microbatch; a device that works behind the host also runs the rest of a ragged one, on whatever tokens are
 * there, because products of a new shape would have to be chosen while receives wait (executor_warm_up). */
static const int64_t *sequences_to_run(struct trainer *trainer, const struct batch *batch)
{
    if (trainer->context.device->host_memory)
        return batch->sequences;
    for (int m = 0; m < batch->shape.microbatches; m++)
        trainer->whole[m] = batch->sequences[m] > 0 ? batch->shape.microbatch_size : 0;
    return trainer->whole;
}

double trainer_evaluate(struct trainer *trainer, struct dataset *dataset, int64_t samples)
{
    const struct grid *grid = &trainer->grid;
    struct batch *batch = &trainer->evaluation_batch;
    const struct sample_order order = {.samples = dataset_samples(dataset, trainer->model.sequence)};
    const int64_t at_once = trainer->settings->pipeline.global_batch;
    if (trainer->queue)
        bucket_queue_drain(trainer->queue);
    flight_begin(FLIGHT_EVALUATE);
    double sum = 0, begin = clock_seconds();
    for (int64_t place = 0; place < samples; place += at_once) {
        batch_read(batch, dataset, &order, place, samples);
        struct executor_step run = {.number = -1,
                                    .sequences = sequences_to_run(trainer, batch),
                                    .fields = (const int32_t *const *)batch->fields};
        struct executor_result ran;
        executor_run(trainer->evaluate.executor, &run, &ran);
        sum += sum_losses(trainer, trainer->evaluate.executor, batch);
    }
    memset(trainer->vector, 0, (size_t)grid->data * sizeof *trainer->vector);
    trainer->vector[grid->d] = sum;
    control_sum(grid->world, trainer->vector, grid->data);
    flight_end();
    double total = 0;
    for (int d = 0; d < grid->data; d++)
        total += trainer->vector[d];
    trace_record_own("EVALUATE", TRACE_STEP, begin, trainer->step);
    return total / ((double)samples * (double)trainer->model.sequence);
}
