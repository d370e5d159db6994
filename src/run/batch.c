#include "run/batch.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/host_memory.h"
#include "parallel/flight.h"

static size_t field_bytes(const struct batch_shape *shape)
{
    return (size_t)shape->microbatches * (size_t)shape->microbatch_size * (size_t)shape->sequence * sizeof(int32_t);
}

void batch_create(struct batch *batch, const struct batch_shape *shape)
{
    *batch = (struct batch){.shape = *shape};
    for (int field = 0; field < EXECUTOR_FIELDS; field++) {
        if (!shape->reads[field])
            continue;
        batch->fields[field] = host_memory(shape->device, field_bytes(shape), "a batch");
        memset(batch->fields[field], 0, field_bytes(shape)); /* ragged batches leave tokens unread */
    }
    batch->sequences = allocate((size_t)shape->microbatches, sizeof *batch->sequences);
    batch->samples = allocate((size_t)shape->microbatch_size, sizeof *batch->samples);
}

void batch_destroy(struct batch *batch)
{
    for (int field = 0; field < EXECUTOR_FIELDS; field++)
        if (batch->fields[field])
            batch->shape.device->host_release(batch->fields[field], field_bytes(&batch->shape));
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
