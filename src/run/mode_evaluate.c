#include <math.h>

#include "base/log.h"
#include "io/checkpoint.h"
#include "io/dataset.h"
#include "model/family.h"
#include "parallel/agree.h"
#include "run/metrics.h"
#include "run/modes.h"
#include "run/trainer.h"

/* All of the dataset, or its first evaluate_batches batches. */
static int64_t samples_of(const struct settings *settings, const struct dataset *dataset)
{
    int64_t all = dataset_samples(dataset, settings->model.sequence);
    int64_t batches = settings->run.evaluate_batches, batch = settings->pipeline.global_batch;
    return batches > 0 && batches <= all / batch ? batches * batch : all;
}

/* `path`: whose weights these are. */
static int evaluate(const struct job *job, struct settings *settings, struct trainer *trainer, struct dataset *dataset,
                    const char *path, struct err *err)
{
    int64_t samples = samples_of(settings, dataset);
    double loss = trainer_evaluate(trainer, dataset, samples);
    log_line("weights         %s", path);
    log_line("dataset         %s, %lld samples of %d tokens", settings->data.validation, (long long)samples,
             settings->model.sequence);
    if (isfinite(loss))
        log_line("validation loss %.6f nats per token (%.6f bits, perplexity %.4f)", loss, loss / log(2), exp(loss));
    else
        log_warning("the validation loss is not finite");
    int result = 0;
    if (job->world->rank == 0) {
        struct metrics *metrics;
        result = metrics_open(&metrics, settings->run.output, INT64_MAX, err);
        if (result == 0) {
            metrics_begin(metrics, checkpoint_step(path) < 0 ? 0 : checkpoint_step(path));
            metrics_real(metrics, "validation_loss", loss);
            metrics_count(metrics, "tokens", samples * settings->model.sequence);
            metrics_end(metrics);
            metrics_close(metrics);
        }
    }
    return agree(job->world, result, err);
}

enum exit_code mode_evaluate(const struct job *job, struct settings *settings)
{
    struct err err = {0};
    struct trainer *trainer = NULL;
    struct dataset *dataset = NULL;
    struct model model;
    char path[SETTINGS_STRING_MAX + 32];
    int result = mode_open_dataset(job, settings, settings->data.validation, 1, &dataset, &err);
    if (result == 0)
        result = model_create(&model, settings, &err);
    if (result == 0)
        result = trainer_create(&trainer, job, settings, &model, false, &err);
    if (result == 0)
        result = mode_resume(job, settings, trainer, false, path, &err);
    if (result == 0 && !path[0])
        result = err_set(&err, "&run mode = 'evaluate': %s holds no checkpoint", settings->checkpoint.directory);
    if (result == 0)
        result = mode_write_resolved(job, settings, &err);
    if (result == 0) {
        trainer_describe(trainer);
        mode_warn_crowded(job, settings->run.threads);
        result = evaluate(job, settings, trainer, dataset, path, &err);
    }
    dataset_close(dataset);
    trainer_destroy(trainer);
    return result < 0 ? mode_refuse(&err) : EXIT_DONE;
}
