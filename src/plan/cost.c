#include "plan/cost.h"

#include <math.h>
#include <string.h>

#include "model/parameters.h"
#include "plan/footprint.h"
#include "plan/machine.h"

/* What AdamW reads and writes for one parameter: weight, both moments, and the gradient, which it only reads. */
#define OPTIMIZER_BYTES (7 * sizeof(float))

struct cost_machine cost_machine(const struct settings *settings)
{
    double peak = machine_peak(settings);
    return (struct cost_machine){.figures = &settings->machine,
                                 .peak = peak > 0 ? peak : 1e12,
                                 .known = peak > 0,
                                 .per_node = settings->plan.devices_per_node,
                                 .element_bytes = settings->run.precision == PRECISION_BF16 ? 2 : sizeof(float)};
}

bool cost_within_node(const struct cost_machine *machine, int64_t ranks)
{
    return ranks <= machine->per_node && machine->per_node % ranks == 0;
}

static bool same_kind(const struct model *model, const struct circumstances *circumstances, int a, int b)
{
    const struct layer *x = &model->layers[a], *y = &model->layers[b];
    if (x->kind != y->kind || parameters_in_layers(model, a, a + 1) != parameters_in_layers(model, b, b + 1))
        return false;
    struct layer_costs p = x->kind->costs(x, circumstances), q = y->kind->costs(y, circumstances);
    return p.forward == q.forward && p.input_gradient == q.input_gradient && p.weight_gradient == q.weight_gradient;
}

int cost_kinds(const struct model *model, const struct circumstances *circumstances, int *kinds)
{
    int count = 0, examples[64];
    const int most = sizeof examples / sizeof *examples;
    for (int layer = 0; layer < model->layer_count; layer++) {
        int kind = 0;
        while (kind < count && !same_kind(model, circumstances, layer, examples[kind]))
            kind++;
        if (kind == most)
            fatal("a model with more than %d kinds of layers", most);
        if (kind == count)
            examples[count++] = layer;
        kinds[layer] = kind;
    }
    return count;
}

/* Matrix products that the layer's operations consist of: one for each matrix among its parameters. */
static int products_of(const struct declaration *declaration)
{
    int products = 0;
    for (int i = 0; i < declaration->parameter_count; i++)
        products += declaration->parameters[i].axes > 1 && declaration->parameters[i].decay;
    return products > 0 ? products : 1;
}

/* Operations of the average product on one tensor rank. */
static double product_size(const struct declaration *declaration, double forward)
{
    return forward / products_of(declaration);
}

double cost_product(const struct model *model, int layer, const struct circumstances *circumstances)
{
    const struct layer *item = &model->layers[layer];
    return product_size(&model->declarations[layer], item->kind->costs(item, circumstances).forward);
}

/* Bytes of the weights that the layer touches: each is used in one operation at least, so that of a table that rows are
 * looked up in only these count. */
static double weight_bytes(const struct declaration *declaration, const struct circumstances *circumstances,
                           double operations)
{
    double elements = 0, bytes = 0;
    for (int i = 0; i < declaration->parameter_count; i++) {
        const struct parameter *parameter = &declaration->parameters[i];
        double all = parameter->split < 0 ? 1 : 1.0 / circumstances->tensor;
        for (int axis = 0; axis < parameter->axes; axis++)
            all *= (double)parameter->shape[axis];
        elements += all;
        bytes += all * (double)element_bytes(parameter->element);
    }
    return elements > operations ? bytes / elements * operations : bytes;
}

static double boundary_traffic(const struct declaration *declaration, const struct circumstances *circumstances)
{
    double bytes = 0;
    for (int i = 0; i < declaration->after_count; i++)
        if (declaration->after[i].written)
            bytes += (double)boundary_bytes(&declaration->after[i], circumstances, circumstances->sequences);
    return bytes;
}

