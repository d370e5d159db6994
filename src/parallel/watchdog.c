#include "parallel/watchdog.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/trace.h"
#include "parallel/agree.h"
#include "parallel/comm_nccl.h"
#include "parallel/mpi_check.h"
#include "parallel/verdict.h"

#define BEAT_SECONDS 1.0
#define LOOK_SECONDS 2.5  /* a heart that does not beat in this time is still */
#define SLEPT_SECONDS 5.0 /* a second that took so long: the whole job was stopped, or its computer slept */
#define TELL_SECONDS 4.0  /* after this time whoever has the lock has failed to tell */
#define FILE_SECONDS 1.0  /* for writing JSON files; those that take longer are left out */

enum {
    ABORT_SECONDS = 10 /* from a library's abort() to the end of the process, if the watchdog does not end the job */
};

struct watchdog {
    bool is_open, has_thread;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool stopping;
    atomic_bool aborts; /* a library is about to end this process */
    char *folder;
    double hang_seconds;
    double watched_since; /* clock_seconds() */
    double locked_since;  /* when another rank's lock was seen first; 0: none */
    int descriptor;       /* of the record's file */
    MPI_Win window;       /* the records of this node, one of each rank */
    int node_size;
    struct flight_record **node; /* [node_size] */
};

static struct watchdog dog;

static double wall_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void beat(void)
{
    struct flight_record *record = flight_record(), copy;
    record->now = clock_seconds();
    record->wall = wall_seconds();
    record->beat_again = ++record->beat;
    flight_copy(&copy, record);
    flight_file_write(dog.descriptor, &copy);
}

/* Seconds since this rank ended an instruction, or since the watch began. */
static double idle_seconds(double now)
{
    double last = flight_record()->last_end;
    return now - (last > dog.watched_since ? last : dog.watched_since);
}

/* Sleeps until `end`; false: the watch is over. */
static bool sleep_until(double end)
{
    struct timespec until = {.tv_sec = (time_t)end};
    until.tv_nsec = (long)(1e9 * (end - (double)until.tv_sec));
    pthread_mutex_lock(&dog.mutex);
    while (!dog.stopping && pthread_cond_timedwait(&dog.wake, &dog.mutex, &until) != ETIMEDOUT)
        ;
    bool goes_on = !dog.stopping;
    pthread_mutex_unlock(&dog.mutex);
    return goes_on;
}

/* The records of the node as they are, those of others from their files. */
static void look(struct sighting *sightings, int size)
{
    const uint64_t run = flight_record()->run;
    for (int rank = 0; rank < size; rank++)
        sightings[rank].is_there = false;
    for (int i = 0; i < dog.node_size; i++) {
        struct sighting *sighting = &sightings[dog.node[i]->rank];
        flight_copy(&sighting->record, dog.node[i]);
        sighting->is_there = true;
    }
    for (int rank = 0; rank < size; rank++)
        if (!sightings[rank].is_there)
            sightings[rank].is_there = flight_file_read(dog.folder, rank, run, &sightings[rank].record);
}

/* Looks twice, and keeps the heart beating meanwhile. Seconds since a living rank ended an instruction; -1: the watch
 * is over. */
static double look_twice(struct sighting *sightings, int size)
{
    uint64_t *beats = allocate((size_t)size, sizeof *beats);
    double end = clock_seconds() + LOOK_SECONDS, least = INFINITY;
    look(sightings, size);
    for (int rank = 0; rank < size; rank++)
        beats[rank] = sightings[rank].is_there ? sightings[rank].record.beat : 0;
    bool goes_on = true;
    for (double now = clock_seconds(); goes_on && now < end; now = clock_seconds()) {
        goes_on = sleep_until(fmin(end, now + BEAT_SECONDS));
        beat();
    }
    look(sightings, size);
    for (int rank = 0; rank < size; rank++) {
        struct sighting *sighting = &sightings[rank];
        sighting->lives = sighting->is_there && sighting->record.beat != beats[rank];
        if (sighting->lives)
            least = fmin(least, sighting->record.now - sighting->record.last_end);
    }
    free(beats);
    return goes_on ? least : -1;
}

