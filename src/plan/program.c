#include "plan/program.h"

#include "pipeline/csv.h"
#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "plan/footprint.h"

struct schedule *program_computations(const struct settings *settings, const struct text *csv, struct err *err)
{
    const struct settings *s = settings;
    const char *name = s->pipeline.schedule_file;
    if (s->pipeline.schedule != SCHEDULE_CSV)
        return generate_schedule(schedule_names[s->pipeline.schedule], s->grid.pipeline, s->pipeline.chunks,
                                 s->pipeline.microbatches, err);
    struct schedule *schedule = csv_parse(name, text_string(csv), csv->length, err);
    if (schedule &&
        csv_check(name, schedule, s->grid.pipeline, s->pipeline.chunks, s->pipeline.microbatches, err) < 0) {
        schedule_destroy(schedule);
        return NULL;
    }
    return schedule;
}

int program_prove(struct proven *proven, struct schedule *computations, struct err *err)
{
    *proven = (struct proven){0};
    if (!computations)
        return -1;
    proven->schedule = lower_schedule(computations, err);
    schedule_destroy(computations);
    if (proven->schedule)
        proven->validation = validate_schedule(proven->schedule, SEND_SLOTS, err);
    if (proven->validation)
        return 0;
    program_release(proven);
    return -1;
}

void program_release(struct proven *proven)
{
    validate_destroy(proven->validation);
    schedule_destroy(proven->schedule);
    *proven = (struct proven){0};
}
