/* What the files of the CPU's matmuls share. */
#ifndef KERNELS_CPU_CPU_MATMUL_H
#define KERNELS_CPU_CPU_MATMUL_H

#include "kernels/cpu/cpu.h"

/* c [m, n] (+)= op(a) op(b) where op(a) is [m, k] and op(b) [k, n]; the leading dimensions (elements between rows) are
 * those of the matrices as they are stored. The members behind them are for products of bfloat16 alone. */
struct product {
    bool transpose_a, transpose_b, accumulate;
    int64_t m, n, k;
    const void *a, *b;
    void *c;
    int64_t a_row, b_row, c_row;

    enum element result; /* of c; float32 where accumulate is set or a transposed */
    const float *bias;   /* [n], added to every row of c before it is rounded, or NULL */
    void *activated;     /* gelu(c), laid out as c, or NULL */
    float *sums;         /* [m] (+)= sums of the rows of op(a), or NULL; only where a is transposed */
};

/* A rectangle of c. */
struct rectangle {
    struct share rows, columns;
    bool first; /* of those with the same rows */
};

/* The calling thread's rectangle. */
struct rectangle cpu_own_rectangle(int64_t m, int64_t n);

/* The elements of one rectangle of a product of float32, k > 0, by the calling thread alone. */
void cpu_multiply(const struct product *p, struct rectangle part);

/* cpu_matmul_widened.c: a product of bfloat16 by the float32 library. */
void cpu_multiply_widened(struct stream *stream, const struct product *p);

/* cpu_matmul_bf16.c: a product of bfloat16, k > 0, by oneDNN's kernels for this type. */
void cpu_multiply_bf16(struct stream *stream, const struct product *p);

/* Whether the program was built with them; without instructions of the processor they are right, but slow. */
bool cpu_bf16_possible(void);

/* The processor's instructions for bfloat16 that they use, for example "avx512_core_bf16"; NULL when it has none, or
 * they are not there. */
const char *cpu_bf16_instructions(void);

#endif
