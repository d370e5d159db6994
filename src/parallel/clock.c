#include "parallel/clock.h"

#include <math.h>

#include "base/trace.h"

enum {
    QUESTIONS = 32, /* of each rank */
    TAG = 0
};

static void answer(struct communicator *world, int rank)
{
    for (int i = 0; i < QUESTIONS; i++) {
        char question;
        world->ops->wait(world->ops->receive(world, &question, sizeof question, rank, TAG));
        double now = clock_seconds();
        world->ops->wait(world->ops->send(world, &now, sizeof now, rank, TAG));
    }
}

static void ask(struct communicator *world, struct clock_reading *reading)
{
    double shortest = INFINITY;
    for (int i = 0; i < QUESTIONS; i++) {
        const char question = 0;
        double theirs, asked = clock_seconds();
        struct transfer *reply = world->ops->receive(world, &theirs, sizeof theirs, 0, TAG);
        world->ops->wait(world->ops->send(world, &question, sizeof question, 0, TAG));
        world->ops->wait(reply);
        double answered = clock_seconds();
        if (answered - asked >= shortest)
            continue;
        shortest = answered - asked;
        reading->here = asked + shortest / 2;
        reading->ahead = theirs - reading->here;
        reading->error = shortest / 2;
    }
    if (fabs(reading->ahead) <= reading->error) { /* may be the same clock */
        reading->ahead = 0;
        reading->error = shortest;
    }
}

void clock_compare(struct communicator *world, struct clock_reading *reading)
{
    *reading = (struct clock_reading){.here = clock_seconds()};
    if (world->rank > 0)
        ask(world, reading);
    for (int rank = 1; world->rank == 0 && rank < world->size; rank++)
        answer(world, rank);
}