static void write_files(const struct sighting *sightings, int size, const struct finding_of_rank *found, double wall)
{
    double end = clock_seconds() + FILE_SECONDS;
    flight_files_remove(dog.folder, "json", size); /* of an earlier run on more ranks */
    for (int rank = 0; rank < size && clock_seconds() < end; rank++)
        flight_json_write(dog.folder, rank, &sightings[rank], verdict_standing(found[rank].standing),
                          found[rank].waits_for, wall);
}

static bool all_live(const struct sighting *sightings, int size)
{
    bool live = true;
    for (int rank = 0; rank < size; rank++)
        live = live && sightings[rank].lives;
    return live;
}

/* What is wrong; and where this rank alone dies, counts it as dead already, for the verdict. */
static void tell_what(struct sighting *sightings, int size, double idle, struct text *out)
{
    const int rank = flight_record()->rank;
    if (!dog.aborts) {
        text_add(out,
                 "ppmodel: error: hang: no instruction has ended on any rank for %.1f s (&run hang_seconds = %g)\n",
                 idle, dog.hang_seconds);
        return;
    }
    text_add(out, "ppmodel: error: rank %d: a library ends the process by SIGABRT; what it said stands above\n", rank);
    sightings[rank].lives = !all_live(sightings, size);
}

static void tell(struct sighting *sightings, int size, double idle)
{
    struct finding_of_rank *found = allocate((size_t)size, sizeof *found);
    struct text out = {0};
    double wall = wall_seconds();
    tell_what(sightings, size, idle, &out);
    verdict_find(sightings, size, found);
    verdict_print(sightings, size, found, wall, &out);
    text_add(&out, "  what each rank did before: %s/flight-<rank>.json\n", dog.folder);
    fputs(text_string(&out), stderr);
    fflush(stderr);
    write_files(sightings, size, found, wall);
    text_fini(&out);
    free(found);
}

/* This rank has waited long enough, or is about to die. Tells and ends the job, if no other rank does and, where it
 * has waited, none has ended anything. */
static void inspect(double now)
{
    int size = flight_record()->size;
    if (!flight_lock(dog.folder)) {
        dog.locked_since = dog.locked_since > 0 ? dog.locked_since : now;
        if (now - dog.locked_since > TELL_SECONDS)
            job_abort(dog.aborts ? EXIT_FAILED : EXIT_HANG);
        return;
    }
    dog.locked_since = 0;
    struct sighting *sightings = allocate((size_t)size, sizeof *sightings);
    double idle = look_twice(sightings, size);
    if (dog.aborts || idle > dog.hang_seconds) {
        tell(sightings, size, idle);
        job_abort(dog.aborts ? EXIT_FAILED : EXIT_HANG);
    }
    dog.watched_since = clock_seconds() - fmax(idle, 0); /* others have gone on: look again when they are late, too */
    flight_unlock(dog.folder);
    free(sightings);
}

/* The host waits for its device, and the device for a peer that is gone: only NCCL knows. */
static void look_for_errors(void)
{
    const char *error = comm_nccl_error();
    if (error)
        fatal("%s", error);
}

static void *watch(void *unused)
{
    double asleep = clock_seconds();
    for (;;) {
        beat();
        look_for_errors();
        double now = clock_seconds();
        if (now - asleep > SLEPT_SECONDS)
            dog.watched_since = now;
        double left = dog.hang_seconds - idle_seconds(now);
        if (left <= 0 || dog.aborts)
            inspect(now);
        else
            dog.locked_since = 0;
        asleep = clock_seconds();
        if (!sleep_until(asleep + (left > 0 ? fmin(left, BEAT_SECONDS) : BEAT_SECONDS)))
            return unused;
    }
}

/* A library ends this process. MPI libraries do when they find that another rank has died: UCX when it reads that one's
 * memory. The watchdog tells who is dead, which this process would take along, and ends the job; where it does not,
 * the process ends as it would have. */
