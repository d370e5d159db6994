#include <stdlib.h>

#include "base/memory.h"
#include "parallel/comm_mpi.h"
#include "parallel/flight.h"
#include "parallel/mpi_check.h"

enum {
    MAX_MESSAGE = 1 << 30, /* bytes in one MPI call, whose counts are int */
    FIRST_ROOM = 64        /* messages; doubled when it is not enough, so that a steady state allocates nothing */
};

/* What is told about a message when it fails. */
struct message {
    struct transfer *owner;
    int bytes, peer;
    bool receives;
};

struct engine {
    int users; /* communicators */
    int count, room;
    MPI_Request *requests;    /* [room], the first `count` are under way, the rest NULL */
    struct message *messages; /* [room], of the same places */
    int *finished;            /* [room], as MPI_Testsome reports them */
    MPI_Status *statuses;     /* [room], of the finished ones */
    struct transfer *free;    /* the pool */
};

static void *grow(void *memory, int room, size_t size)
{
    void *larger = realloc(memory, (size_t)room * size);
    if (!larger)
        fatal("out of host memory: %d messages under way", room);
    return larger;
}

static void make_room(struct engine *engine, int room)
{
    engine->requests = grow(engine->requests, room, sizeof *engine->requests);
    engine->messages = grow(engine->messages, room, sizeof *engine->messages);
    engine->finished = grow(engine->finished, room, sizeof *engine->finished);
    engine->statuses = grow(engine->statuses, room, sizeof *engine->statuses);
    engine->room = room;
}

struct engine *comm_mpi_engine_open(void)
{
    struct engine *engine = allocate(1, sizeof *engine);
    engine->users = 1;
    make_room(engine, FIRST_ROOM);
    return engine;
}

struct engine *comm_mpi_engine_share(struct engine *engine)
{
    engine->users++;
    return engine;
}

void comm_mpi_engine_close(struct engine *engine)
{
    if (--engine->users > 0)
        return;
    while (engine->free) {
        struct transfer *transfer = engine->free;
        engine->free = transfer->next;
        free(transfer->sum.terms);
        free(transfer);
    }
    free(engine->requests);
    free(engine->messages);
    free(engine->finished);
    free(engine->statuses);
    free(engine);
}

struct transfer *comm_mpi_transfer(struct comm_mpi *comm)
{
    struct engine *engine = comm->engine;
    struct transfer *transfer = engine->free;
    if (transfer)
        engine->free = transfer->next;
    else
        transfer = allocate(1, sizeof *transfer); /* freed by comm_mpi_engine_close */
    transfer->comm = comm;
    transfer->next = NULL;
    transfer->pending = 0;
    transfer->peer = -1;
    transfer->sequence = 0;
    transfer->then = NULL;
    comm->under_way++;
    return transfer;
}

static void check(int code, const struct message *message)
{
    mpi_check(code, "%s of %d bytes %s rank %d", message->receives ? "MPI_Irecv" : "MPI_Isend", message->bytes,
              message->receives ? "from" : "to", message->peer);
}

/* The place of a new message, to be filled by MPI. */
static MPI_Request *place(struct transfer *transfer, struct message message)
{
    struct engine *engine = transfer->comm->engine;
    if (engine->count == engine->room)
        make_room(engine, 2 * engine->room);
    transfer->pending++;
    engine->messages[engine->count] = message;
    return &engine->requests[engine->count++];
}

void comm_mpi_post_send(struct transfer *transfer, MPI_Comm mpi, const void *buffer, size_t bytes, int to, int tag)
{
    const char *part = buffer;
    do {
        int count = bytes < MAX_MESSAGE ? (int)bytes : MAX_MESSAGE;
        struct message message = {.owner = transfer, .bytes = count, .peer = to, .receives = false};
        check(MPI_Isend(part, count, MPI_BYTE, to, tag, mpi, place(transfer, message)), &message);
        part += count;
        bytes -= (size_t)count;
    } while (bytes > 0);
}

void comm_mpi_post_receive(struct transfer *transfer, MPI_Comm mpi, void *buffer, size_t bytes, int from, int tag)
{
    char *part = buffer;
    do {
        int count = bytes < MAX_MESSAGE ? (int)bytes : MAX_MESSAGE;
        struct message message = {.owner = transfer, .bytes = count, .peer = from, .receives = true};
        check(MPI_Irecv(part, count, MPI_BYTE, from, tag, mpi, place(transfer, message)), &message);
        part += count;
        bytes -= (size_t)count;
    } while (bytes > 0);
}

void comm_mpi_advance(struct transfer *transfer)
{
    while (transfer->pending == 0 && transfer->then) {
        void (*then)(struct transfer *) = transfer->then;
        transfer->then = NULL;
        then(transfer);
    }
}

/* MPI reports a message that is too long, not one that is too short. */
static void check_length(const struct message *message, const MPI_Status *status)
{
    int bytes;
    check(MPI_Get_count(status, MPI_BYTE, &bytes), message);
    if (bytes != message->bytes)
        fatal("rank %d sent %d bytes where %d were expected", message->peer, bytes, message->bytes);
}

bool comm_mpi_poll(struct engine *engine)
{
    if (engine->count == 0)
        return false;
    int finished;
    int code = MPI_Testsome(engine->count, engine->requests, &finished, engine->finished, engine->statuses);
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS)
        mpi_check(code, "MPI_Testsome");
    if (finished == 0)
        return false;

    struct transfer *ready = NULL;
    for (int i = 0; i < finished; i++) {
        const struct message *message = &engine->messages[engine->finished[i]];
        if (code == MPI_ERR_IN_STATUS)
            check(engine->statuses[i].MPI_ERROR, message);
        if (message->receives)
            check_length(message, &engine->statuses[i]);
        struct transfer *owner = message->owner;
        if (--owner->pending == 0) {
            owner->next = ready;
            ready = owner;
        }
    }

    int kept = 0; /* MPI has set the finished requests to null */
    for (int i = 0; i < engine->count; i++)
        if (engine->requests[i] != MPI_REQUEST_NULL) {
            engine->requests[kept] = engine->requests[i];
            engine->messages[kept++] = engine->messages[i];
        }
    engine->count = kept;

    while (ready) { /* advancing posts messages: only now that the list is in order again */
        struct transfer *transfer = ready;
        ready = transfer->next;
        comm_mpi_advance(transfer);
    }
    return true;
}

static bool is_done(const struct transfer *transfer)
{
    return transfer->pending == 0 && !transfer->then;
}

static void release(struct transfer *transfer)
{
    struct engine *engine = transfer->comm->engine;
    transfer->comm->under_way--;
    transfer->next = engine->free;
    engine->free = transfer;
}

bool comm_mpi_test(struct transfer *transfer)
{
    if (!is_done(transfer))
        comm_mpi_poll(transfer->comm->engine);
    if (!is_done(transfer))
        return false;
    release(transfer);
    return true;
}

static void poll_until_done(const struct transfer *transfer)
{
    int polls = 0;
    while (!is_done(transfer))
        if (comm_mpi_poll(transfer->comm->engine))
            polls = 0;
        else
            communicator_pause(&polls);
}

void comm_mpi_wait(struct transfer *transfer)
{
    if (!is_done(transfer)) {
        if (transfer->peer >= 0)
            flight_begin_wait(FLIGHT_MESSAGE, transfer->peer, -1, FLIGHT_SUMS, 0);
        else
            flight_begin_wait(FLIGHT_SUM, -1, transfer->comm->base.flight, FLIGHT_SUMS, transfer->sequence);
        poll_until_done(transfer);
        flight_end();
    }
    release(transfer);
}
