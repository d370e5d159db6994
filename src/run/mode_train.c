#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/trace.h"
#include "io/dataset.h"
#include "model/family.h"
#include "parallel/agree.h"
#include "parallel/flight.h"
#include "plan/machine.h"
#include "plan/planner.h"
#include "run/diagnosis.h"
#include "run/metrics.h"
#include "run/modes.h"
#include "run/stop.h"
#include "run/trainer.h"

#define DIAGNOSE_AFTER 5 /* steps */

/* The run as it goes. */
struct training {
    const struct job *job;
    struct settings *settings;
    struct trainer *trainer;
    struct dataset *dataset, *validation;
    struct metrics *metrics; /* on rank 0 */
    struct diagnosis *diagnosis;
    char resumed[SETTINGS_STRING_MAX + 32];
    int64_t first_step, last_step; /* of this run */
    double begin, seconds;         /* when the first step began; time in steps */
    double first_loss, last_loss, validation_loss;
    double bubbles;                                        /* sum over steps */
    double longest_step, longest_evaluation, longest_save; /* seconds, so far */
};

static int64_t tokens_per_step(const struct settings *settings)
{
    return settings->pipeline.global_batch * settings->model.sequence;
}

static void write_numbers(struct training *t, const struct step_result *step)
{
    const struct settings *s = t->settings;
    int64_t number = trainer_steps_done(t->trainer);
    double tokens = (double)tokens_per_step(s);
    metrics_real(t->metrics, "loss", step->loss);
    metrics_real(t->metrics, "gradient_norm", step->gradient_norm);
    metrics_real(t->metrics, "learning_rate", step->learning_rate);
    metrics_count(t->metrics, "tokens", number * tokens_per_step(s));
    metrics_real(t->metrics, "seconds", step->seconds);
    metrics_real(t->metrics, "tokens_per_second", tokens / step->seconds);
    metrics_real(t->metrics, "bubble", step->bubble);
    metrics_count(t->metrics, "peak_memory_bytes", (int64_t)step->peak_memory);
    if (machine_peak(s) > 0)
        metrics_real(t->metrics, "mfu",
                     trainer_flops_per_step(t->trainer) / (step->seconds * machine_peak(s) * t->job->world->size));
    if (s->optimizer.skip_outliers > 0)
        metrics_count(t->metrics, "skipped", step->skips);
}

static bool at(int64_t step, int64_t every)
{
    return every > 0 && step % every == 0;
}

/* The line of the step; collective where it has a digest. */
static void write_step(struct training *t, const struct step_result *step)
{
    int64_t number = trainer_steps_done(t->trainer);
    bool numbers = at(number, t->settings->run.log_every), digest = at(number, t->settings->run.digest_every);
    char text[24] = "";
    if (digest)
        snprintf(text, sizeof text, "%016" PRIx64, trainer_digest(t->trainer));
    if (!t->metrics || !(numbers || digest))
        return;
    metrics_begin(t->metrics, number);
    if (numbers)
        write_numbers(t, step);
    if (digest)
        metrics_text(t->metrics, "digest", text);
    metrics_end(t->metrics);
}

static void show_step(const struct training *t, const struct step_result *step)
{
    int64_t number = trainer_steps_done(t->trainer);
    double left = (double)(t->last_step - number) * t->seconds / (double)(number - t->first_step + 1);
    log_progress((double)number / (double)t->settings->run.steps,
                 "step %lld/%lld  loss %.4f  norm %.3f  lr %.2e  %.0f tokens/s  bubble %.3f%s%s", (long long)number,
                 (long long)t->settings->run.steps, step->loss, step->gradient_norm, step->learning_rate,
                 (double)tokens_per_step(t->settings) / step->seconds, step->bubble, left > 0 ? "  left " : "",
                 left > 0 ? text_duration(left).text : "");
}

