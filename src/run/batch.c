#include "run/batch.h"

#include <stdlib.h>

#include "base/memory.h"
#include "parallel/flight.h"

void batch_create(struct batch *batch, const struct batch_shape *shape)
{
    *batch = (struct batch){.shape = *shape};
    size_t tokens = (size_t)shape->microbatches * (size_t)shape->microbatch_size * (size_t)shape->sequence;
    for (int field = 0; field < EXECUTOR_FIELDS; field++)
        if (shape->reads[field])
            batch->fields[field] = allocate(tokens, sizeof *batch->fields[field]);
    batch->sequences = allocate((size_t)shape->microbatches, sizeof *batch->sequences);
    batch->samples = allocate((size_t)shape->microbatch_size, sizeof *batch->samples);
}

void batch_destroy(struct batch *batch)
{
    for (int field = 0; field < EXECUTOR_FIELDS; field++)
        free(batch->fields[field]);
    free(batch->sequences);
    free(batch->samples);
    *batch = (struct batch){0};
}

void batch_read(struct batch *batch, struct dataset *dataset, const struct sample_order *order, int64_t place,
                int64_t end)
{
    const struct batch_shape *shape = &batch->shape;
    flight_begin(FLIGHT_READ_BATCH);
    for (int m = 0; m < shape->microbatches; m++) {
        int64_t first = place + ((int64_t)m * shape->data + shape->d) * shape->microbatch_size, count = 0;
        while (count < shape->microbatch_size && first + count < end) {
            batch->samples[count] = sample_order_at(order, first + count);
            count++;
        }
        batch->sequences[m] = count;
        for (int field = 0; field < EXECUTOR_FIELDS; field++) {
            struct err err;
            if (!shape->reads[field] || count == 0)
                continue;
            int32_t *tokens = batch->fields[field] + (int64_t)m * shape->microbatch_size * shape->sequence;
            if (dataset_read(dataset, batch->samples, count, shape->sequence, field, tokens, &err) < 0)
                fatal("%s", err.text);
        }
    }
    flight_end();
}
