/* The learning rate of every step against values worked out by hand: rate 1, min 0.1, 10 steps, warm-up of 4, so that
 * x = 1/6, 1/3, 1/2 ... and the cosines are known numbers. */
#include <math.h>

#include "model/learning_rate.h"
#include "tests/tap.h"

enum {
    STEPS = 10
};

static void check(const char *name, enum decay_choice decay, int64_t warmup, int64_t decay_steps,
                  const double expected[STEPS])
{
    struct settings settings;
    settings_init(&settings);
    settings.run.steps = STEPS;
    settings.optimizer.learning_rate = 1;
    settings.optimizer.min_learning_rate = 0.1;
    settings.optimizer.warmup_steps = warmup;
    settings.optimizer.decay = decay;
    settings.optimizer.decay_steps = decay_steps;
    for (int step = 1; step <= STEPS; step++)
        is_near(learning_rate_at(&settings, step), expected[step - 1], 1e-15, "%s: step %d", name, step);
    settings_fini(&settings);
}

int main(void)
{
    const double half_root3 = sqrt(3) / 2; /* cos(pi/6) */
    const double cosine[STEPS] = {0.25,
                                  0.5,
                                  0.75,
                                  1,
                                  0.1 + 0.45 * (1 + half_root3), /* warm-up; x = 1/6 */
                                  0.775,
                                  0.55,
                                  0.325,
                                  0.1 + 0.45 * (1 - half_root3), /* cos = 1/2, 0, -1/2 */
                                  0.1};
    const double linear[STEPS] = {0.25, 0.5, 0.75, 1, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1};
    const double constant[STEPS] = {0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1};
    const double wsd[STEPS] = {0.25, 0.5, 0.75, 1, 1, 1, 1, 0.7, 0.4, 0.1}; /* falls in the last 3 */
    check("cosine", DECAY_COSINE, 4, 0, cosine);
    check("linear", DECAY_LINEAR, 4, 0, linear);
    check("constant", DECAY_CONSTANT, 4, 0, constant);
    check("wsd", DECAY_WSD, 4, 3, wsd);

    const double no_warmup[STEPS] = {0.91, 0.82, 0.73, 0.64, 0.55, 0.46, 0.37, 0.28, 0.19, 0.1};
    check("linear without warm-up", DECAY_LINEAR, 0, 0, no_warmup);
    check("wsd that is all decay", DECAY_WSD, 0, STEPS, no_warmup);
    const double all_warmup[STEPS] = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1};
    check("warm-up to the end", DECAY_COSINE, STEPS, 0, all_warmup);
    const double flat[STEPS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    check("wsd without decay", DECAY_WSD, 0, 0, flat);
    return tap_done();
}
