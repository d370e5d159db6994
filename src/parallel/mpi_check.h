/* Every MPI call of the program goes through mpi_check(). */
#ifndef PARALLEL_MPI_CHECK_H
#define PARALLEL_MPI_CHECK_H

#include "base/error.h"

/* `code` is what an MPI call returned. Does nothing on success, else fatal("<what>: <MPI's message, on one line>"). */
void mpi_check(int code, const char *what, ...) PRINTF_LIKE(2, 3);

#endif