static void evaluate(struct training *t)
{
    const struct settings *s = t->settings;
    int64_t samples = dataset_samples(t->validation, s->model.sequence), batches = s->run.evaluate_batches;
    if (batches > 0 && batches <= samples / s->pipeline.global_batch)
        samples = batches * s->pipeline.global_batch;
    double evaluation_begin = clock_seconds();
    t->validation_loss = trainer_evaluate(t->trainer, t->validation, samples);
    t->longest_evaluation = fmax(t->longest_evaluation, clock_seconds() - evaluation_begin);
    if (isfinite(t->validation_loss))
        log_line("step %lld  validation loss %.4f  (%lld samples)", (long long)trainer_steps_done(t->trainer),
                 t->validation_loss, (long long)samples);
    else
        log_warning("step %lld: the validation loss is not finite; the training goes on",
                    (long long)trainer_steps_done(t->trainer));
    if (t->metrics) {
        metrics_begin(t->metrics, trainer_steps_done(t->trainer));
        metrics_real(t->metrics, "validation_loss", t->validation_loss);
        metrics_end(t->metrics);
    }
}

/* The loss of a model that knows how often each token comes and nothing else, in nats; over at most the first 64 Mi
 * tokens. Rank 0 counts. */
static double unigram_entropy(const struct training *t, struct err *err)
{
    enum {
        CHUNK = 1 << 16
    };
    int64_t *counts = allocate((size_t)dataset_vocabulary(t->dataset), sizeof *counts);
    int32_t *tokens = allocate(CHUNK, sizeof *tokens);
    int64_t chunks = dataset_samples(t->dataset, CHUNK), total = 0;
    int64_t length = CHUNK;
    if (chunks == 0) { /* a short dataset: in samples of the model's length */
        length = t->settings->model.sequence;
        chunks = dataset_samples(t->dataset, length);
    }
    if (chunks > 1024)
        chunks = 1024;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        if (dataset_read(t->dataset, &chunk, 1, length, 0, tokens, err) < 0)
            fatal("%s", err->text);
        for (int64_t i = 0; i < length; i++)
            counts[tokens[i]]++;
        total += length;
    }
    double entropy = 0;
    for (int64_t i = 0; i < dataset_vocabulary(t->dataset); i++)
        if (counts[i] > 0)
            entropy -= (double)counts[i] / (double)total * log((double)counts[i] / (double)total);
    free(counts);
    free(tokens);
    return entropy;
}

/* What the run says about itself; ends the job when the file cannot be written. Collective. */
static void diagnose_run(const struct training *t, struct text *out)
{
    struct err err;
    if (diagnosis_report(t->diagnosis, out, &err) < 0)
        fatal("%s", err.text);
}

