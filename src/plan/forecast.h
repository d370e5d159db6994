/* What a configuration will do, before anything runs: its time, bubble, communication and memory, from the same tables,
 * cuts and sizes as the trainer's. */
#ifndef PLAN_FORECAST_H
#define PLAN_FORECAST_H

#include <stdio.h>

#include "plan/cost.h"
#include "plan/footprint.h"

/* One configuration of what the planner may choose. */
struct candidate {
    int pipeline, data, tensor; /* P, D, T */
    int chunks, microbatch_size, microbatches;
    enum schedule_choice schedule;
    enum recompute_choice recompute;
    bool sharded;
};

/* What all configurations have in common. */
struct planning {
    const struct settings *settings;
    const struct text *csv; /* of schedule_file, where the schedule comes from one */
    struct model model;
    struct cost_machine machine;
    const struct device *device; /* whose kernels' workspace counts */
    int *kinds;                  /* [layers] cost_kinds() */
    double flops;                /* of the model for one sequence, forward and backward, nothing computed again */
};

/* *planning is to be released by planning_fini after success. Returns 0, or -1 with *err. */
int planning_init(struct planning *planning, const struct settings *settings, const struct device *device,
                  const struct text *csv, struct err *err);
void planning_fini(struct planning *planning);

/* The configuration that the settings describe. */
struct candidate planning_candidate(const struct settings *settings);

/* The circumstances of its layers on tensor rank 0. */
struct circumstances planning_circumstances(const struct planning *planning, const struct candidate *candidate);

/* Whether neighbours in the pipeline, the data ranks, the tensor ranks are on different nodes. */
bool planning_pipeline_far(const struct planning *planning, const struct candidate *candidate);
bool planning_data_far(const struct planning *planning, const struct candidate *candidate);

/* The figures that a configuration is judged by. */
struct estimate {
    double step_seconds;
    double tokens_per_second;
    double tflops; /* of the model, per second and device */
    double mfu;    /* NAN: no peak is known */
    double bubble; /* 1 - busy / (ranks * time until the last backward), as in the trainer */
    /* Parts of the step: by how much messages lengthen it; sums over tensor ranks; the reduction over the data ranks
     * that stays visible, with tied weights; the optimizer. */
    double pipeline_share, tensor_share, data_share, optimizer_share;
    double memory; /* bytes on the rank that holds most */
};

/* Seconds of one stage for one microbatch. */
struct stage_seconds {
    double forward, input, weight, tensor;
    double message;   /* of what it hands to the next stage, latency included */
    double latency;   /* the part of it in which others may follow */
    double reduction; /* of its gradients over the data ranks, once in a step */
    double hidden;    /* the part of it that lies under its own last backward */
    double gather;    /* of its weights over the data ranks, with a sharded optimizer */
};

struct forecast {
    struct candidate candidate;
    struct estimate estimate;
    int stages;
    int *first_layer;                  /* [stages + 1] */
    struct stage_seconds *stage;       /* [stages] */
    double *message_bytes;             /* [stages] handed to the next one, for a full microbatch */
    struct footprint *memory;          /* [pipeline] of the rank (p, 0, 0) */
    double *busy, *end;                /* [pipeline] seconds computing, and when the last computation ends */
    double makespan, without_messages; /* seconds */
    double reduction, hidden; /* seconds of the data ranks' sums on the slowest rank, and how much of them is hidden */
    int *live;                /* [pipeline] activation sets of all chunks alive at once */
    bool v_placement;         /* where the stages are: pipeline/instruction.h */
    bool measured;            /* all kinds of layers were timed */
};

/* Makes the tables, proves and simulates them, and counts the memory. A table too large to be of use is made for fewer
 * microbatches and carried on in proportion, since in its middle a schedule repeats itself. Returns 0, or -1 with *err
 * where the configuration is impossible; *forecast is to be released by forecast_fini after success. */
int forecast_make(struct forecast *forecast, const struct planning *planning, const struct candidate *candidate,
                  struct err *err);
void forecast_fini(struct forecast *forecast);

/* Writes the trace of the simulated step, in the form of a real one (base/trace.h); its processes have numbers that no
 * rank of the job has. Of all microbatches: for tables of modest size. Returns 0, or -1 with *err. */
int forecast_trace(const struct forecast *forecast, const struct planning *planning, FILE *out, struct err *err);

/* Completes what follows from the step's time. */
void forecast_rates(const struct planning *planning, const struct candidate *candidate, struct estimate *estimate);

/* Writes what a candidate chooses into the settings; everything else in them stays. */
void forecast_choose(struct settings *settings, const struct candidate *candidate);

#endif
