/* The communicator of one rank for the memory of a device: what it is asked for is done on the stream of the
 * computations, by the device alone. There is nobody to send messages to. */
#ifndef PARALLEL_COMM_ALONE_H
#define PARALLEL_COMM_ALONE_H

#include "parallel/communicator.h"

/* Over the one rank of `mpi` (duplicated). `stream` outlives the communicator. */
struct communicator *comm_alone_open(MPI_Comm mpi, const struct device *device, struct stream *stream);

#endif
