#include "run/diagnosis.h"

#include <math.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/memory.h"
#include "parallel/agree.h"
#include "plan/advise.h"
#include "plan/report.h"
#include "run/modes.h"
#include "run/trainer_state.h"

#define SHOWN_RANKS 8 /* beyond that only the one that holds most */

/* What a rank holds. */
struct holding {
    struct footprint predicted;
    double measured; /* bytes of the process at most, without those that it had before its arenas; NAN: unknown */
    double program;  /* these */
};

struct diagnosis {
    const struct trainer *trainer;
    int64_t places;        /* of the longest rank's list */
    double (*times)[2];    /* [places] of the step that is kept, from its start */
    double (*all)[2];      /* [pipeline][places] on rank 0 */
    double last_backward;  /* of that step, the latest rank's; INFINITY: none is kept */
    double seconds;        /* of that step */
    int64_t step;          /* its number */
    int64_t first;         /* step of the run; 0: none yet */
    struct holding *holds; /* [pipeline] on rank 0 */
};

struct diagnosis *diagnosis_create(const struct trainer *trainer)
{
    struct diagnosis *diagnosis = allocate(1, sizeof *diagnosis);
    const struct schedule *schedule = trainer->train.schedule;
    *diagnosis = (struct diagnosis){.trainer = trainer, .last_backward = INFINITY};
    for (int rank = 0; rank < schedule->ranks; rank++)
        if (schedule->lists[rank].count > diagnosis->places)
            diagnosis->places = schedule->lists[rank].count;
    diagnosis->times = allocate((size_t)diagnosis->places, sizeof *diagnosis->times);
    if (trainer->grid.rank == 0) {
        diagnosis->all = allocate((size_t)(schedule->ranks * diagnosis->places), sizeof *diagnosis->all);
        diagnosis->holds = allocate((size_t)schedule->ranks, sizeof *diagnosis->holds);
    }
    return diagnosis;
}

void diagnosis_destroy(struct diagnosis *diagnosis)
{
    if (!diagnosis)
        return;
    free(diagnosis->times);
    free(diagnosis->all);
    free(diagnosis->holds);
    free(diagnosis);
}

void diagnosis_note(struct diagnosis *diagnosis, const struct step_result *step)
{
    const struct trainer *trainer = diagnosis->trainer;
    if (diagnosis->first == 0)
        diagnosis->first = trainer->step;
    else if (step->last_backward >= diagnosis->last_backward && diagnosis->step != diagnosis->first)
        return;
    diagnosis->step = trainer->step;
    diagnosis->last_backward = step->last_backward;
    diagnosis->seconds = step->seconds;
    const double(*times)[2] = executor_times(trainer->train.executor);
    for (int64_t i = 0; i < trainer->train.schedule->lists[trainer->grid.p].count; i++) {
        bool computed = times[i][1] > 0;
        diagnosis->times[i][0] = computed ? times[i][0] - trainer->start : 0;
        diagnosis->times[i][1] = computed ? times[i][1] - trainer->start : 0;
    }
}

/* From the pipeline ranks with equal d and t to the first of them; only rank 0 makes use of it. */
static void gather(const struct diagnosis *diagnosis)
{
    const struct trainer *trainer = diagnosis->trainer;
    const struct grid *grid = &trainer->grid;
    const double resident = (double)trainer->resident;
    struct holding mine = {.predicted = trainer->memory,
                           .measured = resident > 0 ? (double)trainer->context.device->memory_peak() - resident : NAN,
                           .program = resident};
    void *times = diagnosis->all, *holds = diagnosis->holds;
    if (grid->p == 0 && grid->rank != 0) {
        times = allocate((size_t)(grid->pipeline * diagnosis->places), sizeof *diagnosis->all);
        holds = allocate((size_t)grid->pipeline, sizeof mine);
    }
    control_gather(grid->gradients, times, diagnosis->times, (size_t)diagnosis->places * sizeof *diagnosis->times, 0);
    control_gather(grid->gradients, holds, &mine, sizeof mine, 0);
    if (grid->rank != 0) {
        free(times);
        free(holds);
    }
}

