/* The parts of mode = 'bench': what a machine takes for what training does. All ranks do the same at the same time, as
 * in a run, and share caches and memory as there. Every function is collective over the job; figures go into
 * figures->machine and are the same on all ranks. */
#ifndef RUN_BENCH_H
#define RUN_BENCH_H

#include "model/stage.h"
#include "parallel/grid.h"
#include "parallel/job.h"

struct bench {
    const struct job *job;
    struct settings *settings;
    struct grid grid;
    struct context context; /* device, stream, tensor ranks, circumstances of the namelist */
    struct model model;
    struct communicator *messages, *sums; /* over all ranks, for the device's memory: between neighbours, and of all */
    struct event *begin, *end;            /* of what bench_time runs */
    enum element element;                 /* of activations and matrices */
    struct settings *figures;             /* &machine is filled in */
};

/* The median time of run(of) and of what it queues on the stream over enough repetitions, of the slowest rank; seconds,
 * by the device's clock. */
double bench_time(const struct bench *bench, void (*run)(void *of), void *of);
#define BENCH_MOST 101 /* repetitions at most, besides two that do not count */

/* The median of times, which are put into order, on the slowest rank. Collective. */
double bench_median(const struct bench *bench, double *times, int count);

/* Device memory filled with small random numbers of a type; never NULL; released by bench_release. */
void *bench_random(const struct bench *bench, enum element element, size_t bytes);
void bench_release(const struct bench *bench, void *memory, size_t bytes);

/* Six significant digits: what is measured has no more, and machine.nml is read by people too. */
double bench_round(double value);

/* Appends to a list of the figures, rounded. */
void bench_add(struct settings_reals *list, double value);
void bench_add_number(struct settings_list *list, int value);

void bench_layers(struct bench *bench);   /* each kind of layer in each recompute mode */
void bench_device(struct bench *bench);   /* matrix products, memory, optimizer */
void bench_messages(struct bench *bench); /* point to point, and how much of it is hidden; nothing on one rank */
void bench_sums(struct bench *bench);     /* over data and tensor ranks; nothing on one rank */

/* Writing and reading files in &run output. Returns 0, or -1 with *err on all ranks. */
int bench_files(struct bench *bench, struct err *err);

#endif
