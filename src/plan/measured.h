/* Where the time of a step went that a pipeline has run, from the begin and end of each of its computations. */
#ifndef PLAN_MEASURED_H
#define PLAN_MEASURED_H

#include "pipeline/simulate.h"

/* One step of one pipeline. Arrays belong to the caller. */
struct measured_step {
    const struct schedule *schedule; /* lowered, as it was run */
    const double (*times)[2]; /* [ranks][places] begin and end of the computations, s from the step's start; 0 of others
                               */
    int64_t places;           /* of the longest list */
    const int *live;          /* [ranks] activation sets of all chunks that were alive at once */
    double seconds;           /* of the whole step, with the optimizer */
};

struct measured {
    double makespan; /* from the first begin to the last end, s */
    double bubble;   /* 1 - busy / (ranks * makespan) */
    double messages; /* s by which messages lengthened it: the same computations, as long as they were, would have ended
                        so much earlier if messages took no time */
    double latency;  /* s from the first microbatch's first forward to the end of its last */
    double *stages;  /* [stages] s of all computations for one microbatch, on average */
    struct simulate_rank *ranks; /* [ranks] what the idle time was spent on; communication is `messages` for all */
};

/* *measured is to be released by measured_fini after success. Returns 0, or -1 with *err. Local. */
int measured_take(struct measured *measured, const struct measured_step *step, struct err *err);
void measured_fini(struct measured *measured);

#endif