/* The model of a layer that was not timed. */
static struct cost_seconds roofline(const struct cost_machine *machine, const struct model *model, int layer,
                                    const struct layer_costs *costs, const struct circumstances *circumstances)
{
    const struct layer *item = &model->layers[layer];
    const struct declaration *declaration = &model->declarations[layer];
    struct circumstances all = *circumstances;
    all.recompute = RECOMPUTE_NONE;
    double kept = (double)item->kind->bytes(item, &all).kept;
    double again = kept - (double)item->kind->bytes(item, circumstances).kept;
    double pending = (double)item->kind->bytes(item, &all).pending;
    double weights = weight_bytes(declaration, circumstances, costs->forward),
           across = 2 * boundary_traffic(declaration, circumstances);
    double speed = machine->peak * machine_efficiency(machine->figures, product_size(declaration, costs->forward));
    double bandwidth = machine->figures->memory_gbs > 0 ? 1e9 * machine->figures->memory_gbs : INFINITY;
    double moved[] = {kept + across + weights, kept + again + pending + across + weights, kept + pending + 2 * weights};
    return (struct cost_seconds){
        .forward = costs->forward / speed + moved[0] / bandwidth,
        .input = costs->input_gradient == 0 ? 0 : costs->input_gradient / speed + moved[1] / bandwidth,
        .weight = costs->weight_gradient / speed + moved[2] / bandwidth};
}

/* The timed layer nearest to these operations, -1: the kind was not timed in this mode. */
static int find_timed(const struct machine_settings *figures, int kind, enum recompute_choice recompute,
                      const struct layer_costs *costs)
{
    int best = -1;
    double nearest = INFINITY;
    for (int i = 0; i < figures->layer_kind.count; i++) {
        double forward = 1e9 * figures->layer_forward_gflop.items[i];
        if (figures->layer_kind.items[i] != kind || figures->layer_recompute.items[i] != (int)recompute ||
            forward <= 0 || figures->layer_forward_ms.items[i] <= 0)
            continue;
        /* The mixture of operations tells variants of a kind apart, and matters more than the size. */
        double distance =
            fabs(log(costs->forward / forward)) +
            10 * fabs(costs->input_gradient / costs->forward - 1e9 * figures->layer_input_gflop.items[i] / forward);
        if (distance < nearest) {
            nearest = distance;
            best = i;
        }
    }
    return best;
}

static double sums_seconds(const struct cost_machine *machine, struct layer_sums sums, int ranks)
{
    if (ranks == 1 || sums.calls <= 0)
        return 0;
    return sums.calls * cost_sum(machine, COST_TENSOR, sums.elements / sums.calls * machine->element_bytes, ranks,
                                 !cost_within_node(machine, ranks));
}

/* A measured time without the sums that were in it, under other operations and another efficiency. */
static double scaled(double ms, double sums, double operations, double timed, double efficiency)
{
    double seconds = ms / 1e3, own = fmax(seconds - sums, seconds / 10);
    return timed > 0 ? own * operations / timed * efficiency : own;
}

static struct cost_seconds from_timed(const struct cost_machine *machine, const struct model *model, int layer, int i,
                                      const struct layer_costs *costs, const struct circumstances *circumstances)
{
    const struct machine_settings *f = machine->figures;
    const struct declaration *declaration = &model->declarations[layer];
    const struct layer *item = &model->layers[layer];
    double timed = 1e9 * f->layer_forward_gflop.items[i];
    double efficiency = machine_efficiency(f, product_size(declaration, timed)) /
                        machine_efficiency(f, product_size(declaration, costs->forward));
    struct circumstances then = *circumstances;
    then.tensor = f->layer_tensor > 1 ? f->layer_tensor : 1;
    then.t = 0;
    struct layer_costs there = {0};
    if (then.tensor > 1) /* the rows that were timed, whatever the microbatch now */
        there = item->kind->costs(item, &then);
    double rows = there.forward > 0 ? timed / there.forward : 1;
    struct layer_sums sums[] = {there.forward_sums, there.input_sums, there.weight_sums};
    for (int k = 0; k < 3; k++)
        sums[k].elements *= rows;
    return (struct cost_seconds){
        .forward = scaled(f->layer_forward_ms.items[i], sums_seconds(machine, sums[0], then.tensor), costs->forward,
                          timed, efficiency),
        .input = scaled(f->layer_input_ms.items[i], sums_seconds(machine, sums[1], then.tensor), costs->input_gradient,
                        1e9 * f->layer_input_gflop.items[i], efficiency),
        .weight = scaled(f->layer_weight_ms.items[i], sums_seconds(machine, sums[2], then.tensor),
                         costs->weight_gradient, 1e9 * f->layer_weight_gflop.items[i], efficiency),
        .measured = true};
}

