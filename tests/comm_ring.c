/* Messages between neighbours in the memory of their devices, queued behind computations and ahead of others. */
#include <unistd.h>

#include "tests/comm_vectors.h"

enum {
    MESSAGES = 3 /* under way in each direction */
};

static unsigned char letter(size_t k, int message, int from, int to)
{
    return (unsigned char)(k * 7 + (size_t)message * 31 + (size_t)from * 101 + (size_t)to * 57);
}

struct parcel {
    int peer, number;
    unsigned char *buffer, *other, *host; /* other: made from, or copied into */
    struct transfer *transfer;
};

static void parcel_open(struct parcel *parcel, struct communicator *ring, int peer, int number, size_t bytes)
{
    *parcel = (struct parcel){.peer = peer, .number = number};
    parcel->buffer = device->allocate(bytes);
    parcel->other = device->allocate(bytes);
    parcel->host = allocate(bytes + 1, 1);
    for (size_t k = 0; k < bytes; k++)
        parcel->host[k] = letter(k, number, ring->rank, peer);
    device->copy(stream, parcel->other, parcel->host, bytes);
}

static void parcel_close(struct parcel *parcel, size_t bytes)
{
    device->stream_wait(stream);
    device->release(parcel->buffer, bytes);
    device->release(parcel->other, bytes);
    free(parcel->host);
}

/* With both neighbours, each way; all receives are posted first, and all orders of waiting differ. */
static void check_messages(struct communicator *ring)
{
    const size_t sizes[] = {0, 1, 4095, 65537, 300001};
    int next = (ring->rank + 1) % ring->size, before = (ring->rank + ring->size - 1) % ring->size;
    int peers = ring->size > 2 ? 2 : 1, count = peers * MESSAGES;
    for (int s = 0; s < 5; s++) {
        size_t bytes = sizes[s];
        struct parcel out[2 * MESSAGES], in[2 * MESSAGES];
        for (int i = 0; i < count; i++) {
            parcel_open(&out[i], ring, i % peers ? before : next, i / peers, bytes);
            parcel_open(&in[i], ring, i % peers ? before : next, i / peers, bytes);
        }
        for (int i = 0; i < count; i++)
            in[i].transfer = ring->ops->receive(ring, in[i].buffer, bytes, in[i].peer, 5);
        if (ring->rank == 0)
            usleep(5000);
        for (int i = 0; i < count; i++) {
            device->copy(stream, out[i].buffer, out[i].other, bytes);
            out[i].transfer = ring->ops->send(ring, out[i].buffer, bytes, out[i].peer, 5);
            ring->ops->join(out[i].transfer);
            device->zero(stream, out[i].buffer, bytes);
        }
        bool holds = true;
        for (int i = count - 1; i >= 0; i--) {
            ring->ops->join(in[i].transfer);
            device->copy(stream, in[i].other, in[i].buffer, bytes);
            device->zero(stream, in[i].buffer, bytes);
        }
        for (int i = 0; i < count; i++) {
            int which = (i + ring->rank) % count;
            end(ring, in[which].transfer, i % 2);
            end(ring, out[count - 1 - which].transfer, i % 2 == 0);
        }
        for (int i = 0; i < count; i++) {
            device->copy(stream, in[i].host, in[i].other, bytes);
            device->stream_wait(stream);
            for (size_t k = 0; k < bytes; k++)
                holds = holds && in[i].host[k] == letter(k, in[i].number, in[i].peer, ring->rank);
            parcel_close(&in[i], bytes);
            parcel_close(&out[i], bytes);
        }
        ok(holds, "messages of %zu bytes, both ways with each neighbour, receives posted ahead", bytes);
    }
}

