#include "parallel/agree.h"

int agree(struct communicator *comm, int result, struct err *err)
{
    double lowest = result < 0 ? comm->rank : comm->size; /* the lowest failing rank */
    control_min(comm, &lowest, 1);
    int root = (int)lowest;
    if (root == comm->size)
        return 0;
    control_broadcast(comm, err, sizeof *err, root);
    return -1;
}

bool agree_equal(struct communicator *comm, uint64_t value)
{
    double high = (double)(value >> 32),
           low = (double)(value & UINT32_MAX); /* exact in a double, all 64 bits are not */
    double most[4] = {high, low, -high, -low};
    control_max(comm, most, 4);
    return most[0] == -most[2] && most[1] == -most[3];
}