static void on_abort(int number)
{
    if (!pthread_equal(pthread_self(), dog.thread)) {
        dog.aborts = true;
        nanosleep(&(struct timespec){.tv_sec = ABORT_SECONDS}, NULL);
    }
    signal(number, SIG_DFL);
    raise(number); /* comes when the handler returns */
}

/* Memory that the ranks of the node share, a record of each; this rank's is moved there. */
static void share_records(const struct job *job)
{
    MPI_Comm node;
    struct flight_record *mine;
    mpi_check(MPI_Comm_split_type(job->world->mpi, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node),
              "MPI_Comm_split_type");
    mpi_check(MPI_Comm_set_errhandler(node, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    mpi_check(MPI_Win_allocate_shared(sizeof *mine, 1, MPI_INFO_NULL, node, &mine, &dog.window),
              "MPI_Win_allocate_shared");
    flight_move(mine);
    mpi_check(MPI_Comm_size(node, &dog.node_size), "MPI_Comm_size");
    dog.node = allocate((size_t)dog.node_size, sizeof(struct flight_record *));
    for (int i = 0; i < dog.node_size; i++) {
        MPI_Aint bytes;
        int unit;
        mpi_check(MPI_Win_shared_query(dog.window, i, &bytes, &unit, &dog.node[i]), "MPI_Win_shared_query");
    }
    mpi_check(MPI_Barrier(node), "MPI_Barrier"); /* all records are there */
    mpi_check(MPI_Comm_free(&node), "MPI_Comm_free");
}

static void forget_records(void)
{
    flight_move(NULL);
    mpi_check(MPI_Win_free(&dog.window), "MPI_Win_free");
    free(dog.node);
}

/* The thread takes no signals: another waits for those. */
static int start_thread(struct err *err)
{
    sigset_t all, before;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&dog.mutex, NULL);
    pthread_cond_init(&dog.wake, &attributes);
    pthread_condattr_destroy(&attributes);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&dog.thread, NULL, watch, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code == 0 ? 0 : err_set(err, "the watchdog's thread cannot be started: %s", strerror(code));
}

static void stop_thread(void)
{
    pthread_mutex_lock(&dog.mutex);
    dog.stopping = true;
    pthread_cond_signal(&dog.wake);
    pthread_mutex_unlock(&dog.mutex);
    pthread_join(dog.thread, NULL);
}

int watchdog_open(const struct job *job, const char *folder, double hang_seconds, struct err *err)
{
    if (hang_seconds <= 0)
        return 0;
    struct flight_record *record = flight_record();
    record->rank = job->world->rank;
    record->size = job->world->size;
    record->process = (int32_t)getpid();
    record->run = (uint64_t)(1e9 * wall_seconds());
    snprintf(record->host, sizeof record->host, "%.63s", job->host);
    if (record->rank == 0) {
        flight_files_remove(folder, "record", 0);
        flight_unlock(folder);
    }
    control_broadcast(job->world, &record->run, sizeof record->run, 0); /* the others make their files later */
    dog = (struct watchdog){.is_open = true, .folder = copy_text(folder), .hang_seconds = hang_seconds};
    share_records(job);
    dog.watched_since = clock_seconds();
    dog.descriptor = flight_file_create(folder, flight_record(), err);
    int result = dog.descriptor < 0 ? -1 : start_thread(err);
    dog.has_thread = result == 0;
    if (dog.has_thread)
        signal(SIGABRT, on_abort);
    if (agree(job->world, result, err) == 0)
        return 0;
    watchdog_close(job);
    return -1;
}

void watchdog_close(const struct job *job)
{
    if (!dog.is_open)
        return;
    if (dog.has_thread) {
        signal(SIGABRT, SIG_DFL);
        stop_thread();
    }
    if (dog.descriptor >= 0)
        close(dog.descriptor);
    struct text path = flight_path(dog.folder, job->world->rank, "record");
    (void)unlink(text_string(&path));
    text_fini(&path);
    if (job->world->rank == 0) {
        flight_files_remove(dog.folder, "json", 0);
        flight_unlock(dog.folder);
    }
    control_barrier(job->world); /* all files are gone */
    forget_records();
    free(dog.folder);
    dog.is_open = false;
}
