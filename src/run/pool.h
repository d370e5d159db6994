/* Equal buffers in one piece of memory, handed out and taken back. */
#ifndef RUN_POOL_H
#define RUN_POOL_H

#include <stdbool.h>
#include <stddef.h>

struct pool {
    char *base;
    bool guarded;
    size_t each; /* bytes */
    int count, free_count;
    int *free; /* [count] the first free_count are indices of free buffers */
};

/* `count` buffers of at least `each` bytes, 64-byte aligned in aligned memory; still without memory. guarded: they are
 * in memory of the host, which may be told not to touch them. */
void pool_create(struct pool *pool, int count, size_t each, bool guarded);
void pool_destroy(struct pool *pool);

/* Tells where the buffers are; *memory moves behind them. */
void pool_attach(struct pool *pool, char **memory);

/* Between these two calls only buffers that are handed out may be touched (base/memory.h). */
void pool_begin(struct pool *pool);
void pool_end(struct pool *pool);

/* A free buffer. That there is one was proven beforehand: ends the job, naming `what`, when there is not. */
char *pool_take(struct pool *pool, const char *what);

/* Takes back a buffer and clears the pointer; NULL is allowed. */
void pool_give(struct pool *pool, char **buffer);

#endif