/* Collective. */
static void summarize(const struct training *t, struct err *err)
{
    const struct settings *s = t->settings;
    int64_t steps = trainer_steps_done(t->trainer) - t->first_step + 1;
    if (steps <= 0) {
        log_line("Nothing to do: %s is at step %lld of %lld.", t->resumed, (long long)trainer_steps_done(t->trainer),
                 (long long)s->run.steps);
        return;
    }
    struct text findings = {0}, memory = {0};
    diagnose_run(t, &findings);
    if (t->job->world->rank != 0)
        return;
    diagnosis_memory(t->diagnosis, &memory);
    flight_begin(FLIGHT_SUMMARIZE);
    double entropy = unigram_entropy(t, err);
    flight_end();
    const char *unit = dataset_vocabulary(t->dataset) == 256 ? "byte" : "token";
    log_line("%s", "");
    log_line("Summary of steps %lld to %lld", (long long)t->first_step, (long long)trainer_steps_done(t->trainer));
    log_line("  first loss        %.4f nats, %.4f bits per %s", t->first_loss, t->first_loss / log(2), unit);
    log_line("  last loss         %.4f nats, %.4f bits per %s", t->last_loss, t->last_loss / log(2), unit);
    if (t->validation && isfinite(t->validation_loss))
        log_line("  validation loss   %.4f nats, %.4f bits per %s", t->validation_loss, t->validation_loss / log(2),
                 unit);
    log_line("  unigram entropy   %.4f nats, %.4f bits per %s: the loss of knowing only how often each %s comes",
             entropy, entropy / log(2), unit, unit);
    log_line("  throughput        %.0f tokens/s over %s", (double)(steps * tokens_per_step(s)) / t->seconds,
             text_duration(t->seconds).text);
    const struct expectation expected = trainer_expected(t->trainer);
    log_line("  bubble            %.3f measured, %.3f expected", t->bubbles / (double)steps, expected.bubble);
    if (isfinite(expected.seconds))
        log_line("  step              %s on average, %s expected", text_duration(t->seconds / (double)steps).text,
                 text_duration(expected.seconds).text);
    log_text(text_string(&memory));
    log_text(text_string(&findings));
    log_line("  metrics           %s/metrics.jsonl", s->run.output);
    log_line("  resolved input    %s/resolved.nml", s->run.output);
    if (s->checkpoint.directory[0])
        log_line("  checkpoint        %s/step-%08lld.h5", s->checkpoint.directory,
                 (long long)trainer_steps_done(t->trainer));
    if (trainer_steps_done(t->trainer) < s->run.steps)
        log_line("Stopped at step %lld of %lld; the same command goes on from here when stop_at is raised.",
                 (long long)trainer_steps_done(t->trainer), (long long)s->run.steps);
    else if (s->checkpoint.directory[0])
        log_line("Next: train on with run.steps=%lld, or evaluate with run.mode=evaluate on any grid.",
                 (long long)(2 * s->run.steps));
    text_fini(&findings);
    text_fini(&memory);
}

static enum exit_code stop_early(const struct training *t, enum stop_reason reason)
{
    log_line("Stopped after step %lld of %lld by %s; %s", (long long)trainer_steps_done(t->trainer),
             (long long)t->settings->run.steps, stop_text(reason),
             t->settings->checkpoint.directory[0] ? "a checkpoint is written: run the same command again to go on"
                                                  : "nothing is saved, because &checkpoint directory is not set");
    if (t->job->world->rank == 0)
        stop_done(t->settings, reason);
    return EXIT_STOPPED;
}

/* This rank's request to stop behind the step under way. */
static int request_stop(void *of)
{
    const struct training *t = of;
    const int64_t number = trainer_steps_done(t->trainer) + 1, every = t->settings->run.evaluate_every;
    const int evaluations = at(number, every) + at(number + 1, every);
    return (int)stop_requested(t->settings, t->job->world->rank,
                               2 * t->longest_step + 2 * t->longest_save + evaluations * t->longest_evaluation);
}

/* The steps. EXIT_DONE, or the code to end with. */
static enum exit_code train(struct training *t, struct err *err)
{
    const struct settings *s = t->settings;
    t->begin = clock_seconds();
    while (trainer_steps_done(t->trainer) < t->last_step) {
        int64_t number = trainer_steps_done(t->trainer) + 1;
        bool traced = s->trace.first_step > 0 && number >= s->trace.first_step && number <= s->trace.last_step;
        if (traced && !trace_is_open())
            trainer_begin_trace(t->trainer);
        struct step_result step;
        trainer_step(t->trainer, request_stop, t, &step);
        if (!step.finite) {
            log_error("%s; no weight was changed", step.trouble.text);
            return EXIT_NONFINITE;
        }
        t->seconds += step.seconds;
        t->bubbles += step.bubble;
        t->last_loss = step.loss;
        t->longest_step = fmax(t->longest_step, step.seconds);
        if (number == t->first_step)
            t->first_loss = step.loss;
        diagnosis_note(t->diagnosis, &step);
        write_step(t, &step);
        show_step(t, &step);
        if (step.skipped)
            log_line("step %lld skipped: %s", (long long)number, step.reason.text);
        bool last = number == t->last_step;
        if (number == t->first_step + DIAGNOSE_AFTER - 1 && !last) {
            struct text findings = {0};
            diagnose_run(t, &findings);
            log_text(text_string(&findings));
            text_fini(&findings);
        }
        if (s->trace.first_step > 0 && (number == s->trace.last_step || (last && trace_is_open()))) {
            if (trainer_end_trace(t->trainer, t->begin, err) < 0)
                return mode_refuse(err);
        }
        if (t->validation && (at(number, s->run.evaluate_every) || last))
            evaluate(t);
        if (s->checkpoint.directory[0] && (at(number, s->checkpoint.every) || last || step.stop)) {
            double save_begin = clock_seconds();
            if (trainer_save(t->trainer, err) < 0) {
                log_error("%s", err->text);
                return EXIT_FAILED;
            }
            t->longest_save = fmax(t->longest_save, clock_seconds() - save_begin);
        }
        if (step.stop && !last)
            return stop_early(t, (enum stop_reason)step.stop);
        if (step.stop && t->job->world->rank == 0)
            stop_done(s, (enum stop_reason)step.stop);
    }
    return EXIT_DONE;
}

