/* Times what training consists of on this machine, and writes it as the &machine of machine.nml. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/trace.h"
#include "parallel/agree.h"
#include "plan/cost.h"
#include "plan/machine.h"
#include "run/bench.h"
#include "run/devices.h"
#include "run/modes.h"

static int begin(struct bench *bench, struct err *err)
{
    const struct settings *s = bench->settings;
    const struct device *device = devices_choose(bench->job, bench->settings, err);
    if (!device)
        return -1;
    struct stream *stream = device->stream_open();
    grid_open(&bench->grid, bench->job->world, s->grid.pipeline, s->grid.data, s->grid.tensor, device, stream);
    bench->context = (struct context){.device = device,
                                      .stream = stream,
                                      .tensor = bench->grid.tensor_group,
                                      .tensor_counts = allocate((size_t)bench->grid.tensor, sizeof(int64_t)),
                                      .loss_scale = 1,
                                      .circumstances = {.sequences = s->pipeline.microbatch_size,
                                                        .tensor = bench->grid.tensor,
                                                        .t = bench->grid.t,
                                                        .sequence_parallel = s->grid.sequence_parallel,
                                                        .recompute = s->pipeline.recompute,
                                                        .device = device,
                                                        .live = 1}};
    bench->messages = grid_ring(&bench->grid);
    bench->sums = grid_group(&bench->grid);
    bench->begin = device->event_open();
    bench->end = device->event_open();
    bench->figures = allocate(1, sizeof *bench->figures);
    settings_init(bench->figures);
    bench->figures->run.precision = s->run.precision;
    return 0;
}

static void end(struct bench *bench)
{
    settings_fini(bench->figures);
    free(bench->figures);
    free(bench->context.tensor_counts);
    model_destroy(&bench->model);
    communicator_close(bench->sums);
    communicator_close(bench->messages);
    bench->context.device->event_close(bench->begin);
    bench->context.device->event_close(bench->end);
    grid_close(&bench->grid);
    bench->context.device->stream_close(bench->context.stream);
}

static void name_machine(const struct bench *bench)
{
    const struct settings *s = bench->settings;
    struct machine_settings *m = &bench->figures->machine;
    snprintf(m->name, sizeof m->name, "%s: %d rank%s of %d thread%s, hidden %d, sequence %d, microbatches of %d",
             bench->job->host, bench->job->world->size, bench->job->world->size == 1 ? "" : "s", s->run.threads,
             s->run.threads == 1 ? "" : "s", s->model.hidden, s->model.sequence, s->pipeline.microbatch_size);
}

static void describe(const struct bench *bench)
{
    const struct machine_settings *m = &bench->figures->machine;
    for (int i = 0; i < m->layer_kind.count; i++)
        log_line("layer        kind %d, recompute %-9s: forward %s, input gradient %s, weight gradient %s",
                 m->layer_kind.items[i], recompute_names[m->layer_recompute.items[i]],
                 text_duration(m->layer_forward_ms.items[i] / 1e3).text,
                 text_duration(m->layer_input_ms.items[i] / 1e3).text,
                 text_duration(m->layer_weight_ms.items[i] / 1e3).text);
    for (int i = 0; i < m->matmul_gflop.count; i++)
        log_line("product      %.4g Gflop: %.4g Gflop/s", m->matmul_gflop.items[i],
                 m->matmul_efficiency.items[i] * machine_peak(bench->figures) / 1e9);
    log_line("memory       %.4g GB/s; optimizer %.3g ns for a parameter", m->memory_gbs, m->optimizer_ns);
    for (int i = 0; i < m->message_bytes.count; i++)
        log_line("message      %s: %s", text_bytes(m->message_bytes.items[i]).text,
                 text_duration(m->message_us.items[i] / 1e6).text);
    if (m->message_overlap > 0)
        log_line("overlap      %.0f%% of a microbatch's message passes behind computations", 100 * m->message_overlap);
    for (int i = 0; i < m->sum_bytes.count; i++)
        log_line("sum          %s over %d ranks: %s for gradients, %s for activations",
                 text_bytes(m->sum_bytes.items[i]).text, m->sum_ranks,
                 text_duration(m->data_sum_us.items[i] / 1e6).text,
                 text_duration(m->tensor_sum_us.items[i] / 1e6).text);
    log_line("files        write %.3g GB/s, read %.3g GB/s", m->write_gbs, m->read_gbs);
}

static int write_machine(const struct bench *bench, struct err *err)
{
    int result = 0;
    if (bench->job->world->rank == 0) {
        struct text text = {0};
        text_add(&text,
                 "! Measured by mode = 'bench'; ppmodel --defaults tells what each key means.\n"
                 "! Use it with machine.preset=%s/machine.nml\n",
                 bench->settings->run.output);
        settings_print_group(bench->figures, "machine", &text);
        result = mode_write_text(bench->settings, "machine.nml", &text, err);
        text_fini(&text);
    }
    return agree(bench->job->world, result, err);
}

enum exit_code mode_bench(const struct job *job, struct settings *settings)
{
    struct err err = {0};
    struct bench bench = {.job = job, .settings = settings};
    double start = clock_seconds();
    if (mode_write_resolved(job, settings, &err) < 0)
        return mode_refuse(&err);
    if (begin(&bench, &err) < 0)
        return mode_refuse(&err);
    int result = agree(job->world, model_create(&bench.model, settings, &err), &err);
    if (result == 0) {
        bench.element = bench.model.declarations[bench.model.layer_count / 2 - 1].after[0].element;
        name_machine(&bench);
        log_line("bench        %s", bench.figures->machine.name);
        mode_warn_crowded(job, settings->run.threads);
        bench_device(&bench);
        bench_layers(&bench);
        bench_messages(&bench);
        bench_sums(&bench);
        result = bench_files(&bench, &err);
    }
    if (result == 0)
        result = write_machine(&bench, &err);
    if (result == 0) {
        describe(&bench);
        log_line("written      %s/machine.nml, after %s", settings->run.output,
                 text_duration(clock_seconds() - start).text);
    }
    end(&bench);
    return result < 0 ? mode_refuse(&err) : EXIT_DONE;
}
