/* The declared table of all keys of the input: what a key is called, what it may hold, what it means.
 *
 * Everything else follows from it: the members of struct settings, the defaults, parsing and checks, resolved.nml and
 * the output of --defaults. A row is
 *
 *     K(group, key, type, default, low, high, unit, explanation)
 *
 * The default is spelt as in a namelist; "" leaves a list empty. Types and their bounds:
 *     INT     int      low <= value <= high
 *     COUNT   int64_t  the same
 *     REAL    double   AT_LEAST(x) or ABOVE(x), and AT_MOST(x) or BELOW(x)
 *     LOGICAL bool     no bounds
 *     STRING  char []  least and greatest number of bytes
 *     CHOICE(x)        enum x_choice, one of the spellings in X_CHOICES below
 *     LIST    struct settings_list of ints, each within low and high
 *     REALS   struct settings_reals of doubles, with the bounds of REAL for each
 *
 * The upper bounds are far beyond any use; they are there so that products of a few sizes fit into 64 bits. */
#ifndef BASE_SETTINGS_KEYS_H
#define BASE_SETTINGS_KEYS_H

enum {
    SETTINGS_STRING_MAX = 4096, /* bytes of a string */
    SETTINGS_LIST_MAX = 65536   /* elements of a list */
};

/* clang-format off */

/* X(constant, spelling), in the order of the constants' values from 0. */
#define MODE_CHOICES(X) \
    X(MODE_TRAIN, "train") \
    X(MODE_EVALUATE, "evaluate") \
    X(MODE_GENERATE, "generate") \
    X(MODE_PLAN, "plan") \
    X(MODE_BENCH, "bench")

#define DEVICE_CHOICES(X) \
    X(DEVICE_AUTO, "auto") \
    X(DEVICE_CPU, "cpu") \
    X(DEVICE_CUDA, "cuda")

#define PRECISION_CHOICES(X) \
    X(PRECISION_FP32, "fp32") \
    X(PRECISION_TF32, "tf32") \
    X(PRECISION_BF16, "bf16")

#define FAMILY_CHOICES(X) \
    X(FAMILY_GPT2, "gpt2") \
    X(FAMILY_LLAMA, "llama")

#define SCHEDULE_CHOICES(X) \
    X(SCHEDULE_GPIPE, "gpipe") \
    X(SCHEDULE_1F1B, "1f1b") \
    X(SCHEDULE_EAGER_1F1B, "eager-1f1b") \
    X(SCHEDULE_INTERLEAVED, "interleaved") \
    X(SCHEDULE_LOOPED_BFS, "looped-bfs") \
    X(SCHEDULE_ZB_H1, "zb-h1") \
    X(SCHEDULE_ZB_V, "zb-v") \
    X(SCHEDULE_V_HALF, "v-half") \
    X(SCHEDULE_V_MIN, "v-min") \
    X(SCHEDULE_CSV, "csv")

#define BALANCE_CHOICES(X) \
    X(BALANCE_COST, "cost") \
    X(BALANCE_UNIFORM, "uniform") \
    X(BALANCE_PARAMETERS, "parameters") \
    X(BALANCE_MEMORY, "memory") \
    X(BALANCE_EXPLICIT, "explicit")

#define RECOMPUTE_CHOICES(X) \
    X(RECOMPUTE_NONE, "none") \
    X(RECOMPUTE_SELECTIVE, "selective") \
    X(RECOMPUTE_FULL, "full")

#define OPTIMIZER_CHOICES(X) \
    X(OPTIMIZER_ADAMW, "adamw")

#define DECAY_CHOICES(X) \
    X(DECAY_COSINE, "cosine") \
    X(DECAY_LINEAR, "linear") \
    X(DECAY_CONSTANT, "constant") \
    X(DECAY_WSD, "wsd")

/* X(enum, its choices) */
#define SETTINGS_CHOICES(X) \
    X(mode, MODE_CHOICES) \
    X(device, DEVICE_CHOICES) \
    X(precision, PRECISION_CHOICES) \
    X(family, FAMILY_CHOICES) \
    X(schedule, SCHEDULE_CHOICES) \
    X(balance, BALANCE_CHOICES) \
    X(recompute, RECOMPUTE_CHOICES) \
    X(optimizer, OPTIMIZER_CHOICES) \
    X(decay, DECAY_CHOICES)

