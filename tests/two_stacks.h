/* A family of models for the tests alone, and what it computes written a second time, in double precision.
 *
 *     layers       notes [sequence, width]    memory [groups, 3 width]    stream [sequence, width]
 *     source       written: tokens' rows
 *     encoders     read, written
 *     fold         read                       written
 *     entry                                   passes                      written: tokens' rows and positions
 *     decoders                                passes, read by every       read, written
 *                                             other one, the last takes it
 *     revise                                  read, written               passes
 *     head                                                                read: the losses
 *
 * `revise` stands between two decoders. The tokens' rows of source and entry and the head's are one weight. Three
 * neighbouring tokens are a group. */
#ifndef TESTS_TWO_STACKS_H
#define TESTS_TWO_STACKS_H

#include "model/family.h"

enum {
    ENCODERS = 5,
    DECODERS = 7,
    READERS = (DECODERS + 1) / 2, /* decoders that read the memory */
    REVISE_AFTER = 4,             /* decoders */
    WIDTH = 9,
    INNER = 13, /* width inside encoders and decoders */
    FOLD = 3,   /* tokens in a group */
    GROUPS = 5,
    SEQUENCE = FOLD * GROUPS,
    VOCABULARY = 23
};

/* Makes the model, as a row of model_create does. */
int two_stacks_create(struct model *model, struct err *err);

/* The model's tensors, by their names in a checkpoint. */
enum two_stacks_tensor {
    TOKEN,
    POSITION,
    ENCODER_UP,
    ENCODER_BIAS,
    ENCODER_DOWN,
    DECODER_UP,
    DECODER_BIAS,
    DECODER_DOWN,
    CROSS,
    GAIN,
    TENSORS
};
struct two_stacks_shape {
    const char *path;
    int64_t count; /* elements, the whole stack */
};
extern const struct two_stacks_shape two_stacks_shapes[TENSORS];

/* The mean loss over the samples 0 ... count - 1 of a stream of tokens, from weights in double precision. */
double two_stacks_loss(double *const weights[TENSORS], const int32_t *stream, int64_t count);

#endif
