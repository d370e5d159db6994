#include "run/outliers.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

/* Mean and standard deviation, added from the oldest on. Distances from the oldest make those of equal values 0. */
static double mean_of(const double *values, int count, double *deviation)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < count; i++)
        sum += values[i] - values[0];
    double mean = values[0] + sum / count;
    for (int i = 0; i < count; i++)
        squares += (values[i] - mean) * (values[i] - mean);
    *deviation = sqrt(squares / count);
    return mean;
}

static bool is_outlier(const double *values, int count, double deviations, double value, const char *name,
                       struct err *reason)
{
    if (deviations == 0 || count < OUTLIERS_LEAST)
        return false;
    double deviation, mean = mean_of(values, count, &deviation);
    if (value - mean <= deviations * deviation)
        return false;
    err_set(reason, "its %s of %g is more than %g standard deviations above the last %d steps' (mean %g, deviation %g)",
            name, value, deviations, count, mean, deviation);
    return true;
}

static void append(double *values, int count, double value)
{
    if (count == OUTLIERS_WINDOW)
        memmove(values, values + 1, (OUTLIERS_WINDOW - 1) * sizeof *values);
    values[count == OUTLIERS_WINDOW ? count - 1 : count] = value;
}

bool outliers_judge(struct outliers *outliers, double deviations, double loss, double gradient_norm, struct err *reason)
{
    if (is_outlier(outliers->losses, outliers->count, deviations, loss, "loss", reason) ||
        is_outlier(outliers->gradient_norms, outliers->count, deviations, gradient_norm, "gradient norm", reason)) {
        if (outliers->in_row < OUTLIERS_IN_ROW) {
            outliers->in_row++;
            outliers->skipped++;
            return true;
        }
        outliers->count = 0;
    }
    append(outliers->losses, outliers->count, loss);
    append(outliers->gradient_norms, outliers->count, gradient_norm);
    if (outliers->count < OUTLIERS_WINDOW)
        outliers->count++;
    outliers->in_row = 0;
    return false;
}

int64_t outliers_numbers(const struct outliers *outliers)
{
    return 2 + 2 * (int64_t)outliers->count;
}

double *outliers_pack(const struct outliers *outliers)
{
    double *numbers = allocate((size_t)outliers_numbers(outliers), sizeof *numbers);
    numbers[0] = (double)outliers->skipped;
    numbers[1] = outliers->in_row;
    for (int i = 0; i < outliers->count; i++) {
        numbers[2 + 2 * i] = outliers->losses[i];
        numbers[3 + 2 * i] = outliers->gradient_norms[i];
    }
    return numbers;
}

int outliers_unpack(struct outliers *outliers, const double *numbers, int64_t count, struct err *err)
{
    *outliers = (struct outliers){0};
    if (count == 0)
        return 0;
    bool right = count % 2 == 0 && count <= 2 + 2 * OUTLIERS_WINDOW;
    for (int64_t i = 0; i < count; i++)
        right = right && isfinite(numbers[i]);
    if (!right || numbers[0] < 0 || numbers[0] > 0x1p53 || numbers[1] < 0 || numbers[1] > OUTLIERS_IN_ROW)
        return err_set(err, "attribute 'outlier_window' does not hold what ppmodel writes");
    outliers->skipped = (int64_t)numbers[0];
    outliers->in_row = (int)numbers[1];
    outliers->count = (int)(count / 2 - 1);
    for (int i = 0; i < outliers->count; i++) {
        outliers->losses[i] = numbers[2 + 2 * i];
        outliers->gradient_norms[i] = numbers[3 + 2 * i];
    }
    return 0;
}
