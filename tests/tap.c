#include "tap.h"

#include <math.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int count;

static void place(int *rank, bool *parallel)
{
    int initialized = 0, finalized = 0;
    MPI_Initialized(&initialized);
    MPI_Finalized(&finalized);
    *parallel = initialized && !finalized;
    *rank = 0;
    if (*parallel)
        MPI_Comm_rank(MPI_COMM_WORLD, rank);
}

static bool verdict(bool holds, const char *file, int line, const char *detail, const char *name)
{
    int rank;
    bool parallel;
    place(&rank, &parallel);
    int mine = holds, all = holds;
    if (parallel)
        MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    count++;
    if (!holds)
        fprintf(stderr, "# rank %d: %s:%d: %s\n", rank, file, line, detail);
    fflush(stderr);
    if (parallel && !all)
        MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0)
        printf("%s %d - %s\n", all ? "ok" : "not ok", count, name);
    fflush(stdout);
    return all;
}

#define FORMAT_NAME(name)                       \
    char name[512];                             \
    va_list list;                               \
    va_start(list, format);                     \
    vsnprintf(name, sizeof name, format, list); \
    va_end(list)

bool tap_check(bool holds, const char *file, int line, const char *expression, const char *format, ...)
{
    FORMAT_NAME(name);
    return verdict(holds, file, line, expression, name);
}

bool tap_text(const char *found, const char *expected, const char *file, int line, const char *format, ...)
{
    FORMAT_NAME(name);
    char detail[8192];
    snprintf(detail, sizeof detail, "found\n%s\n# expected\n%s", found, expected);
    return verdict(strcmp(found, expected) == 0, file, line, detail, name);
}

bool tap_near(double found, double expected, double tolerance, const char *file, int line, const char *format, ...)
{
    FORMAT_NAME(name);
    char detail[256];
    snprintf(detail, sizeof detail, "found %.17g expected %.17g tolerance %.3g", found, expected, tolerance);
    return verdict(fabs(found - expected) <= tolerance, file, line, detail, name);
}

int tap_skip_all(const char *reason)
{
    int rank;
    bool parallel;
    place(&rank, &parallel);
    if (rank == 0)
        printf("1..0 # SKIP %s\n", reason);
    return 0;
}

void tap_note(const char *format, ...)
{
    FORMAT_NAME(name);
    int rank;
    bool parallel;
    place(&rank, &parallel);
    if (rank == 0)
        printf("# %s\n", name);
    fflush(stdout);
}

int tap_done(void)
{
    int rank;
    bool parallel;
    place(&rank, &parallel);
    if (rank == 0)
        printf("1..%d\n", count);
    return 0;
}
