#include "plan/machine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* A device with its links. Figures are those of the makers' data sheets, dense (without structured sparsity),
 * bandwidths one way. */
struct preset {
    const char *name, *text;
    double fp32, tf32, bf16; /* Gflop/s */
    double memory_gib, memory_gbs;
    double link_us, link_gbs, network_us, network_gbs;
    double most, half; /* of the assumed efficiency: see add_efficiency() */
};

static const struct preset presets[] = {
    /* NVIDIA A100 Tensor Core GPU data sheet (2021), column A100 80GB SXM: FP32 19.5, TF32 156 and BF16 312 Tflop/s, 80
     * GB of HBM2e at 2039 GB/s, NVLink 600 GB/s in both directions together. DGX A100 data sheet: eight ConnectX-6
     * ports of HDR InfiniBand, 200 Gb/s each, one for each GPU. */
    {"a100-80gb-sxm", "NVIDIA A100 80 GB SXM, NVLink 3, HDR InfiniBand, efficiency assumed", 19500, 156000, 312000,
     74.5, 2039, 8, 0.8 * 300, 12, 0.9 * 25, 0.83, 3},
    /* NVIDIA H100 Tensor Core GPU data sheet (2023), column H100 SXM: FP32 67 Tflop/s; TF32 989 and BF16 1979 Tflop/s
     * with sparsity, which is half of that without it; 80 GB of HBM3 at 3.35 TB/s, NVLink 900 GB/s. DGX H100 data
     * sheet: eight ConnectX-7 ports of NDR InfiniBand, 400 Gb/s each, one for each GPU. */
    {"h100-sxm", "NVIDIA H100 80 GB SXM, NVLink 4, NDR InfiniBand, efficiency assumed", 67000, 494500, 989500, 74.5,
     3350, 8, 0.8 * 450, 12, 0.9 * 50, 0.72, 10},
    /* NVIDIA H200 Tensor Core GPU data sheet (2024), column H200 SXM: the H100's arithmetic and links, 141 GB of HBM3e
     * at 4.8 TB/s. */
    {"h200", "NVIDIA H200 141 GB SXM, NVLink 4, NDR InfiniBand, efficiency assumed", 67000, 494500, 989500, 131.3, 4800,
     8, 0.8 * 450, 12, 0.9 * 50, 0.72, 10},
};

/* What is assumed, because no data sheet says it:
 * - a product of n Gflop reaches most * n / (n + half) of the peak: `half` is what the device computes at its peak in
 *   the ten microseconds that starting and filling it cost, `most` what remains of the peak under its power limit;
 * - 0.8 of NVLink's and 0.9 of InfiniBand's bandwidth are reached, and a message takes 8 or 12 microseconds besides;
 * - GB are 10^9 bytes, which leaves a few GiB of the memory to driver and libraries. */
static void add_efficiency(const struct preset *preset, struct text *out)
{
    static const double sizes[] = {0.01, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 10000};
    const int count = sizeof sizes / sizeof *sizes;
    text_add(out, "matmul_gflop =");
    for (int i = 0; i < count; i++)
        text_add(out, " %g", sizes[i]);
    text_add(out, "\nmatmul_efficiency =");
    for (int i = 0; i < count; i++)
        text_add(out, " %.4g", preset->most * sizes[i] / (sizes[i] + preset->half));
    text_add(out, "\n");
}

bool machine_is_file(const struct settings *settings)
{
    size_t length = strlen(settings->machine.preset);
    return length > 4 && strcmp(settings->machine.preset + length - 4, ".nml") == 0;
}

int machine_complete_from(struct settings *settings, const char *text, size_t length, struct text *messages)
{
    struct settings *preset = allocate(1, sizeof *preset);
    settings_init(preset);
    int result = settings_parse(preset, text, length, settings->machine.preset, NULL, 0, messages);
    if (result == 0 && preset->machine.preset[0]) {
        text_add(messages, "%s: its &machine names a preset, '%s', where figures are needed\n",
                 settings->machine.preset, preset->machine.preset);
        result = -1;
    }
    if (result == 0) {
        settings->machine.preset[0] = 0;
        settings_complete(settings, preset, "machine");
    }
    settings_fini(preset);
    free(preset);
    return result;
}

