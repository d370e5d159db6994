#include "pipeline/generators.h"

/* ZB-H1 (Qi et al., arXiv 2401.10241, section 2.1): the order of 1F1B with the backward split. Gradients leave earlier,
 * and the weight gradients, which nobody waits for, fill what was the bubble. They are put off until P microbatches are
 * alive, the memory of 1F1B's first rank, on every rank. */
void generate_zb_h1(struct schedule *schedule, int rank)
{
    int ranks = schedule->ranks, microbatches = schedule->microbatches;
    int ahead = microbatches < ranks - rank ? microbatches : ranks - rank;
    int forwards = 0, inputs = 0, weights = 0; /* so far */
    while (forwards < ahead)
        generate_append(schedule, rank, FORWARD, rank, forwards++);
    while (inputs < microbatches) {
        generate_append(schedule, rank, BACKWARD_INPUT, rank, inputs++);
        if (forwards < microbatches ? forwards - weights >= ranks : inputs - weights > rank)
            generate_append(schedule, rank, BACKWARD_WEIGHT, rank, weights++);
        if (forwards < microbatches)
            generate_append(schedule, rank, FORWARD, rank, forwards++);
    }
    while (weights < microbatches)
        generate_append(schedule, rank, BACKWARD_WEIGHT, rank, weights++);
}

/* One rank's part of ZB-V as it is written down. */
struct writer {
    struct schedule *schedule;
    int rank;
    int next[2][BACKWARD_WEIGHT + 1]; /* microbatch of each chunk and operation */
};

/* Writes the operation for the chunk's next microbatch; one that does not exist is left out. */
static void write_next(struct writer *writer, enum operation op, int chunk)
{
    int microbatch = writer->next[chunk][op]++;
    if (microbatch < writer->schedule->microbatches)
        generate_append(writer->schedule, writer->rank, op, schedule_stage_of(writer->schedule, writer->rank, chunk),
                        microbatch);
}

/* Writes what the letters say, "F0 I1 W1": operation and chunk. */
static void write_all(struct writer *writer, const char *letters, int times)
{
    for (int i = 0; i < times; i++)
        for (const char *at = letters; *at; at += at[2] ? 3 : 2)
            write_next(writer, at[0] == 'F' ? FORWARD : at[0] == 'I' ? BACKWARD_INPUT : BACKWARD_WEIGHT, at[1] - '0');
}

/* ZB-V (Qi et al., arXiv 2401.10241; the order as PyTorch's ScheduleZBVZeroBubble has it): no
 * bubble where forward, input and weight gradient take equally long, in the memory of 1F1B's first rank. The order is
 * one for at least 2P - 1 microbatches; of fewer it is the part that exists. */
void generate_zb_v(struct schedule *schedule, int rank)
{
    struct writer writer = {.schedule = schedule, .rank = rank};
    int ranks = schedule->ranks, fewest = 2 * ranks - 1;
    int microbatches = schedule->microbatches < fewest ? fewest : schedule->microbatches;
    int(*next)[BACKWARD_WEIGHT + 1] = writer.next;
    write_all(&writer, "F0", 2 * (ranks - rank) - 1);
    write_all(&writer, "F1 F0", rank);
    write_all(&writer, "F1 I1 W1", ranks - rank);
    while (next[1][FORWARD] < next[0][FORWARD] || next[0][FORWARD] < microbatches) {
        if (next[0][FORWARD] < microbatches)
            write_all(&writer, "F0", 1);
        write_all(&writer, "I0 W0 F1 I1 W1", 1);
    }
    write_all(&writer, "I0 I1", rank);
    write_all(&writer, "I0 W0", ranks - rank);
    write_all(&writer, "W1", next[1][BACKWARD_INPUT] - next[1][BACKWARD_WEIGHT]);
    write_all(&writer, "W0", next[0][BACKWARD_INPUT] - next[0][BACKWARD_WEIGHT]);
}
