/* The learning rate of each step. */
#ifndef MODEL_LEARNING_RATE_H
#define MODEL_LEARNING_RATE_H

#include "base/settings.h"

/* Of step n = 1 ... run.steps. Warm-up: learning_rate * n / warmup_steps for n <= warmup_steps. Then with
 * x = (n - warmup_steps) / (steps - warmup_steps): 'cosine' min + (rate - min)(1 + cos(pi x))/2, 'linear' likewise with
 * 1 - x, 'constant', and 'wsd': constant until the last decay_steps, in which it falls linearly to min. */
double learning_rate_at(const struct settings *settings, int64_t step);

#endif
