/* What keeps a run from being faster or from fitting, from plain numbers: measured ones, or those of a forecast.
 *
 * Six things go wrong with pipelines: stages of unequal load, too few microbatches for the pipeline to fill, so many
 * that each is too small for the device, messages that computations wait for, activations that do not fit, and errors
 * far from their cause. The last is a matter of messages; the others are found here. */
#ifndef PLAN_DIAGNOSE_H
#define PLAN_DIAGNOSE_H

#include <stdbool.h>

#include "base/settings.h"

/* Another choice and what it would bring. */
struct diagnose_option {
    char change[96]; /* in the namelist: "recompute = 'full'" */
    double memory;   /* bytes of the rank that holds most */
    double step_seconds;
};

/* Arrays belong to the caller. */
struct diagnose_input {
    int ranks, chunks;                 /* P, V; ranks * chunks stages */
    int microbatches, microbatch_size; /* M, sequences */
    bool v_placement;                  /* stages run down and up the ranks in turn */
    enum schedule_choice schedule;

    int layers;
    const double *layer_seconds;  /* [layers] forward and backward of one microbatch, the rank's own work alone */
    const double *layer_costs;    /* [layers] the same as layers of their kind take elsewhere, in any unit, where
                                     layer_seconds was measured on the ranks; NULL: no rank is judged by them */
    const int *first_layer;       /* [stages + 1] */
    const double *boundary_bytes; /* [layers] handed on behind the layer, for one microbatch; 0 behind the last */

    double step_seconds;
    double bubble;          /* idle part of the ranks' time until the last backward */
    double message_seconds; /* by how much messages lengthen the step */

    const struct machine_settings *machine; /* its curve of efficiencies; none: small microbatches are not judged */
    double product_gflop;                   /* operations of the layers' average matrix product */

    /* Other sizes of microbatches for the same sequences of a step, and the step's time with them relative to now, by
     * forecasts; none: by the number of microbatches and the curve alone. */
    const int *sizes;
    const double *size_times;
    int size_count;
    double eager_time; /* relative time with 'eager-1f1b', by a forecast; 0: unknown */

    double memory, memory_limit; /* bytes on the rank that holds most, of a device; limit INFINITY: none */
    double activations;          /* the part of memory that is activations */
    int live;                    /* activation sets alive at once on that rank */
    const struct diagnose_option *options;
    int option_count;
};

enum diagnose_what {
    DIAGNOSE_BALANCE,
    DIAGNOSE_FEW_MICROBATCHES,
    DIAGNOSE_MANY_MICROBATCHES,
    DIAGNOSE_TRAFFIC,
    DIAGNOSE_MEMORY,
    DIAGNOSE_KINDS
};

/* "balance", "few microbatches" ... */
extern const char *const diagnose_names[DIAGNOSE_KINDS];

struct finding {
    enum diagnose_what what;
    double figure;     /* how bad: a part of the step's time, of memory the excess in bytes */
    char cause[512];   /* with the numbers */
    char change[1024]; /* the keys that mend it; "" where nothing here does */
    double gain;       /* predicted part of the step's time that is saved; 0 where time is not what is saved */
};

/* Writes what is wrong into findings[DIAGNOSE_KINDS], at most one of each, the largest gain first, memory before all;
 * returns how many. Local, takes time in proportion to layers^2 * stages. */
int diagnose(const struct diagnose_input *input, struct finding *findings);

#endif