#define STEPS_MAX (INT64_C(1) << 40)
#define RANKS_MAX (1 << 20)

#define RUN_KEYS(K) \
    K(run, mode, CHOICE(mode), "'train'", 0, 0, "", "what to do") \
    K(run, steps, COUNT, "200", 0, STEPS_MAX, "", "optimizer steps in total; a resumed run stops at the same total") \
    K(run, stop_at, COUNT, "0", 0, STEPS_MAX, "", \
      "stop cleanly after this step, the schedule still follows steps; 0: no") \
    K(run, seed, COUNT, "1", 0, INT64_C(1) << 62, "", \
      "seed of the initial weights, the order of samples and sampling") \
    K(run, device, CHOICE(device), "'auto'", 0, 0, "", \
      "where to compute; auto: cuda where this build and this node have it") \
    K(run, threads, INT, "0", 0, 65536, "", "threads of a rank; 0: OMP_NUM_THREADS, else its share of the cores") \
    K(run, precision, CHOICE(precision), "'fp32'", 0, 0, "", \
      "arithmetic; tf32: cuda only; bf16: with fp32 master weights and accumulation") \
    K(run, output, STRING, "'.'", 1, SETTINGS_STRING_MAX, "", \
      "folder for metrics, resolved.nml and reports, made if missing") \
    K(run, log_every, COUNT, "1", 1, STEPS_MAX, "steps", "from one line of metrics.jsonl to the next") \
    K(run, evaluate_every, COUNT, "0", 0, STEPS_MAX, "steps", \
      "from one evaluation on data.validation to the next; 0: none") \
    K(run, evaluate_batches, COUNT, "0", 0, STEPS_MAX, "global batches", \
      "length of an evaluation; 0: all of data.validation") \
    K(run, digest_every, COUNT, "0", 0, STEPS_MAX, "steps", \
      "from one digest of the weights to the next, as --digest prints for /model; 0: none") \
    K(run, verbose, LOGICAL, ".false.", 0, 0, "", "tell more on the way") \
    K(run, quiet, LOGICAL, ".false.", 0, 0, "", "train and evaluate without a word but warnings and errors") \
    K(run, sample_every, COUNT, "0", 0, STEPS_MAX, "steps", \
      "from one sampled text (&generate) to the next; 0: none") \
    K(run, wall_minutes, REAL, "0", AT_LEAST(0), AT_MOST(1e9), "minutes", \
      "stop cleanly, with a checkpoint, before this much time is used; 0: no limit") \
    K(run, hang_seconds, REAL, "600", AT_LEAST(0), AT_MOST(1e9), "s", \
      "no instruction finished anywhere for this long: report where each rank stands, abort; 0: no watch")

#define MODEL_KEYS(K) \
    K(model, family, CHOICE(family), "'gpt2'", 0, 0, "", "kind of model") \
    K(model, layers, INT, "4", 1, SETTINGS_LIST_MAX, "", "transformer blocks") \
    K(model, hidden, INT, "256", 1, 1 << 20, "", "width of the residual stream") \
    K(model, heads, INT, "4", 1, 65536, "", "attention heads") \
    K(model, kv_heads, INT, "0", 0, 65536, "", "key and value heads; 0: heads; gpt2 allows only that") \
    K(model, ffn_hidden, INT, "0", 0, 1 << 22, "", "width inside the MLP; 0: 4*hidden") \
    K(model, sequence, INT, "256", 1, 1 << 24, "tokens", "length of a sequence") \
    K(model, vocabulary, INT, "256", 1, INT32_MAX, "", "number of token ids") \
    K(model, tied_embeddings, LOGICAL, ".true.", 0, 0, "", "the head uses the token embedding's weights") \
    K(model, norm_epsilon, REAL, "1e-5", ABOVE(0), AT_MOST(1), "", "added to the variance in norms") \
    K(model, init_std, REAL, "0.02", AT_LEAST(0), AT_MOST(100), "", "standard deviation of the initial weights")

#define GRID_KEYS(K) \
    K(grid, pipeline, INT, "1", 1, RANKS_MAX, "", "ranks that share the layers, stage by stage") \
    K(grid, data, INT, "0", 0, RANKS_MAX, "", "ranks that share the batch; 0: what the world size leaves") \
    K(grid, tensor, INT, "1", 1, RANKS_MAX, "", "ranks that share each layer") \
    K(grid, sequence_parallel, LOGICAL, ".false.", 0, 0, "", \
      "split norms and residual stream over the tensor ranks too")

