#include "run/modes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "io/checkpoint.h"
#include "io/dataset.h"
#include "io/file.h"
#include "parallel/agree.h"
#include "parallel/flight.h"
#include "parallel/launch.h"
#include "parallel/watchdog.h"
#include "run/trainer.h"

enum exit_code mode_refuse(const struct err *err)
{
    log_error("%s", err->text);
    return EXIT_BAD_INPUT;
}

int mode_write_text(const struct settings *settings, const char *name, const struct text *text, struct err *err)
{
    struct text path = {0};
    text_add(&path, "%s/%s", settings->run.output, name);
    FILE *file = fopen(text_string(&path), "w");
    bool good = file && fwrite(text_string(text), 1, text->length, file) == text->length;
    int result = 0;
    if (!file || fclose(file) != 0 || !good)
        result = err_set(err, "cannot write %s: %s", text_string(&path), strerror(errno));
    text_fini(&path);
    return result;
}

int mode_watch(const struct job *job, const struct settings *settings, struct err *err)
{
    int result = job->world->rank == 0 ? file_make_folders(settings->run.output, err) : 0;
    if (agree(job->world, result, err) < 0)
        return -1;
    return watchdog_open(job, settings->run.output, settings->run.hang_seconds, err);
}

int mode_write_resolved(const struct job *job, const struct settings *settings, struct err *err)
{
    int result = 0;
    if (job->world->rank == 0) {
        struct text text = {0};
        settings_print(settings, &text);
        result = file_make_folders(settings->run.output, err);
        if (result == 0 && settings->run.mode == MODE_TRAIN && settings->checkpoint.directory[0])
            result = file_make_folders(settings->checkpoint.directory, err);
        if (result == 0)
            result = mode_write_text(settings, "resolved.nml", &text, err);
        text_fini(&text);
    }
    return agree(job->world, result, err);
}

int mode_threads(const struct job *job, const struct settings *settings)
{
    const char *openmp = getenv("OMP_NUM_THREADS");
    int cores = job_cores(job);
    if (settings->run.threads > 0)
        return settings->run.threads;
    return openmp && atoi(openmp) > 0 ? atoi(openmp) : cores;
}

void mode_warn_crowded(const struct job *job, int threads)
{
    struct err err = {0};
    int cores = launch_cores(job), result = 0;
    if (job->node_size * threads > cores)
        result = err_set(&err,
                         "%d rank%s of %d thread%s share %d core%s on %s and will wait for each other: start fewer "
                         "ranks, set &run threads, or give the ranks more cores (srun --cpus-per-task, mpiexec's "
                         "binding)",
                         job->node_size, job->node_size == 1 ? "" : "s", threads, threads == 1 ? "" : "s", cores,
                         cores == 1 ? "" : "s", job->host);
    if (agree(job->world, result, &err) < 0)
        log_warning("%s", err.text);
}

int mode_open_dataset(const struct job *job, const struct settings *settings, const char *path, int64_t samples,
                      struct dataset **dataset, struct err *err)
{
    flight_begin(FLIGHT_OPEN_DATASET);
    int opened = dataset_open(dataset, job->world, path, err);
    flight_end();
    if (opened < 0) {
        struct err cause = *err;
        return err_set(err, "%s; &data train and validation name datasets, and ppmodel-pack makes them from any files",
                       cause.text);
    }
    int64_t vocabulary = dataset_vocabulary(*dataset), sequence = settings->model.sequence;
    int64_t have = dataset_samples(*dataset, sequence);
    int result = 0;
    if (vocabulary > settings->model.vocabulary)
        result = err_set(err, "%s has a vocabulary of %lld, but &model vocabulary = %d; set it to at least %lld", path,
                         (long long)vocabulary, settings->model.vocabulary, (long long)vocabulary);
    else if (have < samples)
        result = err_set(err,
                         "%s holds %lld tokens, %lld samples of &model sequence = %lld, but one batch takes %lld; use "
                         "more data, a shorter sequence or a smaller batch",
                         path, (long long)dataset_tokens(*dataset), (long long)have, (long long)sequence,
                         (long long)samples);
    if (result < 0) {
        dataset_close(*dataset);
        *dataset = NULL;
    }
    return result;
}

/* The newest file of the directory that loads; 0 with an empty path when there is none. */
static int resume_newest(const struct job *job, const struct settings *settings, struct trainer *trainer, bool whole,
                         char *path, struct err *err)
{
    char **paths;
    int count, result = 0;
    if (checkpoint_list(job->world, settings->checkpoint.directory, &paths, &count, err) < 0)
        return -1;
    for (int i = 0; i < count && !path[0]; i++) {
        result = trainer_load(trainer, paths[i], whole, err);
        if (result == 0)
            snprintf(path, SETTINGS_STRING_MAX + 32, "%s", paths[i]);
        else if (i + 1 < count)
            log_warning("%s; skipped, the next older one is tried", err->text);
    }
    checkpoint_list_free(paths, count);
    return result;
}

int mode_resume(const struct job *job, const struct settings *settings, struct trainer *trainer, bool whole,
                char path[SETTINGS_STRING_MAX + 32], struct err *err)
{
    const char *resume = settings->checkpoint.resume, *directory = settings->checkpoint.directory;
    bool none = strcmp(resume, "none") == 0, newest = strcmp(resume, "auto") == 0;
    path[0] = 0;
    if (!none && !newest) {
        snprintf(path, SETTINGS_STRING_MAX + 32, "%s", resume);
        return trainer_load(trainer, path, whole, err);
    }
    if (newest && directory[0] && resume_newest(job, settings, trainer, whole, path, err) < 0)
        return -1;
    if (none && directory[0] && whole) {
        char **paths;
        int count;
        if (checkpoint_list(job->world, directory, &paths, &count, err) < 0)
            return -1;
        if (count > 0)
            err_set(err,
                    "&checkpoint resume = 'none', but %s holds checkpoints (%s); remove them, name another directory, "
                    "or resume = 'auto'",
                    directory, paths[0]);
        checkpoint_list_free(paths, count);
        if (count > 0)
            return -1;
    }
    if (!path[0] && settings->checkpoint.load_weights[0]) {
        snprintf(path, SETTINGS_STRING_MAX + 32, "%s", settings->checkpoint.load_weights);
        return trainer_load(trainer, path, false, err);
    }
    return 0;
}