struct cost_seconds cost_layer(const struct cost_machine *machine, const struct model *model, int layer, int kind,
                               const struct circumstances *circumstances)
{
    const struct layer *item = &model->layers[layer];
    struct layer_costs costs = item->kind->costs(item, circumstances);
    int timed = find_timed(machine->figures, kind, circumstances->recompute, &costs);
    struct cost_seconds out = timed >= 0 ? from_timed(machine, model, layer, timed, &costs, circumstances)
                                         : roofline(machine, model, layer, &costs, circumstances);
    double sums[] = {sums_seconds(machine, costs.forward_sums, circumstances->tensor),
                     sums_seconds(machine, costs.input_sums, circumstances->tensor),
                     sums_seconds(machine, costs.weight_sums, circumstances->tensor)};
    out.forward += sums[0];
    out.input += sums[1];
    out.weight += sums[2];
    out.tensor = sums[0] + sums[1] + sums[2];
    return out;
}

double cost_latency(const struct cost_machine *machine, bool far)
{
    const struct machine_settings *f = machine->figures;
    return (far && f->network_gbs > 0 ? f->network_latency_us : f->link_latency_us) / 1e6;
}

/* Bytes per second of one link, infinite where unknown. */
static double link_bandwidth(const struct cost_machine *machine, bool far)
{
    const struct machine_settings *f = machine->figures;
    double gbs = far && f->network_gbs > 0 ? f->network_gbs : f->link_gbs;
    return gbs > 0 ? 1e9 * gbs : INFINITY;
}

/* Whether measured curves hold: they are of one node. */
static bool by_curve(const struct cost_machine *machine, bool far)
{
    return !far || machine->figures->network_gbs == 0;
}

double cost_message(const struct cost_machine *machine, double bytes, bool far)
{
    const struct machine_settings *f = machine->figures;
    if (bytes <= 0)
        return 0;
    if (f->message_bytes.count > 0 && by_curve(machine, far))
        return machine_curve(&f->message_bytes, &f->message_us, bytes, 0, 1) / 1e6;
    return cost_latency(machine, far) + bytes / link_bandwidth(machine, far);
}

double cost_stall(const struct cost_machine *machine, double bytes, bool far)
{
    double overlap = machine->figures->message_overlap;
    return overlap > 0 ? (1 - overlap) * cost_message(machine, bytes, far) : 0;
}

/* What each rank sends of a vector that is summed, in pieces that are exchanged and then gathered. */
static double ring_factor(int ranks)
{
    return 2.0 * (ranks - 1) / ranks;
}

double cost_sum(const struct cost_machine *machine, enum cost_sum_kind kind, double bytes, int ranks, bool far)
{
    const struct machine_settings *f = machine->figures;
    if (ranks <= 1 || bytes <= 0)
        return 0;
    if (f->sum_bytes.count > 0 && by_curve(machine, far)) {
        const struct settings_reals *us = kind == COST_DATA ? &f->data_sum_us : &f->tensor_sum_us;
        return machine_curve(&f->sum_bytes, us, bytes, 0, 1) / 1e6 * ring_factor(ranks) / ring_factor(f->sum_ranks);
    }
    return 2 * ceil(log2(ranks)) * cost_latency(machine, far) +
           ring_factor(ranks) * bytes / link_bandwidth(machine, far);
}

double cost_reduction(const struct cost_machine *machine, double elements, int ranks, bool far)
{
    double bytes = elements * sizeof(float), bucket = BUCKET_ELEMENTS * sizeof(float);
    if (bytes <= bucket)
        return cost_sum(machine, COST_DATA, bytes, ranks, far);
    /* Several are under way at once, so that one's latency lies behind the others' bytes. */
    double whole = cost_sum(machine, COST_DATA, bucket, ranks, far);
    double latency = fmin(whole, 2 * ceil(log2(ranks)) * cost_latency(machine, far));
    return latency + (whole - latency) * bytes / bucket;
}

double cost_optimizer(const struct cost_machine *machine, double elements)
{
    const struct machine_settings *f = machine->figures;
    if (f->optimizer_ns > 0)
        return elements * f->optimizer_ns / 1e9;
    double bytes = OPTIMIZER_BYTES + (machine->element_bytes < sizeof(float) ? machine->element_bytes : 0);
    return f->memory_gbs > 0 ? elements * bytes / (1e9 * f->memory_gbs) : 0;
}