#define PIPELINE_KEYS(K) \
    K(pipeline, schedule, CHOICE(schedule), "'1f1b'", 0, 0, "", \
      "order of forward and backward passes; csv: from schedule_file") \
    K(pipeline, schedule_file, STRING, "''", 0, SETTINGS_STRING_MAX, "", "a schedule as CSV, for schedule = 'csv'") \
    K(pipeline, microbatches, INT, "0", 0, 1 << 20, "", \
      "microbatches per pipeline and step; 0: from global_batch, or 8 when that is 0 too") \
    K(pipeline, microbatch_size, INT, "4", 1, 65536, "sequences", "size of a microbatch") \
    K(pipeline, global_batch, COUNT, "0", 0, INT64_C(1) << 40, "sequences", \
      "one step of the whole job: microbatches*microbatch_size*data; 0: from these") \
    K(pipeline, chunks, INT, "1", 1, 32768, "", "model chunks per pipeline rank; 2 for zb-v, v-half and v-min") \
    K(pipeline, balance, CHOICE(balance), "'cost'", 0, 0, "", \
      "what the stages share evenly; explicit: stage_layers") \
    K(pipeline, stage_layers, LIST, "", 0, SETTINGS_LIST_MAX, "", \
      "for 'explicit': blocks in each of the pipeline*chunks stages, in model order") \
    K(pipeline, recompute, CHOICE(recompute), "'none'", 0, 0, "", \
      "computed again for the backward pass; selective: norms, GELU; full: all but block inputs")

#define DATA_KEYS(K) \
    K(data, train, STRING, "'corpus.h5'", 0, SETTINGS_STRING_MAX, "", "dataset to train on, HDF5") \
    K(data, validation, STRING, "''", 0, SETTINGS_STRING_MAX, "", "dataset to evaluate on, HDF5") \
    K(data, shuffle, LOGICAL, ".true.", 0, 0, "", "new order of the samples in each epoch")

#define OPTIMIZER_KEYS(K) \
    K(optimizer, kind, CHOICE(optimizer), "'adamw'", 0, 0, "", "optimizer; AdamW as PyTorch's") \
    K(optimizer, learning_rate, REAL, "3e-4", AT_LEAST(0), AT_MOST(1000), "", "learning rate after the warm-up") \
    K(optimizer, min_learning_rate, REAL, "3e-5", AT_LEAST(0), AT_MOST(1000), "", "learning rate at the last step") \
    K(optimizer, warmup_steps, COUNT, "0", 0, STEPS_MAX, "steps", "linear increase at the start") \
    K(optimizer, decay, CHOICE(decay), "'cosine'", 0, 0, "", \
      "course of the learning rate; wsd: constant, linear for decay_steps") \
    K(optimizer, decay_steps, COUNT, "0", 0, STEPS_MAX, "steps", "decrease at the end, for decay = 'wsd'") \
    K(optimizer, beta1, REAL, "0.9", AT_LEAST(0), BELOW(1), "", "memory of the first moment") \
    K(optimizer, beta2, REAL, "0.95", AT_LEAST(0), BELOW(1), "", "memory of the second moment") \
    K(optimizer, epsilon, REAL, "1e-8", ABOVE(0), AT_MOST(1), "", "added to the root of the second moment") \
    K(optimizer, weight_decay, REAL, "0.1", AT_LEAST(0), AT_MOST(1000), "", \
      "decoupled decay of matrices and embeddings") \
    K(optimizer, clip_norm, REAL, "1.0", AT_LEAST(0), AT_MOST(1e30), "", \
      "greatest norm of the gradient; 0: no clipping") \
    K(optimizer, sharded, LOGICAL, ".false.", 0, 0, "", \
      "optimizer state split over the data ranks (ZeRO-1): the same bits, less memory") \
    K(optimizer, skip_outliers, REAL, "0.0", AT_LEAST(0), AT_MOST(1e6), "", \
      "skip a step whose loss or gradient norm is this many standard deviations above the last 128, at most 16 in a " \
      "row; 0: never")

