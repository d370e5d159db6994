/* Loses one message: linked into the program in place of MPI's MPI_Isend. LOSE_MESSAGE=RANK:N makes the Nth message,
 * from 1, that the rank of the world sends go nowhere, as if it had been sent. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int MPI_Isend(const void *buffer, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm, MPI_Request *request)
{
    static int sent;
    const char *which = getenv("LOSE_MESSAGE");
    int rank, loser, number;
    int code = MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (code != MPI_SUCCESS)
        return code;
    if (which && sscanf(which, "%d:%d", &loser, &number) == 2 && rank == loser && ++sent == number)
        to = MPI_PROC_NULL;
    return PMPI_Isend(buffer, count, type, to, tag, comm, request);
}
