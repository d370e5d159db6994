#include "parallel/mpi_check.h"

#include <mpi.h>
#include <stdarg.h>
#include <stdio.h>

void mpi_check(int code, const char *what, ...)
{
    if (code == MPI_SUCCESS)
        return;
    char call[512], reason[MPI_MAX_ERROR_STRING] = "";
    va_list list;
    va_start(list, what);
    vsnprintf(call, sizeof call, what, list);
    va_end(list);

    int length;
    if (MPI_Error_string(code, reason, &length) != MPI_SUCCESS)
        snprintf(reason, sizeof reason, "MPI error %d", code);
    for (char *c = reason; *c; c++)
        if (*c == '\n')
            *c = ' ';
    fatal("%s: %s", call, reason);
}
