#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/memory.h"
#include "parallel/agree.h"
#include "pipeline/csv.h"
#include "plan/advise.h"
#include "plan/report.h"
#include "run/input_file.h"
#include "run/modes.h"

/* (stage, microbatch) pairs beyond which schedule.csv would be of no use to anyone. */
#define CSV_CELLS (INT64_C(1) << 23)

/* And beyond which the predicted trace is left out: it has some 600 bytes for each. */
#define TRACE_CELLS (INT64_C(1) << 15)

/* The settings with the configuration filled in, to be trained as they are. */
static int write_best(const struct settings *settings, const struct planning *planning, const struct forecast *forecast,
                      struct err *err)
{
    const struct candidate *c = &forecast->candidate;
    struct settings *best = allocate(1, sizeof *best);
    struct text text = {0};
    settings_copy(best, settings);
    best->run.mode = MODE_TRAIN;
    forecast_choose(best, c);
    best->pipeline.global_batch = (int64_t)c->microbatches * c->microbatch_size * c->data;
    best->plan.devices = 0;
    best->pipeline.balance = BALANCE_EXPLICIT;
    struct settings_list *list = &best->pipeline.stage_layers;
    free(list->items);
    *list = (struct settings_list){allocate((size_t)forecast->stages, sizeof *list->items), forecast->stages};
    for (int stage = 0; stage < forecast->stages; stage++)
        list->items[stage] =
            model_blocks(&planning->model, forecast->first_layer[stage], forecast->first_layer[stage + 1]);
    settings_print(best, &text);
    int result = mode_write_text(settings, "best.nml", &text, err);
    settings_fini(best);
    free(best);
    text_fini(&text);
    return result;
}

/* schedule.csv and, where it is small, the drawing. */
static int write_schedule(const struct settings *settings, const struct text *file, const struct candidate *c,
                          struct text *report, struct err *err)
{
    if ((int64_t)c->pipeline * c->chunks * c->microbatches > CSV_CELLS) {
        text_add(report, "schedule.csv is left out: %d stages with %d microbatches make it too large\n",
                 c->pipeline * c->chunks, c->microbatches);
        return 0;
    }
    struct settings *own = allocate(1, sizeof *own); /* lists are the settings' own */
    *own = *settings;
    own->grid.pipeline = c->pipeline;
    own->pipeline.schedule = c->schedule;
    own->pipeline.chunks = c->chunks;
    own->pipeline.microbatches = c->microbatches;
    struct schedule *schedule = program_computations(own, file, err);
    free(own);
    if (!schedule)
        return -1;
    struct text csv = {0};
    csv_print(schedule, &csv);
    int result = mode_write_text(settings, "schedule.csv", &csv, err);
    if (result == 0)
        result = report_timeline(schedule, report, err);
    text_fini(&csv);
    schedule_destroy(schedule);
    return result;
}

/* predicted-trace.json, where it is of a size that a viewer shows. */
static int write_trace(const struct settings *settings, const struct planning *planning,
                       const struct forecast *forecast, struct text *report, struct err *err)
{
    const struct candidate *c = &forecast->candidate;
    if ((int64_t)c->pipeline * c->chunks * c->microbatches > TRACE_CELLS) {
        text_add(report, "predicted-trace.json is left out: %d stages with %d microbatches make it too large\n",
                 c->pipeline * c->chunks, c->microbatches);
        return 0;
    }
    char *trace = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&trace, &length);
    int result = out ? forecast_trace(forecast, planning, out, err) : 0;
    if (!out || fclose(out) != 0)
        fatal("out of host memory: the trace of a simulated step");
    struct text text = {0};
    text_add_bytes(&text, trace, length);
    if (result == 0)
        result = mode_write_text(settings, "predicted-trace.json", &text, err);
    text_fini(&text);
    free(trace);
    return result;
}

static int write_json(const struct settings *settings, const struct planning *planning, const struct plan *plan,
                      const struct forecast *forecast, const struct finding *findings, int count, struct err *err)
{
    struct text json = {0};
    report_json(planning, plan, forecast, findings, count, &json);
    int result = mode_write_text(settings, "plan.json", &json, err);
    text_fini(&json);
    return result;
}

/* Reports on one configuration, the one given or the best of a search, and writes the files. */
static int report_on(const struct settings *settings, const struct planning *planning, const struct plan *plan,
                     const struct candidate *candidate, struct text *report, struct err *err)
{
    struct forecast forecast;
    struct finding findings[DIAGNOSE_KINDS];
    if (forecast_make(&forecast, planning, candidate, err) < 0)
        return -1;
    int count = advise_forecast(planning, &forecast, planner_memory_limit(settings), findings);
    text_add(report, plan ? "\nThe fastest\n" : "\n");
    report_forecast(planning, &forecast, findings, count, report);
    int result = write_schedule(settings, planning->csv, candidate, report, err);
    if (result == 0)
        result = write_json(settings, planning, plan, &forecast, findings, count, err);
    if (result == 0)
        result = write_trace(settings, planning, &forecast, report, err);
    if (result == 0)
        result = write_best(settings, planning, &forecast, err);
    text_add(report, "written      %s/plan.json, schedule.csv, predicted-trace.json and best.nml\n",
             settings->run.output);
    forecast_fini(&forecast);
    return result;
}

static int search(const struct settings *settings, const struct planning *planning, struct text *report,
                  struct err *err)
{
    struct plan plan;
    planner_run(&plan, planning);
    report_plan(planning, &plan, report);
    int result;
    if (plan.best_count > 0) {
        result = report_on(settings, planning, &plan, &plan.best[0].candidate, report, err);
    } else {
        result = write_json(settings, planning, &plan, NULL, NULL, 0, err);
        if (result == 0)
            result = err_set(err,
                             "no configuration of &plan devices = %d trains this model%s; what was rejected is told "
                             "above and in %s/plan.json",
                             settings->plan.devices, isinf(plan.memory_limit) ? "" : " in the memory there is",
                             settings->run.output);
    }
    planner_fini(&plan);
    return result;
}

static int make_plan(const struct settings *settings, const struct text *csv, struct err *err)
{
    struct planning planning;
    struct text report = {0};
    const struct device *cuda = settings->run.device == DEVICE_CUDA ? device_cuda_outline() : NULL;
    if (planning_init(&planning, settings, cuda ? cuda : device_cpu(1), csv, err) < 0)
        return -1;
    report_machine(&planning, &report);
    struct candidate given = planning_candidate(settings);
    int result = settings->plan.devices > 0 ? search(settings, &planning, &report, err)
                                            : report_on(settings, &planning, NULL, &given, &report, err);
    log_text(text_string(&report));
    text_fini(&report);
    planning_fini(&planning);
    return result;
}

enum exit_code mode_plan(const struct job *job, struct settings *settings)
{
    struct err err = {0};
    struct text csv = {0};
    int result = mode_write_resolved(job, settings, &err);
    if (result == 0 && settings->pipeline.schedule == SCHEDULE_CSV)
        result = input_file_read(job->world, settings->pipeline.schedule_file, &csv, &err);
    if (result == 0) /* rank 0 alone plans, whatever the grid */
        result = agree(job->world, job->world->rank == 0 ? make_plan(settings, &csv, &err) : 0, &err);
    text_fini(&csv);
    return result < 0 ? mode_refuse(&err) : EXIT_DONE;
}
