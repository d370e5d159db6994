#include "run/pool.h"

#include <stdlib.h>

#include "base/error.h"
#include "base/memory.h"
#include "plan/footprint.h"

void pool_create(struct pool *pool, int count, size_t each, bool guarded)
{
    *pool = (struct pool){.each = footprint_buffer(each), .guarded = guarded, .count = count};
    pool->free = allocate((size_t)count, sizeof *pool->free);
}

void pool_destroy(struct pool *pool)
{
    free(pool->free);
    *pool = (struct pool){0};
}

void pool_attach(struct pool *pool, char **memory)
{
    pool->base = *memory;
    *memory += (size_t)pool->count * pool->each;
    pool->free_count = pool->count;
    for (int i = 0; i < pool->count; i++)
        pool->free[i] = pool->count - 1 - i;
}

void pool_begin(struct pool *pool)
{
    if (pool->guarded)
        memory_forbid(pool->base, (size_t)pool->count * pool->each);
}

void pool_end(struct pool *pool)
{
    if (pool->guarded)
        memory_allow(pool->base, (size_t)pool->count * pool->each);
}

char *pool_take(struct pool *pool, const char *what)
{
    if (pool->free_count == 0)
        fatal("the schedule needs more than the %d buffers counted for %s: this is a defect of ppmodel", pool->count,
              what);
    char *buffer = pool->base + (size_t)pool->free[--pool->free_count] * pool->each;
    if (pool->guarded)
        memory_allow(buffer, pool->each);
    return buffer;
}

void pool_give(struct pool *pool, char **buffer)
{
    if (!*buffer)
        return;
    if (pool->guarded)
        memory_forbid(*buffer, pool->each);
    pool->free[pool->free_count++] = (int)((size_t)(*buffer - pool->base) / pool->each);
    *buffer = NULL;
}
