/* The space of configurations, and closed forms of their time and memory: enough to leave only the best for the
 * forecast, cheap enough for hundreds of thousands of them. */
#ifndef PLAN_SEARCH_H
#define PLAN_SEARCH_H

#include "plan/forecast.h"

/* Why a configuration cannot be. */
#define SEARCH_REASONS(X)                                                      \
    X(REJECT_TENSOR, "tensor does not divide heads, kv_heads and ffn_hidden")  \
    X(REJECT_STAGES, "more stages than blocks, embedding and head")            \
    X(REJECT_BATCH, "data times microbatch_size does not divide global_batch") \
    X(REJECT_TABLE, "more microbatches than a schedule may have")              \
    X(REJECT_MEMORY, "more memory than a device has")

enum search_reason {
#define X(name, text) name,
    SEARCH_REASONS(X)
#undef X
    SEARCH_REASONS_COUNT
};

extern const char *const search_reason_names[SEARCH_REASONS_COUNT];

/* A configuration with its closed forms. */
struct guess {
    struct candidate candidate;
    double step_seconds;
    double memory; /* bytes on the rank that holds most */
};

struct search {
    struct guess *guesses; /* possible ones, the fastest first; among equals in the order of the enumeration */
    int64_t count, capacity;
    int64_t tried;
    int64_t rejected[SEARCH_REASONS_COUNT];
    struct guess nearest; /* what needs least memory of those that need too much; microbatch_size 0: there is none */
};

/* Tries every grid of &plan devices, schedule, number of chunks, microbatch size and recompute mode for &pipeline
 * global_batch, with the optimizer sharded and not; memory_limit in bytes, INFINITY: none. */
void search_run(struct search *search, const struct planning *planning, double memory_limit);
void search_fini(struct search *search);

#endif
