/* What tests/two_stacks.h defines, token by token in double precision, from nothing of the program. */
#include <math.h>
#include <string.h>

#include "two_stacks.h"

const struct two_stacks_shape two_stacks_shapes[TENSORS] = {
    [TOKEN] = {"shared/token", VOCABULARY *WIDTH},
    [POSITION] = {"entry/position", SEQUENCE *WIDTH},
    [ENCODER_UP] = {"encoder/up", ENCODERS *INNER *WIDTH},
    [ENCODER_BIAS] = {"encoder/bias", ENCODERS *INNER},
    [ENCODER_DOWN] = {"encoder/down", ENCODERS *WIDTH *INNER},
    [DECODER_UP] = {"decoder/up", DECODERS *INNER *WIDTH},
    [DECODER_BIAS] = {"decoder/bias", DECODERS *INNER},
    [DECODER_DOWN] = {"decoder/down", DECODERS *WIDTH *INNER},
    [CROSS] = {"decoder/cross", READERS *INNER *FOLD *WIDTH},
    [GAIN] = {"revise/gain", FOLD *WIDTH},
};

static double dot(const double *a, const double *b, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

/* x += down gelu(up x + bias + cross m) for one token; m NULL: not read. */
static void mix(double *x, const double *up, const double *bias, const double *down, const double *cross,
                const double *m)
{
    double active[INNER], out[WIDTH];
    for (int i = 0; i < INNER; i++) {
        double a = dot(up + i * WIDTH, x, WIDTH) + bias[i];
        if (m)
            a += dot(cross + i * FOLD * WIDTH, m, FOLD * WIDTH);
        active[i] = a / 2 * (1 + tanh(sqrt(2 / acos(-1.0)) * (a + 0.044715 * a * a * a)));
    }
    for (int j = 0; j < WIDTH; j++)
        out[j] = dot(down + j * INNER, active, INNER);
    for (int j = 0; j < WIDTH; j++)
        x[j] += out[j];
}

/* The sum of the losses of a sequence. */
static double sequence_loss(double *const weights[TENSORS], const int32_t *tokens)
{
    double memory[GROUPS][FOLD * WIDTH], sum = 0;
    for (int s = 0; s < SEQUENCE; s++) {
        double *x = &memory[s / FOLD][s % FOLD * WIDTH];
        memcpy(x, weights[TOKEN] + tokens[s] * WIDTH, WIDTH * sizeof *x);
        for (int e = 0; e < ENCODERS; e++)
            mix(x, weights[ENCODER_UP] + e * INNER * WIDTH, weights[ENCODER_BIAS] + e * INNER,
                weights[ENCODER_DOWN] + e * WIDTH * INNER, NULL, NULL);
        for (int j = 0; j < WIDTH; j++)
            x[j] += x[j] * x[j];
    }
    double stream[SEQUENCE][WIDTH];
    for (int d = -1; d < DECODERS; d++) {
        for (int g = 0; g < GROUPS && d == REVISE_AFTER; g++)
            for (int j = 0; j < FOLD * WIDTH; j++)
                memory[g][j] += weights[GAIN][j] * memory[g][j] * memory[g][j];
        for (int s = 0; s < SEQUENCE; s++) {
            if (d < 0)
                for (int j = 0; j < WIDTH; j++)
                    stream[s][j] = weights[TOKEN][tokens[s] * WIDTH + j] + weights[POSITION][s * WIDTH + j];
            else
                mix(stream[s], weights[DECODER_UP] + d * INNER * WIDTH, weights[DECODER_BIAS] + d * INNER,
                    weights[DECODER_DOWN] + d * WIDTH * INNER, weights[CROSS] + d / 2 * INNER * FOLD * WIDTH,
                    d % 2 == 0 ? memory[s / FOLD] : NULL);
        }
    }
    for (int s = 0; s < SEQUENCE; s++) {
        double all = 0;
        for (int word = 0; word < VOCABULARY; word++)
            all += exp(dot(stream[s], weights[TOKEN] + word * WIDTH, WIDTH));
        sum += log(all) - dot(stream[s], weights[TOKEN] + tokens[s + 1] * WIDTH, WIDTH);
    }
    return sum;
}

double two_stacks_loss(double *const weights[TENSORS], const int32_t *stream, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += sequence_loss(weights, stream + i * SEQUENCE);
    return sum / (double)(count * SEQUENCE);
}
