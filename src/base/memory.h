/* Host memory for bookkeeping. Arenas of numbers come from the device table (kernels/kernels.h). */
#ifndef BASE_MEMORY_H
#define BASE_MEMORY_H

#include <stddef.h>

/* count * size zeroed bytes, never NULL; the caller frees them with free(). Ends the job when there is not enough
 * memory or the product overflows. */
void *allocate(size_t count, size_t size) __attribute__((malloc, returns_nonnull));

/* `text` in memory of its own, freed by the caller. */
char *copy_text(const char *text) __attribute__((malloc, returns_nonnull));

/* Bytes of this process that are in physical memory, now and at most so far; 0 where the system does not tell. */
size_t memory_resident(void);
size_t memory_peak(void);

/* Memory that nothing may touch until memory_allow: the address sanitizer, where the program is built with it, sees to
 * that; else nothing is done. */
void memory_forbid(void *memory, size_t bytes);
void memory_allow(void *memory, size_t bytes);

#endif