#define CHECKPOINT_KEYS(K) \
    K(checkpoint, directory, STRING, "''", 0, SETTINGS_STRING_MAX, "", "where checkpoints are written; '': none") \
    K(checkpoint, every, COUNT, "0", 0, STEPS_MAX, "steps", "from one checkpoint to the next; 0: at the end only") \
    K(checkpoint, keep, INT, "2", 1, INT32_MAX, "", "newest checkpoints that stay") \
    K(checkpoint, keep_every, COUNT, "0", 0, STEPS_MAX, "steps", \
      "checkpoints at multiples of this are never removed; 0: none") \
    K(checkpoint, resume, STRING, "'auto'", 1, SETTINGS_STRING_MAX, "", \
      "where to go on; auto: the newest complete file in directory; none: refused where there is one; or a file") \
    K(checkpoint, load_weights, STRING, "''", 0, SETTINGS_STRING_MAX, "", \
      "a file to take the weights of, at step 0") \
    K(checkpoint, gradients, LOGICAL, ".false.", 0, 0, "", "store the step's gradients too, before clipping")

#define TRACE_KEYS(K) \
    K(trace, first_step, COUNT, "0", 0, STEPS_MAX, "", "first step traced; 0: no trace") \
    K(trace, last_step, COUNT, "0", 0, STEPS_MAX, "", "last step traced") \
    K(trace, file, STRING, "'trace.json'", 1, SETTINGS_STRING_MAX, "", "Chrome/Perfetto trace, in run.output")

/* What is 0 or not given is taken from the preset, and unknown where that does not have it either. */
#define MACHINE_KEYS(K) \
    K(machine, preset, STRING, "''", 0, SETTINGS_STRING_MAX, "", \
      "'a100-80gb-sxm' 'h100-sxm' 'h200', or a file ending in .nml whose &machine is taken: bench writes one") \
    K(machine, name, STRING, "''", 0, SETTINGS_STRING_MAX, "", "what the figures are of; presets and bench say it") \
    K(machine, peak_gflops, REAL, "0", AT_LEAST(0), AT_MOST(1e12), "Gflop/s", \
      "peak of one device in fp32, for mfu; bench: the fastest matmul it saw; 0: unknown") \
    K(machine, peak_tf32_gflops, REAL, "0", AT_LEAST(0), AT_MOST(1e12), "Gflop/s", "the same in tf32") \
    K(machine, peak_bf16_gflops, REAL, "0", AT_LEAST(0), AT_MOST(1e12), "Gflop/s", "the same in bf16") \
    K(machine, matmul_gflop, REALS, "", ABOVE(0), AT_MOST(1e12), "Gflop", \
      "operations of one matrix product, ascending: where the efficiency is known") \
    K(machine, matmul_efficiency, REALS, "", ABOVE(0), AT_MOST(10), "", \
      "speed of matrix products of these sizes as a part of the peak") \
    K(machine, memory_gib, REAL, "0", AT_LEAST(0), AT_MOST(1e6), "GiB", "memory of one device; 0: unknown") \
    K(machine, memory_gbs, REAL, "0", AT_LEAST(0), AT_MOST(1e9), "GB/s", "memory bandwidth of one device") \
    K(machine, layer_kind, LIST, "", 0, 65536, "", \
      "layers that were timed: number of the kind among those of the model, in order, from 0") \
    K(machine, layer_recompute, LIST, "", 0, 2, "", "and the recompute mode: 0 none, 1 selective, 2 full") \
    K(machine, layer_forward_gflop, REALS, "", AT_LEAST(0), AT_MOST(1e12), "Gflop", \
      "and their operations for a microbatch") \
    K(machine, layer_input_gflop, REALS, "", AT_LEAST(0), AT_MOST(1e12), "Gflop", "of the input gradient") \
    K(machine, layer_weight_gflop, REALS, "", AT_LEAST(0), AT_MOST(1e12), "Gflop", "of the weight gradient") \
    K(machine, layer_forward_ms, REALS, "", AT_LEAST(0), AT_MOST(1e9), "ms", "and the time that they took") \
    K(machine, layer_input_ms, REALS, "", AT_LEAST(0), AT_MOST(1e9), "ms", "for the input gradient") \
    K(machine, layer_weight_ms, REALS, "", AT_LEAST(0), AT_MOST(1e9), "ms", "for the weight gradient") \
    K(machine, layer_tensor, INT, "0", 0, RANKS_MAX, "", "tensor ranks then, whose sums are in these times") \
    K(machine, link_latency_us, REAL, "0", AT_LEAST(0), AT_MOST(1e9), "us", "of a message within a node") \
    K(machine, link_gbs, REAL, "0", AT_LEAST(0), AT_MOST(1e9), "GB/s", \
      "bandwidth of one device to another in its node, one way; 0: unknown, taken for infinite") \
    K(machine, network_latency_us, REAL, "0", AT_LEAST(0), AT_MOST(1e9), "us", "of a message between nodes") \
    K(machine, network_gbs, REAL, "0", AT_LEAST(0), AT_MOST(1e9), "GB/s", \
      "bandwidth of one device to another node, one way; 0: as within a node") \
    K(machine, message_bytes, REALS, "", ABOVE(0), AT_MOST(1e15), "bytes", "messages that were timed within a node") \
    K(machine, message_us, REALS, "", ABOVE(0), AT_MOST(1e12), "us", "and the time that they took") \
    K(machine, message_overlap, REAL, "0", AT_LEAST(0), AT_MOST(1), "", \
      "part of a large message's time that passes behind computations; 0: unknown, taken for all of it") \
    K(machine, sum_ranks, INT, "0", 0, RANKS_MAX, "", "ranks of the sums that were timed") \
    K(machine, sum_bytes, REALS, "", ABOVE(0), AT_MOST(1e15), "bytes", "sums that were timed within a node") \
    K(machine, data_sum_us, REALS, "", ABOVE(0), AT_MOST(1e12), "us", "and the time of a sum over data ranks") \
    K(machine, tensor_sum_us, REALS, "", ABOVE(0), AT_MOST(1e12), "us", "and of one over tensor ranks") \
    K(machine, optimizer_ns, REAL, "0", AT_LEAST(0), AT_MOST(1e6), "ns", \
      "optimizer step for one parameter; 0: from memory_gbs") \
    K(machine, write_gbs, REAL, "0", AT_LEAST(0), AT_MOST(1e9), "GB/s", "writing to files, all ranks together") \
    K(machine, read_gbs, REAL, "0", AT_LEAST(0), AT_MOST(1e9), "GB/s", "reading from files, all ranks together")

