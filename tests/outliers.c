/* Which steps are outliers, by numbers whose mean and deviation are known: the window, its beginning, a level that
 * changes, and the way through a checkpoint. */
#include "run/outliers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tap.h"

static struct err reason;

/* Two values in turn: mean 10, standard deviation 2. */
static double in_turn(int step)
{
    return step % 2 ? 12 : 8;
}

/* The verdict on a loss, with a norm that is nothing new. */
static bool loss_skipped(struct outliers *outliers, double loss)
{
    return outliers_judge(outliers, 3, loss, 5, &reason);
}

static struct outliers after(int steps)
{
    struct outliers outliers = {0};
    for (int step = 0; step < steps; step++)
        outliers_judge(&outliers, 3, in_turn(step), 5, &reason);
    return outliers;
}

static void check_window(void)
{
    struct outliers outliers = after(15);
    ok(!loss_skipped(&outliers, 1000), "after 15 steps none is skipped");
    outliers = after(16);
    ok(!loss_skipped(&outliers, 16), "3 deviations are not more than 3");
    outliers = after(16);
    ok(loss_skipped(&outliers, nextafter(16, 17)) && strstr(reason.text, "loss of 16 ") &&
           strstr(reason.text, "last 16 ") && strstr(reason.text, "(mean 10, deviation 2)"),
       "a bit more is: %s", reason.text);
    ok(outliers.count == 16 && outliers.skipped == 1, "what is skipped does not enter the window");
    ok(!loss_skipped(&outliers, -1000) && outliers.in_row == 0, "only what lies above");
    outliers = after(16);
    ok(outliers_judge(&outliers, 3, 10, 5.001, &reason) && strstr(reason.text, "gradient norm of 5.001"),
       "a gradient norm: %s", reason.text);
    outliers = after(16);
    ok(!outliers_judge(&outliers, 0, 1e30, 1e30, &reason), "0 deviations: never");

    outliers = (struct outliers){0};
    loss_skipped(&outliers, 1e6);
    for (int step = 0; step < 127; step++)
        loss_skipped(&outliers, in_turn(step));
    ok(outliers.count == 128 && !loss_skipped(&outliers, 1000), "the large loss 128 steps ago counts");
    outliers = (struct outliers){0};
    loss_skipped(&outliers, 1e6);
    for (int step = 0; step < 128; step++)
        loss_skipped(&outliers, in_turn(step));
    ok(outliers.count == 128 && loss_skipped(&outliers, 1000), "that of 129 steps ago does not");
}

static void check_same_values(void)
{
    struct outliers outliers = {0};
    bool skipped = false;
    for (int step = 0; step < 200; step++)
        skipped = outliers_judge(&outliers, 1e-6, 0.1, 0.7, &reason) || skipped;
    ok(!skipped, "a value that never changes is no outlier, whatever rounding says");
}

static void check_level(void)
{
    struct outliers outliers = after(40);
    int skipped = 0;
    while (skipped < 100 && loss_skipped(&outliers, 100))
        skipped++;
    ok(skipped == 16 && outliers.skipped == 16, "a change of level that lasts: taken after 16");
    ok(outliers.count == 1 && outliers.in_row == 0 && !loss_skipped(&outliers, 1000), "the window begins anew");
    outliers = after(40);
    for (int step = 0; step < 15; step++)
        loss_skipped(&outliers, 100);
    loss_skipped(&outliers, 10);
    ok(loss_skipped(&outliers, 100) && outliers.in_row == 1, "a step that is taken begins the row anew");
}

/* The same decisions from a checkpoint. */
static void check_files(void)
{
    struct err err;
    struct outliers outliers = after(150), back;
    for (int step = 0; step < 5; step++)
        loss_skipped(&outliers, 100);
    double *numbers = outliers_pack(&outliers);
    int64_t count = outliers_numbers(&outliers);
    ok(outliers_unpack(&back, numbers, count, &err) == 0, "read back");
    bool same = true;
    for (int step = 0; step < 60; step++) {
        double loss = step < 20 ? 100 : in_turn(step) + step % 7;
        same = same && loss_skipped(&outliers, loss) == loss_skipped(&back, loss);
    }
    ok(same && outliers.skipped == 16 && back.skipped == outliers.skipped && back.count == outliers.count,
       "the same verdicts afterwards");
    ok(outliers_unpack(&back, NULL, 0, &err) == 0 && back.count == 0 && back.skipped == 0, "none: the beginning");
    ok(outliers_unpack(&back, numbers, count - 1, &err) < 0, "half a step is refused: %s", err.text);
    ok(outliers_unpack(&back, numbers, 1, &err) < 0, "a number alone is refused");
    double *more = calloc(2 + 2 * 129, sizeof *more);
    ok(more && outliers_unpack(&back, more, 2 + 2 * 129, &err) < 0, "more than 128 steps are refused");
    numbers[7] = NAN;
    ok(outliers_unpack(&back, numbers, count, &err) < 0, "what is not finite is refused");
    numbers[7] = 1;
    numbers[0] = -1;
    ok(outliers_unpack(&back, numbers, count, &err) < 0, "a negative number of steps is refused");
    free(numbers);
    free(more);
}

int main(void)
{
    check_window();
    check_same_values();
    check_level();
    check_files();
    return tap_done();
}
