/* How a job ends when a transfer between devices fails. Without arguments this program starts itself under mpiexec,
 * once for each way to fail below, and looks at the message and the exit code; with them it is a rank of such a job. */
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parallel/comm_nccl.h"
#include "parallel/grid.h"
#include "parallel/job.h"
#include "parallel/watchdog.h"
#include "tests/device_choice.h"
#include "tests/failing.h"

enum {
    RANKS = 4
};

static const struct failure {
    const char *name;    /* the first argument; the second is a folder */
    const char *message; /* part of the one line that is printed */
} FAILURES[] = {
    {"gone", "ppmodel: rank 1 (p1 d0 t0) step 3 FORWARD: NCCL: remote process exited"},
    {"gone-awaited", "a transfer under way: remote process exited"},
    {"far", "ppmodel: rank 1 (p1 d0 t0) step 3 FORWARD: rank 1 of 4 has no neighbour 3 for messages"},
    {"left-open", "a communicator is closed with 1 transfers under way"},
};
enum {
    FAILURES_COUNT = sizeof FAILURES / sizeof FAILURES[0]
};

/* From then on NCCL's function below, which stands before the library's, reports an error. */
static volatile bool is_broken;

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    (void)comm;
    *error = is_broken ? ncclRemoteError : ncclSuccess;
    return ncclSuccess;
}

/* Rank 1 fails in the way told, the others wait for the end. */
static int fail(const char *how, const char *folder, int argc, char **argv)
{
    struct job job;
    struct grid grid;
    struct err err;
    job_begin(&argc, &argv, &job);
    const char *reason = device_choice_open_for(argv[0], job.node_rank, job.node_size);
    if (reason || comm_nccl_load(&err) < 0)
        fatal("%s", reason ? reason : err.text);
    struct stream *stream = cuda->stream_open();
    void *buffer = cuda->allocate(64);
    grid_open(&grid, job.world, RANKS, 1, 1, cuda, stream);
    error_set_activity("step 3 FORWARD");
    bool is_watched = strcmp(how, "gone") == 0;
    if (watchdog_open(&job, folder, is_watched ? 60 : 0, &err) < 0)
        fatal("%s", err.text);
    struct communicator *comm = grid.activations;
    if (job.world->rank == 1) {
        is_broken = strncmp(how, "gone", 4) == 0;
        if (strcmp(how, "gone-awaited") == 0)
            comm->ops->wait(comm->ops->receive(comm, buffer, 64, 0, 0));
        if (strcmp(how, "far") == 0)
            comm->ops->send(comm, buffer, 64, 3, 0);
        if (strcmp(how, "left-open") == 0) {
            comm->ops->receive(comm, buffer, 64, 0, 0);
            communicator_close(comm);
        }
    }
    for (;;)
        pause();
}

static void check(const struct failure *failure, const char *program)
{
    const char *launcher = getenv("MPIEXEC"), *count = getenv("MPIEXEC_NP");
    char command[4096], text[65536], folder[] = "/tmp/nccl_failures.XXXXXX";
    if (!mkdtemp(folder))
        fatal("no folder can be made in /tmp");
    snprintf(command, sizeof command, "timeout 60 %s %s %d '%s' %s %s 2>&1", launcher ? launcher : "mpiexec",
             count ? count : "-n", RANKS, program, failure->name, folder);
    int code = run_command(command, text, sizeof text);
    char message[4096];
    int lines = messages_in(text, message, sizeof message);
    ok(strstr(message, failure->message) && lines == 1, "%s: one message that says what failed", failure->name);
    tap_note("%s", message);
    if (!ok(code == EXIT_FAILED, "%s: the job ends with code %d", failure->name, EXIT_FAILED))
        tap_note("code %d", code);
    snprintf(command, sizeof command, "rm -r %s", folder);
    run_command(command, text, sizeof text);
}

int main(int argc, char **argv)
{
    if (argc > 2)
        return fail(argv[1], argv[2], argc, argv);
    const char *reason = device_choice_open(argv[0]);
    struct err err;
    const char *program = own_program();
    if (reason)
        return tap_skip_all(reason);
    if (device_cuda_count(&err) < RANKS || !program)
        return tap_skip_all("there are fewer than four CUDA devices");
    for (int i = 0; i < FAILURES_COUNT; i++)
        check(&FAILURES[i], program);
    return tap_done();
}
