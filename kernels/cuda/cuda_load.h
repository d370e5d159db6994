/* Libraries that are loaded when they are needed. Linked to the program they would cost every run on CPUs memory and
 * time, and the program could not start where they are not. */
#ifndef KERNELS_CUDA_CUDA_LOAD_H
#define KERNELS_CUDA_CUDA_LOAD_H

#include "base/error.h"

struct cuda_function {
    const char *name;
    void *pointer; /* the address of the pointer to it, which is filled in */
};

#define CUDA_FUNCTION(name) {#name, &functions.name}, /* of a struct `functions` with members of these names */

/* Loads the file and looks its functions up among all libraries of the program, not in this one alone, so that one that
 * was loaded before it, as by LD_PRELOAD, may stand in for it. Returns 0, or -1 with the loader's message. */
int cuda_load(const char *file, const struct cuda_function *functions, int count, struct err *err);

#endif
