#include "plan/footprint.h"

/* The most buffers alive at once, where each lives from `producer`'s computation for a microbatch, on the same rank, to
 * the end of the stage's backward for it (its forward when there is no backward). */
static int local_peak(const struct schedule *schedule, int stage, int producer, bool backward)
{
    const struct instruction_list *list = &schedule->lists[schedule_rank_of(schedule, stage)];
    int live = 0, peak = 0;
    for (int64_t i = 0; i < list->count; i++) {
        struct instruction item = list->items[i];
        bool makes = item.stage == producer &&
                     (backward ? item.op == BACKWARD || item.op == BACKWARD_INPUT : item.op == FORWARD);
        bool ends = item.stage == stage &&
                    (schedule->forward_only ? item.op == FORWARD : item.op == BACKWARD || item.op == BACKWARD_WEIGHT);
        if (makes && ++live > peak)
            peak = live;
        live -= ends;
    }
    return peak;
}

struct stage_slots footprint_slots(const struct schedule *schedule, const struct validation *validation, int stage)
{
    int rank = schedule_rank_of(schedule, stage);
    const int *depth = validation->receive_depth[rank];
    bool backward = !schedule->forward_only;
    struct stage_slots slots = {.sets = validation->peak_sets[stage], .pending = validation->peak_pending[stage]};
    if (stage > 0) {
        if (schedule_rank_of(schedule, stage - 1) == rank) {
            slots.inputs = local_peak(schedule, stage, stage - 1, false);
        } else { /* one of those received ahead is taken into use when the last set is */
            slots.inputs = slots.sets + depth[MESSAGE_ACTIVATION] - 1;
            slots.in_gradients = backward ? SEND_SLOTS : 0;
        }
    }
    if (stage < schedule->stages - 1) {
        if (schedule_rank_of(schedule, stage + 1) == rank) {
            slots.out_gradients = backward ? local_peak(schedule, stage, stage + 1, true) : 0;
        } else {
            slots.out_gradients = backward ? slots.pending + depth[MESSAGE_GRADIENT] - 1 : 0;
            slots.outputs = SEND_SLOTS;
        }
    }
    return slots;
}

bool footprint_splits(const struct schedule *schedule, int stage)
{
    const struct instruction_list *list = &schedule->lists[schedule_rank_of(schedule, stage)];
    for (int64_t i = 0; i < list->count; i++)
        if (list->items[i].stage == stage && list->items[i].op == BACKWARD_INPUT)
            return true;
    return false;
}

size_t footprint_total(const struct footprint *memory)
{
    return memory->weights + memory->computed + memory->gradients + memory->moments + memory->activations +
           memory->buffers + memory->workspace;
}

size_t footprint_buffer(size_t bytes)
{
    return (bytes / 64 + 1) * 64;
}

size_t footprint_field(const struct schedule *schedule, int64_t rows)
{
    return ((size_t)schedule->microbatches * (size_t)rows * sizeof(int32_t) + 63) / 64 * 64;
}

void footprint_add_stage(struct footprint *memory, const struct stage_slots *slots, const struct stage_bytes *bytes)
{
    memory->activations += (size_t)slots->sets * footprint_buffer(bytes->set) +
                           (size_t)slots->pending * footprint_buffer(bytes->pending) +
                           (size_t)slots->inputs * footprint_buffer(bytes->input);
    memory->buffers += (size_t)slots->outputs * footprint_buffer(bytes->output) +
                       (size_t)slots->out_gradients * footprint_buffer(bytes->output) +
                       (size_t)slots->in_gradients * footprint_buffer(bytes->input);
}