static void add_json(const struct diagnosis *diagnosis, const struct measured *measured, const struct finding *findings,
                     int count, struct text *out)
{
    enum {
        DIGITS = 10
    };
    text_add(out, "{");
    json_count(out, "step", diagnosis->step);
    json_real(out, "seconds", diagnosis->seconds, DIGITS);
    json_real(out, "makespan", measured->makespan, DIGITS);
    json_real(out, "bubble", measured->bubble, DIGITS);
    json_real(out, "latency", measured->latency, DIGITS);
    text_add(out, ",\n\"ranks\": [");
    for (int p = 0; p < diagnosis->trainer->grid.pipeline; p++) {
        const struct simulate_rank *rank = &measured->ranks[p];
        const struct holding *holds = &diagnosis->holds[p];
        text_add(out, p ? ",\n {" : "{");
        json_count(out, "pipeline", p);
        json_real(out, "busy", rank->busy, DIGITS);
        json_real(out, "fill", rank->fill, DIGITS);
        json_real(out, "drain", rank->drain, DIGITS);
        json_real(out, "imbalance", rank->imbalance, DIGITS);
        json_real(out, "communication", rank->communication, DIGITS);
        json_count(out, "predicted_bytes", (int64_t)footprint_total(&holds->predicted));
        json_real(out, "measured_bytes", holds->measured, 17);
        text_add(out, "}");
    }
    text_add(out, "],\n\"findings\": ");
    report_findings_json(findings, count, out);
    text_add(out, "}\n");
}

/* Rank 0's part: everything is there. */
static int conclude(struct diagnosis *diagnosis, struct text *out, struct err *err)
{
    const struct trainer *trainer = diagnosis->trainer;
    const struct measured_step step = {.schedule = trainer->train.schedule,
                                       .times = (const double(*)[2])diagnosis->all,
                                       .places = diagnosis->places,
                                       .live = trainer->train.validation->rank_peak_sets,
                                       .seconds = diagnosis->seconds};
    struct text json = {0};
    struct planning planning;
    struct measured measured;
    struct finding findings[DIAGNOSE_KINDS];
    if (planning_init(&planning, trainer->settings, trainer->context.device, &json, err) < 0)
        return -1;
    int result = measured_take(&measured, &step, err);
    if (result == 0) {
        struct footprint *memory = allocate((size_t)trainer->grid.pipeline, sizeof *memory);
        for (int p = 0; p < trainer->grid.pipeline; p++)
            memory[p] = diagnosis->holds[p].predicted;
        int count = advise_measured(&planning, &step, &measured, trainer->first_layer, memory,
                                    planner_memory_limit(trainer->settings), findings);
        free(memory);
        report_measured(&step, &measured, diagnosis->step, out);
        report_findings(findings, count, out);
        add_json(diagnosis, &measured, findings, count, &json);
        measured_fini(&measured);
        result = mode_write_text(trainer->settings, "diagnosis.json", &json, err);
    }
    planning_fini(&planning);
    text_fini(&json);
    return result;
}

int diagnosis_report(struct diagnosis *diagnosis, struct text *out, struct err *err)
{
    const struct trainer *trainer = diagnosis->trainer;
    int result = 0;
    gather(diagnosis);
    if (trainer->grid.rank == 0)
        result = conclude(diagnosis, out, err);
    diagnosis->last_backward = INFINITY;
    return agree(trainer->grid.world, result, err);
}

void diagnosis_memory(const struct diagnosis *diagnosis, struct text *out)
{
    const int ranks = diagnosis->trainer->grid.pipeline;
    int most = 0;
    for (int p = 1; p < ranks; p++)
        if (diagnosis->holds[p].measured > diagnosis->holds[most].measured)
            most = p;
    for (int p = 0; p < ranks; p++) {
        const struct holding *holds = &diagnosis->holds[p];
        if (isfinite(holds->measured) && (ranks <= SHOWN_RANKS || p == most))
            text_add(out, "  memory of p%-5d %s predicted, %s measured at most, beside %s of the program itself\n", p,
                     text_bytes((double)footprint_total(&holds->predicted)).text, text_bytes(holds->measured).text,
                     text_bytes(holds->program).text);
    }
}

void diagnosis_of_memory(const struct settings *settings, const struct device *device, double limit, struct text *out)
{
    struct planning planning;
    struct forecast forecast;
    struct err err;
    const struct text no_table = {0}; /* another schedule is what is looked for */
    if (planning_init(&planning, settings, device, &no_table, &err) < 0)
        return;
    const struct candidate candidate = planning_candidate(settings);
    if (forecast_make(&forecast, &planning, &candidate, &err) == 0) {
        struct finding findings[DIAGNOSE_KINDS];
        int count = advise_forecast(&planning, &forecast, limit, findings);
        for (int i = 0; i < count; i++)
            if (findings[i].what == DIAGNOSE_MEMORY)
                report_findings(&findings[i], 1, out);
        forecast_fini(&forecast);
    }
    planning_fini(&planning);
}