#define PLAN_KEYS(K) \
    K(plan, devices, INT, "0", 0, RANKS_MAX, "", \
      "search over configurations of so many devices; 0: report on the one given") \
    K(plan, memory_gib, REAL, "0", AT_LEAST(0), AT_MOST(1e6), "GiB", \
      "memory of one device; 0: that of &machine, else not limited") \
    K(plan, devices_per_node, INT, "8", 1, 65536, "", "devices with fast links between them")

#define EVALUATE_KEYS(K) \
    K(evaluate, scores, STRING, "''", 0, SETTINGS_STRING_MAX, "", \
      "file for the log-likelihood of each sequence, HDF5; '': none")

#define GENERATE_KEYS(K) \
    K(generate, prompt, STRING, "''", 0, SETTINGS_STRING_MAX, "", "text to continue") \
    K(generate, prompts_file, STRING, "''", 0, SETTINGS_STRING_MAX, "", \
      "file of texts to continue; '': prompt alone") \
    K(generate, tokens, INT, "64", 1, 1 << 24, "tokens", "length of a generated text") \
    K(generate, temperature, REAL, "0", AT_LEAST(0), AT_MOST(1000), "", \
      "temperature of sampling; 0: the most likely token") \
    K(generate, top_k, INT, "0", 0, INT32_MAX, "", "sample among so many most likely tokens; 0: all") \
    K(generate, top_p, REAL, "1", ABOVE(0), AT_MOST(1), "", \
      "sample among the most likely tokens of this total probability") \
    K(generate, output, STRING, "'generated.jsonl'", 1, SETTINGS_STRING_MAX, "", \
      "file of the generated texts, in run.output")

/* G(group, its keys), in the order of printing */
#define SETTINGS_GROUPS(G) \
    G(run, RUN_KEYS) \
    G(model, MODEL_KEYS) \
    G(grid, GRID_KEYS) \
    G(pipeline, PIPELINE_KEYS) \
    G(data, DATA_KEYS) \
    G(optimizer, OPTIMIZER_KEYS) \
    G(checkpoint, CHECKPOINT_KEYS) \
    G(trace, TRACE_KEYS) \
    G(machine, MACHINE_KEYS) \
    G(plan, PLAN_KEYS) \
    G(evaluate, EVALUATE_KEYS) \
    G(generate, GENERATE_KEYS)

/* clang-format on */

#endif
