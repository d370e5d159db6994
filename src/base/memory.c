#include "base/memory.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/error.h"

void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size ? size : 1);
    if (!memory)
        fatal("out of host memory: %zu items of %zu bytes", count, size);
    return memory;
}

char *copy_text(const char *text)
{
    size_t bytes = strlen(text) + 1;
    return memcpy(allocate(bytes, 1), text, bytes);
}

size_t memory_resident(void)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    bool told = file && fscanf(file, "%*u %lu", &pages) == 1;
    if (file)
        fclose(file);
    return told ? pages * (size_t)sysconf(_SC_PAGESIZE) : 0;
}

size_t memory_peak(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (size_t)usage.ru_maxrss * 1024 : 0;
}

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>

void memory_forbid(void *memory, size_t bytes)
{
    __asan_poison_memory_region(memory, bytes);
}

void memory_allow(void *memory, size_t bytes)
{
    __asan_unpoison_memory_region(memory, bytes);
}
#else
void memory_forbid(void *memory, size_t bytes)
{
    (void)memory, (void)bytes;
}

void memory_allow(void *memory, size_t bytes)
{
    (void)memory, (void)bytes;
}
#endif