int machine_complete(struct settings *settings, struct err *err)
{
    const int count = sizeof presets / sizeof *presets;
    const char *names[sizeof presets / sizeof *presets];
    if (!settings->machine.preset[0])
        return 0;
    for (int i = 0; i < count; i++) {
        const struct preset *preset = &presets[i];
        names[i] = preset->name;
        if (strcmp(preset->name, settings->machine.preset) != 0)
            continue;
        struct text text = {0}, messages = {0};
        text_add(&text,
                 "&machine name = '%s' peak_gflops = %g peak_tf32_gflops = %g peak_bf16_gflops = %g\n"
                 "memory_gib = %g memory_gbs = %g\n"
                 "link_latency_us = %g link_gbs = %g network_latency_us = %g network_gbs = %g\n",
                 preset->text, preset->fp32, preset->tf32, preset->bf16, preset->memory_gib, preset->memory_gbs,
                 preset->link_us, preset->link_gbs, preset->network_us, preset->network_gbs);
        add_efficiency(preset, &text);
        text_add(&text, "/\n");
        if (machine_complete_from(settings, text_string(&text), text.length, &messages) < 0)
            fatal("the preset '%s' is wrong:\n%s", preset->name, text_string(&messages));
        text_fini(&text);
        text_fini(&messages);
        return 0;
    }
    const char *nearest = text_nearest(settings->machine.preset, names, count);
    return err_set(err,
                   "&machine preset = '%s' is neither a machine that is known here ('a100-80gb-sxm', 'h100-sxm', "
                   "'h200') nor a file ending in .nml%s%s%s",
                   settings->machine.preset, nearest ? "; did you mean '" : "", nearest ? nearest : "",
                   nearest ? "'?" : "");
}

static int check_pair(const char *x_name, const struct settings_reals *x, const char *y_name,
                      const struct settings_reals *y, struct err *err)
{
    if (x->count != y->count)
        return err_set(err, "&machine %s has %d values, but %s has %d: one for each", x_name, x->count, y_name,
                       y->count);
    for (int i = 1; i < x->count; i++)
        if (x->items[i] <= x->items[i - 1])
            return err_set(err, "&machine %s(%d) = %g is not above the value before it", x_name, i + 1, x->items[i]);
    return 0;
}

int machine_check(const struct settings *settings, struct err *err)
{
    const struct machine_settings *m = &settings->machine;
    if (check_pair("matmul_gflop", &m->matmul_gflop, "matmul_efficiency", &m->matmul_efficiency, err) < 0 ||
        check_pair("message_bytes", &m->message_bytes, "message_us", &m->message_us, err) < 0 ||
        check_pair("sum_bytes", &m->sum_bytes, "data_sum_us", &m->data_sum_us, err) < 0 ||
        check_pair("sum_bytes", &m->sum_bytes, "tensor_sum_us", &m->tensor_sum_us, err) < 0)
        return -1;
    if (m->sum_bytes.count > 0 && m->sum_ranks < 2)
        return err_set(err, "&machine sum_bytes needs sum_ranks, the ranks of these sums, at least 2");
    int count = m->layer_kind.count;
    if (m->layer_recompute.count != count || m->layer_forward_gflop.count != count ||
        m->layer_input_gflop.count != count || m->layer_weight_gflop.count != count ||
        m->layer_forward_ms.count != count || m->layer_input_ms.count != count || m->layer_weight_ms.count != count)
        return err_set(err,
                       "&machine layer_kind has %d values: layer_recompute, layer_forward_gflop, layer_input_gflop, "
                       "layer_weight_gflop, layer_forward_ms, layer_input_ms and layer_weight_ms need as many",
                       count);
    return 0;
}

double machine_peak(const struct settings *settings)
{
    switch (settings->run.precision) {
    case PRECISION_FP32:
        return 1e9 * settings->machine.peak_gflops;
    case PRECISION_TF32:
        return 1e9 * settings->machine.peak_tf32_gflops;
    case PRECISION_BF16:
        return 1e9 * settings->machine.peak_bf16_gflops;
    }
    return 0;
}

double machine_curve(const struct settings_reals *x, const struct settings_reals *y, double at, double below,
                     double above)
{
    int last = x->count - 1, i = 0;
    if (at <= x->items[0])
        return y->items[0] * pow(at / x->items[0], below);
    if (at >= x->items[last])
        return y->items[last] * pow(at / x->items[last], above);
    while (x->items[i + 1] < at)
        i++;
    double part = log(at / x->items[i]) / log(x->items[i + 1] / x->items[i]);
    return y->items[i] * pow(y->items[i + 1] / y->items[i], part);
}

double machine_efficiency(const struct machine_settings *machine, double operations)
{
    if (machine->matmul_gflop.count == 0 || operations <= 0)
        return 1;
    return machine_curve(&machine->matmul_gflop, &machine->matmul_efficiency, operations / 1e9, 1, 0);
}
