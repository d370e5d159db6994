/* How a job ends when something fails on one rank. Without arguments this program starts itself under mpiexec, once for
 * each way to fail below, and looks at the messages and the exit code; with one argument it is a rank that fails. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "parallel/grid.h"
#include "parallel/job.h"
#include "tests/failing.h"
#include "tests/tap.h"

struct failure {
    const char *name;       /* the argument */
    int code;               /* of the job */
    const char *message[3]; /* parts of the one line that is printed */
};

static const struct failure FAILURES[] = {
    {"bad-send",
     EXIT_FAILED,
     {"ppmodel: rank 1 (p1 d0 t0) step 3 SEND: MPI_Isend of 4194304 bytes to rank 99: ", "rank"}},
    {"bad-receive",
     EXIT_FAILED,
     {"ppmodel: rank 1 (p1 d0 t0) step 3 SEND: MPI_Irecv of 16 bytes from rank 99: ", "rank"}},
    {"bad-root", EXIT_FAILED, {"rank 1 (p1 d0 t0) step 3 SEND: MPI_Ibcast of control data: ", "root"}},
    {"too-long", EXIT_FAILED, {"rank 1 (p1 d0 t0) step 3 SEND: MPI_Irecv of 16 bytes from rank 0: ", "runcat"}},
    {"too-short", EXIT_FAILED, {"rank 1 (p1 d0 t0) step 3 SEND: rank 0 sent 8 bytes where 16 were expected"}},
    {"left-open", EXIT_FAILED, {"rank 1 (p1 d0 t0) step 3 SEND: a communicator is closed with 1 transfers under way"}},
    {"bad-grid", EXIT_FAILED, {"a grid of 2 x 1 x 1 does not fit 3 ranks"}},
    {"hang", EXIT_HANG, {"rank 1 (p1 d0 t0) step 3 SEND: waited too long"}},
};
enum {
    FAILURES_COUNT = sizeof FAILURES / sizeof FAILURES[0]
};

/* Rank 1 fails in the way told, the others wait for it. */
static int fail(const char *how, int argc, char **argv)
{
    char *buffer = allocate(1, 4 << 20);
    struct job job;
    job_begin(&argc, &argv, &job);
    struct grid grid;
    if (strcmp(how, "bad-grid") == 0) {
        if (job.world->rank != 1)
            control_barrier(job.world);
        grid_open(&grid, job.world, 2, 1, 1, device_cpu(1), NULL);
    }
    grid_open(&grid, job.world, job.world->size, 1, 1, device_cpu(1), NULL);
    struct communicator *comm = grid.activations;
    error_set_activity("step 3 SEND");
    size_t bytes = strcmp(how, "too-long") == 0 ? 100000 : 8;
    if (comm->rank == 0)
        comm->ops->send(comm, buffer, bytes, 1, 5);
    if (comm->rank != 1)
        control_barrier(job.world);
    if (strcmp(how, "bad-send") == 0)
        comm->ops->wait(comm->ops->send(comm, buffer, 4 << 20, 99, 5));
    if (strcmp(how, "bad-receive") == 0)
        comm->ops->wait(comm->ops->receive(comm, buffer, 16, 99, 5));
    if (strcmp(how, "bad-root") == 0)
        control_broadcast(comm, buffer, 16, -7);
    if (strcmp(how, "too-long") == 0 || strcmp(how, "too-short") == 0)
        comm->ops->wait(comm->ops->receive(comm, buffer, 16, 0, 5));
    if (strcmp(how, "left-open") == 0) {
        comm->ops->receive(comm, buffer, 8, 2, 5);
        communicator_close(comm);
    }
    if (strcmp(how, "hang") == 0)
        fatal_code(EXIT_HANG, "waited too long");
    job_end(&job);
    return EXIT_DONE;
}

static void check(const struct failure *failure, const char *program)
{
    const char *launcher = getenv("MPIEXEC"), *count = getenv("MPIEXEC_NP");
    char command[4096], text[65536];
    snprintf(command, sizeof command, "%s %s 3 '%s' %s 2>&1", launcher ? launcher : "mpiexec", count ? count : "-n",
             program, failure->name);
    int code = run_command(command, text, sizeof text);

    bool holds = true;
    char message[4096];
    int lines = messages_in(text, message, sizeof message);
    for (int i = 0; i < 3 && failure->message[i]; i++)
        holds = holds && strstr(message, failure->message[i]);
    ok(holds && lines == 1, "%s: one message that says what failed", failure->name);
    tap_note("%s", message);
    if (!ok(code == failure->code, "%s: the job ends with code %d", failure->name, failure->code))
        tap_note("code %d", code);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return fail(argv[1], argc, argv);
    const char *program = own_program();
    if (!program)
        return tap_skip_all("this system does not tell where the program is");
    for (int i = 0; i < FAILURES_COUNT; i++)
        check(&FAILURES[i], program);
    return tap_done();
}
