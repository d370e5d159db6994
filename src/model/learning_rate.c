#include "model/learning_rate.h"

#include <math.h>

double learning_rate_at(const struct settings *settings, int64_t step)
{
    const double pi = 3.14159265358979323846;
    const double rate = settings->optimizer.learning_rate, min = settings->optimizer.min_learning_rate;
    const int64_t warmup = settings->optimizer.warmup_steps, steps = settings->run.steps;
    if (step <= warmup)
        return rate * (double)step / (double)warmup;
    double x = (double)(step - warmup) / (double)(steps - warmup);
    switch (settings->optimizer.decay) {
    case DECAY_COSINE:
        return min + (rate - min) * (1 + cos(pi * x)) / 2;
    case DECAY_LINEAR:
        return min + (rate - min) * (1 - x);
    case DECAY_CONSTANT:
        return rate;
    case DECAY_WSD: {
        int64_t left = steps - step, decay = settings->optimizer.decay_steps;
        return left >= decay ? rate : min + (rate - min) * (double)left / (double)decay;
    }
    }
    return rate;
}
