/* What &run mode chooses. */
#ifndef RUN_MODES_H
#define RUN_MODES_H

#include "base/settings.h"
#include "parallel/job.h"

/* Each runs to the end and returns the program's exit code, the same on all ranks; messages were printed. `settings`
 * were checked. Collective over the job. */
enum exit_code mode_train(const struct job *job, struct settings *settings);
enum exit_code mode_evaluate(const struct job *job, struct settings *settings);
enum exit_code mode_bench(const struct job *job, struct settings *settings);
enum exit_code mode_plan(const struct job *job, struct settings *settings);

/* Shared by modes. */

/* Prints the error once and returns EXIT_BAD_INPUT. */
enum exit_code mode_refuse(const struct err *err);

/* Makes &run output and starts the watchdog there. Collective. */
int mode_watch(const struct job *job, const struct settings *settings, struct err *err);

/* Makes &run output and, to train, &checkpoint directory, and writes resolved.nml. Collective. */
int mode_write_resolved(const struct job *job, const struct settings *settings, struct err *err);

/* Writes a file of that name in &run output. Local. */
int mode_write_text(const struct settings *settings, const char *name, const struct text *text, struct err *err);

/* Threads of a rank: &run threads, else OMP_NUM_THREADS, else its share of the cores. Collective. */
int mode_threads(const struct job *job, const struct settings *settings);

/* Warns where the ranks of a node have more threads than cores. `threads` of this rank. Collective. */
void mode_warn_crowded(const struct job *job, int threads);

struct trainer;
struct dataset;

/* Opens a dataset and checks that it fits the model and holds `samples` samples. Collective. */
int mode_open_dataset(const struct job *job, const struct settings *settings, const char *path, int64_t samples,
                      struct dataset **dataset, struct err *err);

/* Loads what &checkpoint resume and load_weights name; `whole`: with moments and step. *path says what was loaded ("":
 * nothing), at most 4096 bytes. Damaged files of `directory` are named and skipped. Collective. */
int mode_resume(const struct job *job, const struct settings *settings, struct trainer *trainer, bool whole,
                char path[SETTINGS_STRING_MAX + 32], struct err *err);

#endif