/* Where a rank would need more memory than &plan memory_gib or than there is for it, what would need less. */
static void advise_memory(const struct training *t)
{
    const struct device *device = trainer_device(t->trainer);
    struct text text = {0};
    if (t->job->world->rank != 0 || !device)
        return;
    const double ranks = device->host_memory ? t->job->node_size : 1; /* that share it */
    const double share = (double)device->memory_size() / ranks;
    diagnosis_of_memory(t->settings, device, fmin(planner_memory_limit(t->settings), share), &text);
    log_text(text_string(&text));
    text_fini(&text);
}

static int prepare(struct training *t, struct err *err)
{
    const struct settings *s = t->settings;
    if (mode_open_dataset(t->job, s, s->data.train, s->pipeline.global_batch, &t->dataset, err) < 0)
        return -1;
    if (s->data.validation[0] && mode_open_dataset(t->job, s, s->data.validation, 1, &t->validation, err) < 0)
        return -1;
    struct model model;
    if (model_create(&model, s, err) < 0)
        return -1;
    if (trainer_create(&t->trainer, t->job, t->settings, &model, true, err) < 0) {
        advise_memory(t);
        return -1;
    }
    if (mode_resume(t->job, s, t->trainer, true, t->resumed, err) < 0 || mode_write_resolved(t->job, s, err) < 0)
        return -1;
    t->first_step = trainer_steps_done(t->trainer) + 1;
    t->last_step = s->run.stop_at > 0 ? s->run.stop_at : s->run.steps;
    int result = 0;
    if (t->job->world->rank == 0)
        result = metrics_open(&t->metrics, s->run.output, t->first_step - 1, err);
    return agree(t->job->world, result, err);
}

enum exit_code mode_train(const struct job *job, struct settings *settings)
{
    struct err err = {0};
    struct training t = {.job = job, .settings = settings, .validation_loss = NAN};
    enum exit_code code = EXIT_DONE;
    if (prepare(&t, &err) < 0) {
        code = mode_refuse(&err);
    } else {
        trainer_describe(t.trainer);
        mode_warn_crowded(job, settings->run.threads);
        log_line("dataset      %s, %lld tokens, %lld samples%s%s", settings->data.train,
                 (long long)dataset_tokens(t.dataset), (long long)dataset_samples(t.dataset, settings->model.sequence),
                 t.resumed[0] ? "; from " : "", t.resumed);
        trainer_begin(t.trainer, t.dataset);
        t.diagnosis = diagnosis_create(t.trainer);
        code = train(&t, &err);
        if (code == EXIT_DONE)
            summarize(&t, &err);
    }
    trace_close();
    metrics_close(t.metrics);
    dataset_close(t.dataset);
    dataset_close(t.validation);
    diagnosis_destroy(t.diagnosis);
    trainer_destroy(t.trainer);
    return code;
}
