/* The numbers of an AdamW step as every device's loop over the parameters needs them: the same on all devices. */
#ifndef KERNELS_ADAMW_H
#define KERNELS_ADAMW_H

#include <math.h>

#include "kernels/kernels.h"

struct adamw_factors {
    float scale, keep;  /* of the gradient; of the weight, where it decays */
    float beta1, rest1; /* rest = 1 - beta */
    float beta2, rest2;
    float rate;          /* learning_rate / correction1 */
    float root, epsilon; /* root = 1 / sqrt(correction2) */
};

/* Folded in float64. */
static inline struct adamw_factors adamw_fold(const struct adamw *step)
{
    struct adamw_factors factors;
    factors.scale = (float)step->scale;
    factors.keep = (float)(1.0 - step->learning_rate * step->weight_decay);
    factors.beta1 = (float)step->beta1;
    factors.rest1 = (float)(1.0 - step->beta1);
    factors.beta2 = (float)step->beta2;
    factors.rest2 = (float)(1.0 - step->beta2);
    factors.rate = (float)(step->learning_rate / step->correction1);
    factors.root = (float)(1.0 / sqrt(step->correction2));
    factors.epsilon = (float)step->epsilon;
    return factors;
}

#endif