/* Messages one after another out of one vector and into another, which the device reads meanwhile; round the ring. */
static void check_reuse(struct communicator *ring)
{
    enum {
        TURNS = 6
    };
    const int64_t count = 3001;
    const size_t bytes = (size_t)count * sizeof(float);
    int next = (ring->rank + 1) % ring->size, before = (ring->rank + ring->size - 1) % ring->size;
    struct vector out = make_empty(ELEMENT_FLOAT32, count), in = make_empty(ELEMENT_FLOAT32, count);
    struct vector sources[TURNS], found[TURNS];
    struct transfer *transfers[2 * TURNS];
    for (int i = 0; i < TURNS; i++) {
        sources[i] = make(ELEMENT_FLOAT32, count, ring->rank, 0, (unsigned)i);
        found[i] = make_empty(ELEMENT_FLOAT32, count);
    }
    for (int i = 0; i < TURNS; i++) {
        device->copy(stream, out.memory, sources[i].memory, bytes);
        transfers[2 * i] = ring->ops->send(ring, out.memory, bytes, next, 0);
        transfers[2 * i + 1] = ring->ops->receive(ring, in.memory, bytes, before, 0);
        ring->ops->join(transfers[2 * i]);
        ring->ops->join(transfers[2 * i + 1]);
        for (int again = 0; again < 3; again++)
            device->copy(stream, found[i].memory, in.memory, bytes);
    }
    for (int i = 0; i < 2 * TURNS; i++)
        end(ring, transfers[i], i % 3);
    bool holds = true;
    for (int i = 0; i < TURNS; i++) {
        float *values = read_vector(&found[i]);
        for (int64_t k = 0; k < count; k++)
            holds = holds && values[k] == element(before, k, (unsigned)i);
        holds = holds && values[count] == GUARD;
        free(values);
        drop(&sources[i]);
        drop(&found[i]);
    }
    drop(&out);
    drop(&in);
    ok(holds, "%d messages out of one vector and into one", TURNS);
}

/* As in training: microbatches go down one ring and come back by the other, each rank adds 1 on either way; receives of
 * all of them are posted at the start, and the host waits at the end alone. */
static void check_pipeline(struct communicator *down, struct communicator *up)
{
    enum {
        MICROBATCHES = 4,
        COUNT = 2051
    };
    const size_t bytes = COUNT * sizeof(float);
    int rank = down->rank, last = down->size - 1, n = 0;
    struct vector ones = make_empty(ELEMENT_FLOAT32, COUNT), x[2][MICROBATCHES], y[2][MICROBATCHES];
    struct transfer *receives[2][MICROBATCHES], *transfers[4 * MICROBATCHES];
    float values[COUNT + GUARDS];
    for (int k = 0; k < COUNT; k++)
        values[k] = 1;
    write_vector(&ones, values);
    for (int way = 0; way < 2; way++)
        for (int m = 0; m < MICROBATCHES; m++) {
            x[way][m] = make(ELEMENT_FLOAT32, COUNT, m, 0, 3);
            y[way][m] = make_empty(ELEMENT_FLOAT32, COUNT);
            if (rank != (way ? last : 0))
                transfers[n++] = receives[way][m] =
                    (way ? up : down)->ops->receive(way ? up : down, x[way][m].memory, bytes, rank + (way ? 1 : -1), m);
        }
    for (int way = 0; way < 2; way++)
        for (int m = 0; m < MICROBATCHES; m++) {
            struct communicator *ring = way ? up : down;
            if (rank != (way ? last : 0))
                ring->ops->join(receives[way][m]);
            else if (way)
                device->copy(stream, x[1][m].memory, y[0][m].memory, bytes);
            device->add_residual(stream, ELEMENT_FLOAT32, y[way][m].memory, x[way][m].memory, ones.memory, NULL, 1,
                                 COUNT);
            if (rank != (way ? 0 : last))
                transfers[n++] = ring->ops->send(ring, y[way][m].memory, bytes, rank + (way ? -1 : 1), m);
        }
    for (int i = 0; i < n; i++)
        end(down, transfers[i], i % 2);
    bool holds = true;
    for (int m = 0; m < MICROBATCHES; m++) {
        float *found = read_vector(&y[1][m]);
        for (int k = 0; k < COUNT; k++) {
            volatile float expected = element(m, k, 3);
            for (int i = 0; i < 2 * down->size - rank; i++)
                expected = expected + 1;
            holds = holds && found[k] == expected;
        }
        free(found);
        for (int way = 0; way < 2; way++) {
            drop(&x[way][m]);
            drop(&y[way][m]);
        }
    }
    drop(&ones);
    ok(holds, "%d microbatches down the ranks and up again, queued at once", MICROBATCHES);
}

static void check(const struct job *job)
{
    struct communicator *down = comm_nccl_open_ring(job->world->mpi, device, stream);
    struct communicator *up = comm_nccl_open_ring(job->world->mpi, device, stream);
    ok(down->size == job->world->size && down->rank == job->world->rank, "same ranks in the same order");
    check_messages(down);
    check_reuse(up);
    check_pipeline(down, up);
    communicator_close(up);
    communicator_close(down);
}

int main(int argc, char **argv)
{
    return check_on_devices(argc, argv, check);
}
