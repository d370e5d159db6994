/* ppmodel: trains and evaluates large sequential models on a 3D grid of MPI ranks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "io/checkpoint.h"
#include "io/file.h"
#include "io/h5.h"
#include "kernels/kernels.h"
#include "parallel/agree.h"
#include "parallel/launch.h"
#include "parallel/watchdog.h"
#include "run/check.h"
#include "run/input_file.h"
#include "run/modes.h"
#include "run/stop.h"
#include "version.h"

static const char help[] = "usage: ppmodel input.nml [group.key=value ...]    under srun or mpiexec\n"
                           "       ppmodel --help | --version | --defaults\n"
                           "       ppmodel --digest checkpoint.h5\n"
                           "\n"
                           "Trains and evaluates transformers on a grid of pipeline x data x tensor ranks.\n"
                           "--defaults prints every key of the input with its default and meaning.\n"
                           "group.key=value overrides the file; strings may be unquoted, lists are 1,4.\n"
                           "Exit codes: 0 done, 2 bad input, 3 not finite, 4 failure, 5 hang, 75 stopped early.\n";

static enum exit_code print_version(void)
{
    char *mpi = job_library();
    struct text out = {0};
    text_add(&out, "ppmodel %s\nMPI:       %s\nHDF5:      %s\nCPU:       %s\nCUDA/NCCL: %s\n", PPMODEL_VERSION, mpi,
             h5_library().text, device_cpu_libraries(), device_cuda_libraries());
    fputs(text_string(&out), stdout);
    text_fini(&out);
    free(mpi);
    return EXIT_DONE;
}

static enum exit_code print_defaults(void)
{
    struct text out = {0};
    settings_defaults_print(&out);
    fputs(text_string(&out), stdout);
    text_fini(&out);
    return EXIT_DONE;
}

static enum exit_code print_digest(const char *path)
{
    struct text out = {0};
    struct err err = {0};
    int result = checkpoint_digest(path, &out, &err);
    fputs(text_string(&out), stdout);
    if (result < 0)
        fprintf(stderr, "ppmodel: error: %s\n", err.text);
    text_fini(&out);
    return result < 0 ? EXIT_BAD_INPUT : EXIT_DONE;
}

/* Rank 0 reads the input, every rank parses it. */
static int read_settings(const struct job *job, char **arguments, int count, struct settings *settings, struct err *err)
{
    struct text text = {0}, messages = {0};
    if (input_file_read(job->world, arguments[0], &text, err) < 0) {
        text_fini(&text);
        return -1;
    }
    int result = settings_parse(settings, text_string(&text), text.length, arguments[0],
                                (const char *const *)arguments + 1, count - 1, &messages);
    if (result < 0 && job->world->rank == 0)
        fputs(text_string(&messages), stderr);
    text_fini(&text);
    text_fini(&messages);
    err->text[0] = 0; /* said already */
    return result;
}

/* Under the watchdog. */
static enum exit_code run_watched(const struct job *job, struct settings *settings)
{
    struct err err;
    bool is_new = job->world->rank == 0 && !file_exists(settings->run.output);
    if (settings->run.quiet)
        log_quiet();
    if (mode_watch(job, settings, &err) < 0)
        return mode_refuse(&err);
    enum exit_code code = settings->run.mode == MODE_TRAIN ? mode_train(job, settings) : mode_evaluate(job, settings);
    watchdog_close(job);
    if (code == EXIT_BAD_INPUT && is_new) /* such a run leaves nothing */
        file_remove_empty(settings->run.output);
    return code;
}

static enum exit_code run_mode(const struct job *job, struct settings *settings)
{
    if (settings->run.mode != MODE_TRAIN)
        stop_close();
    switch (settings->run.mode) {
    case MODE_TRAIN:
    case MODE_EVALUATE:
        return run_watched(job, settings);
    case MODE_PLAN:
        return mode_plan(job, settings);
    case MODE_BENCH:
        return mode_bench(job, settings);
    case MODE_GENERATE:
        break; /* refused by check_settings() */
    }
    return EXIT_BAD_INPUT;
}

static enum exit_code run(const struct job *job, char **arguments, int count)
{
    struct settings *settings = allocate(1, sizeof *settings);
    struct err err = {0};
    enum exit_code code = EXIT_BAD_INPUT;
    settings_init(settings);
    if (read_settings(job, arguments, count, settings, &err) < 0 ||
        input_file_machine(job->world, settings, &err) < 0) {
        if (err.text[0])
            mode_refuse(&err);
    } else {
        log_open(job->world->rank == 0, settings->run.verbose);
        if (agree(job->world, check_settings(settings, job->world->size, &err), &err) < 0)
            mode_refuse(&err);
        else
            code = run_mode(job, settings);
    }
    settings_fini(settings);
    free(settings);
    return code;
}

int main(int argc, char **argv)
{
    const char *first = argc > 1 ? argv[1] : "";
    if (strcmp(first, "--help") == 0) {
        fputs(help, stdout);
        return EXIT_DONE;
    }
    if (strcmp(first, "--version") == 0)
        return print_version();
    if (strcmp(first, "--defaults") == 0)
        return print_defaults();
    if (strcmp(first, "--digest") == 0 && argc == 3)
        return print_digest(argv[2]);

    stop_open();
    struct job job;
    job_begin(&argc, &argv, &job);
    if (job.world->rank == 0)
        stop_speak();
    struct err err = {0};
    bool speaks;
    enum exit_code code = EXIT_BAD_INPUT;
    int launched = launch_check(&job, &speaks, &err);
    log_open(speaks, false);
    if (launched < 0) {
        mode_refuse(&err);
    } else if (argc < 2 || argv[1][0] == '-') {
        if (job.world->rank == 0)
            fprintf(stderr, "ppmodel: error: %s%s\n%s", argc < 2 ? "no input file" : "unknown option ",
                    argc < 2 ? "" : argv[1], help);
    } else {
        code = run(&job, argv + 1, argc - 1);
    }
    job_end(&job);
    return code;
}
