#include "io/checkpoint_parts.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "parallel/agree.h"

struct box checkpoint_box(const struct checkpoint_tensor *tensor, const struct checkpoint_part *part)
{
    return box_make(tensor->axes, part->start, part->count);
}

static int check_part(const struct checkpoint_tensor *tensors, int tensor_count, const struct checkpoint_part *part,
                      struct err *err)
{
    if (part->tensor < 0 || part->tensor >= tensor_count)
        return err_set(err, "a part of tensor %d, where there are %d", part->tensor, tensor_count);
    const struct checkpoint_tensor *tensor = &tensors[part->tensor];
    int64_t row = 1;
    for (int a = 0; a < tensor->axes; a++) {
        if (part->start[a] < 0 || part->count[a] < 0 || part->start[a] > tensor->shape[a] - part->count[a])
            return err_set(err, "%s: a part leaves axis %d: %" PRId64 " + %" PRId64 " of %" PRId64, tensor->path, a,
                           part->start[a], part->count[a], tensor->shape[a]);
        row *= a > 0 ? part->count[a] : 1;
    }
    if (tensor->axes > 0 && part->count[0] > 1 && part->stride < row)
        return err_set(err, "%s: a part's stride of %" PRId64 " is less than its row of %" PRId64, tensor->path,
                       part->stride, row);
    return 0;
}

static int check_cover(const struct checkpoint_tensor *tensors, int tensor_count, const uint64_t *covered,
                       struct err *err)
{
    for (int i = 0; i < tensor_count; i++) {
        uint64_t elements = 1;
        for (int a = 0; a < tensors[i].axes; a++)
            elements *= (uint64_t)tensors[i].shape[a];
        if (covered[i] != elements)
            return err_set(err, "%s: the parts of all ranks cover %" PRIu64 " of %" PRIu64 " elements", tensors[i].path,
                           covered[i], elements);
    }
    return 0;
}

int checkpoint_check_parts(struct communicator *comm, const struct checkpoint_tensor *tensors, int tensor_count,
                           const struct checkpoint_part *parts, int part_count, struct err *err)
{
    uint64_t *covered = allocate((size_t)tensor_count, sizeof *covered);
    int result = 0;
    for (int i = 0; i < part_count && result == 0; i++) {
        result = check_part(tensors, tensor_count, &parts[i], err);
        if (result == 0 && parts[i].first) {
            struct box box = checkpoint_box(&tensors[parts[i].tensor], &parts[i]);
            covered[parts[i].tensor] += (uint64_t)box_elements(&box);
        }
    }
    result = agree(comm, result, err);
    if (result == 0) {
        control_sum_uint64(comm, covered, tensor_count);
        result = check_cover(tensors, tensor_count, covered, err);
    }
    free(covered);
    return result;
}

void checkpoint_digest_parts(struct communicator *comm, const struct checkpoint_tensor *tensors, int tensor_count,
                             const struct checkpoint_part *parts, int part_count, uint64_t *digests)
{
    memset(digests, 0, (size_t)tensor_count * sizeof *digests);
    for (int i = 0; i < part_count; i++) {
        const struct checkpoint_part *part = &parts[i];
        if (!part->first)
            continue;
        struct box box = checkpoint_box(&tensors[part->tensor], part);
        digests[part->tensor] += box_digest(&box, tensors[part->tensor].shape, part->data, part->stride);
    }
    control_sum_uint64(comm, digests, tensor_count);
}
