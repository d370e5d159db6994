/* How long operations of the device table take, with arrays of random numbers that are in no cache. */
#ifndef TESTS_SPEED_H
#define TESTS_SPEED_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum {
    ARRAYS = 8,     /* of an operation at most */
    SETS = 24,      /* of arrays at most */
    BATCHES = 5,    /* timed */
    REPEATS = 200,  /* calls in one at most */
    POOL = 4000037, /* random numbers, that all arrays are filled from */
    RANGES = 256    /* of parameters at most */
};

/* A model. */
struct size {
    const char *name;
    int64_t sequences, length, hidden, heads, ffn, vocabulary, layers;
    int64_t odd_vocabulary; /* as the tokenizer has it, not rounded up; 0: not measured */
    int64_t square;         /* side of the product that tells the limit */
    int64_t cpu_square;     /* the same on the CPU */
    int64_t copied;         /* numbers that are copied to tell the limit of memory */
};

enum content {
    NOTHING,  /* no array */
    ELEMENTS, /* of the type that the kernel works on */
    FLOATS,
    TOKENS,     /* as frequent as words are */
    EVEN_TOKENS /* all equally frequent */
};

struct bench {
    const struct device *device;
    struct stream *stream;
    struct event *begin, *end;
    struct size size;
    int64_t rows; /* tokens of all sequences */
    enum element element;
    const char *type;      /* fp32, tf32 or bf16 */
    float *pool;           /* POOL normal numbers, on the device */
    void *narrow_pool;     /* the same as bfloat16 */
    int64_t filled;        /* where in the pool the last array begins */
    double memory, matmul; /* the limits: bytes and operations per second */
    struct optimizer_range ranges[RANGES];
    int range_count;
    int64_t parameters; /* in all ranges */
    double *blocks;     /* of squares */
};

struct operation;

/* Makes one call of it with the arrays `a`. */
typedef void call_fn(const struct bench *bench, const struct operation *o, void *const *a);

struct operation {
    const char *name, *use; /* use: what for, or NULL */
    call_fn *run, *prepare; /* the latter once for each set of arrays, or NULL */
    int64_t rows, in, out;  /* its shape, as far as it has them */
    int64_t pitch;          /* of what has one */
    bool accumulate;
    struct {
        enum content content;
        int64_t count;
    } arrays[ARRAYS];
    double bytes, operations; /* that a call must move, and make; a multiplication and an addition are two */
};

/* Fills the pool; the device, its stream and events are there. */
void speed_open(struct bench *bench);
void speed_close(struct bench *bench);

/* Arrays for an operation, filled and prepared, and their end. */
void speed_open_set(struct bench *bench, const struct operation *o, void **set);
void speed_close_set(struct bench *bench, const struct operation *o, void **set);

/* Seconds of one call, where `calls` are made one after another that take turns among `count` sets. */
double speed_batch(const struct bench *bench, const struct operation *o, void *sets[][ARRAYS], int count, int calls);

/* Seconds of one call: the median of several batches. */
double speed_time(struct bench *bench, const struct operation *o);

/* Sorts the times of batches; returns the median. */
double speed_median(double seconds[BATCHES]);

/* How many of the numbers in an array of `rows` tokens differ. */
double speed_distinct(const struct bench *bench, enum content content);

/* Times an operation and prints its line. */
void speed_measure(struct bench *bench, const struct operation *o);

/* The operations by kind, each measured at the shapes of the model. */
void speed_products(struct bench *bench);
void speed_rows(struct bench *bench);
void speed_attention(struct bench *bench);
void speed_vocabulary(struct bench *bench);
void speed_optimizer(struct bench *bench);

/* Calls with the arrays y, x, w, bias, activated; y, x; and, of float32, to, from. */
void speed_linear(const struct bench *bench, const struct operation *o, void *const *a);
void speed_gelu(const struct bench *bench, const struct operation *o, void *const *a);
void speed_copy(const struct bench *bench, const struct operation *o, void *const *a);

#endif
