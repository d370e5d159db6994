/* The planner: which configuration of so many devices trains fastest, and what others cost. */
#ifndef PLAN_PLANNER_H
#define PLAN_PLANNER_H

#include "plan/search.h"

/* Entries of the list of the best. */
#define PLANNER_BEST 10

/* A configuration as the forecast sees it. */
struct verdict {
    struct candidate candidate;
    struct estimate estimate;
    struct footprint memory; /* of the rank that holds most */
};

/* The best of those that have something in common. */
struct planner_kind {
    char name[32]; /* "schedule zb-v", "pipeline 8" */
    struct verdict verdict;
};

struct plan {
    struct search search;
    struct verdict *best; /* [best_count] at most PLANNER_BEST, the fastest first */
    int best_count;
    struct planner_kind *kinds;
    int kind_count;
    int forecasts;       /* made */
    double memory_limit; /* bytes of one device; INFINITY: none */
};

/* Bytes of one device: &plan memory_gib, else &machine's, else INFINITY. */
double planner_memory_limit(const struct settings *settings);

/* Searches. 0 also where nothing fits: then best_count is 0. *plan is to be released by planner_fini. */
void planner_run(struct plan *plan, const struct planning *planning);
void planner_fini(struct plan *plan);

#endif
