#!/usr/bin/env python3
"""A loss or gradient that is not finite ends the training with exit code 3 on every rank: one message names the rank,
step, direction, stage, microbatch, layer and tensor where it began, no weight changed, and the checkpoints stay as they
are. A validation loss that is not finite is said and written as null, and the training goes on. TAP."""
import collections
import os
import shutil

import tap
import tiny

np, h5py = tiny.np, tiny.h5py

UNTIED = "model.tied_embeddings=false"
FIRST = "is the first tensor that is not finite"

# A name; the grid; overrides besides it; tensors, places in them and what is put there; and what the message says: the
# rank's coordinates, direction, stage, layer, and the tensor. Microbatch 0 always.
Case = collections.namedtuple("Case", "name grid words poison place direction stage layer tensor")

NAN, ALL = np.nan, Ellipsis


def weight(name):
    return f"{name} itself is not finite; this layer is only where it shows first"


# Overflow by finite numbers: two that add up beyond float32; and gradients that grow through large weights while all
# activations are zero.
SUM = [("blocks/attention/output/bias", (1, 5), 3e38), ("blocks/mlp/down/bias", (2, 5), 3e38)]
BACKWARDS = [("embedding/token", ALL, 0), ("embedding/position", ALL, 0), ("blocks/mlp/down/weight", 2, 1e23),
             ("blocks/mlp/up/weight", 2, 1e23), ("head/weight", (3, 3), 1)]

CASES = [
    Case("a weight, one rank", (1, 1, 1), [], [("blocks/mlp/up/weight", (3, 7, 11), NAN)],
         (0, 0, 0), "FORWARD", 0, 4, weight("blocks/mlp/up/weight[3]")),
    Case("a weight of the middle stage", (3, 1, 1), ["pipeline.stage_layers=1,2,2"],
         [("blocks/mlp/down/weight", (2, 0, 0), -np.inf)], (1, 0, 0), "FORWARD", 1, 3,
         weight("blocks/mlp/down/weight[2]")),
    Case("a weight of the last stage, full recompute", (3, 1, 1),
         ["pipeline.recompute=full", "pipeline.stage_layers=1,2,2"], [("blocks/attention_norm/weight", (4, 47), NAN)],
         (2, 0, 0), "FORWARD", 2, 5, weight("blocks/attention_norm/weight[4]")),
    Case("a head's weight, gpipe", (2, 1, 1), ["pipeline.schedule=gpipe", "pipeline.stage_layers=3,2", UNTIED],
         [("head/weight", (100, 0), NAN)], (1, 0, 0), "FORWARD", 1, 6, weight("head/weight")),
    Case("a tied weight, which shows at its first end", (2, 1, 1), ["pipeline.stage_layers=3,2"],
         [("embedding/token", (100, 47), NAN)], (0, 0, 0), "FORWARD", 0, 0, weight("embedding/token")),
    Case("a head of the second tensor rank", (1, 1, 2), [], [("blocks/attention/query/weight", (0, 3, 0, 0), NAN)],
         (0, 0, 1), "FORWARD", 0, 1, weight("blocks/attention/query/weight[0]")),
    Case("a final norm, sequence parallel", (2, 1, 2), ["grid.sequence_parallel=true", "pipeline.stage_layers=2,3"],
         [("final_norm/bias", 5, NAN)], (1, 0, 0), "FORWARD", 1, 6, weight("final_norm/bias")),
    Case("two chunks of a rank", (2, 1, 1), ["pipeline.schedule=interleaved", "pipeline.stage_layers=1,2,1,1",
                                             "pipeline.chunks=2"], [("blocks/mlp/up/bias", (3, 0), NAN)],
         (0, 0, 0), "FORWARD", 2, 4, weight("blocks/mlp/up/bias[3]")),
    Case("zb-v", (2, 1, 1), ["pipeline.schedule=zb-v", "pipeline.stage_layers=1,2,1,1", "pipeline.chunks=2"],
         [("blocks/mlp_norm/bias", (4, 0), NAN)], (0, 0, 0), "FORWARD", 3, 5, weight("blocks/mlp_norm/bias[4]")),
    Case("a loss that overflows", (2, 1, 1), ["pipeline.stage_layers=2,3"], [("final_norm/weight", 5, 3e38)],
         (1, 0, 0), "FORWARD", 1, 6, f"the loss {FIRST}"),
    Case("an overflow inside a block", (2, 1, 1), ["pipeline.stage_layers=2,3"], SUM, (1, 0, 0), "FORWARD", 1, 3,
         f"output 'residual' {FIRST}"),
    Case("the same, zb-v on two tensor ranks", (2, 1, 2), ["pipeline.schedule=zb-v", "pipeline.chunks=2",
                                                           "pipeline.stage_layers=1,2,1,1"], SUM,
         (1, 0, 0), "FORWARD", 1, 3, f"output 'residual' {FIRST}"),
    Case("an overflow of gradients alone", (3, 1, 1), ["pipeline.stage_layers=1,2,2", UNTIED], BACKWARDS,
         (1, 0, 0), "BACKWARD", 1, 3, f"the gradient of input 'residual' {FIRST}"),
    Case("the same, zb-h1", (3, 1, 1), ["pipeline.stage_layers=3,1,1", "pipeline.schedule=zb-h1", UNTIED], BACKWARDS,
         (0, 0, 0), "BACKWARD", 0, 3, f"the gradient of input 'residual' {FIRST}"),
    Case("the same, interleaved on two data ranks", (2, 2, 1),
         ["pipeline.schedule=interleaved", "pipeline.chunks=2", "pipeline.stage_layers=1,1,2,1", UNTIED], BACKWARDS,
         (0, 0, 0), "BACKWARD", 2, 3, f"the gradient of input 'residual' {FIRST}"),
]


def poison(path, changes):
    """Puts numbers into tensors of /model; their digests are left out."""
    with h5py.File(path, "r+") as file:
        for name, place, number in changes:
            tensor = file["model/" + name]
            tensor[place] = number
            if "digest" in tensor.attrs:
                del tensor.attrs["digest"]


def state(folder):
    """Names, sizes and times of change."""
    return sorted((item.name, item.stat().st_size, item.stat().st_mtime_ns)
                  for item in os.scandir(os.path.join(folder, "checkpoints")))


def check_end(folder, name, ranks, overrides, label, message):
    """Trains on from what is in folder/name."""
    before = state(os.path.join(folder, name))
    code, out, errors = tap.launch(ranks, *tap.EACH_RANK, tap.program("ppmodel"), "in.nml", f"run.output={name}",
                                   f"checkpoint.directory={name}/checkpoints", "checkpoint.every=1", *overrides,
                                   folder=folder, seconds=90)
    codes, found = tap.rank_codes(errors)
    tap.is_equal((code, codes), (3, [3] * ranks), f"{label}: exit code 3 on every rank")
    tap.is_equal(state(os.path.join(folder, name)), before, f"{label}: no checkpoint is touched")
    steps = [line["step"] for line in tiny.Run(os.path.join(folder, name), code, out, errors).metrics()]
    tap.is_equal(steps, [1, 2], f"{label}: metrics.jsonl has no line of the step")
    tap.is_equal(found, f"ppmodel: error: {message}; no weight was changed\n", f"{label}: one message")


def message_of(grid, place, direction, stage, microbatch, layer, tensor):
    kind = {0: "embedding", tiny.LAYERS + 1: "head"}.get(layer, "block")
    p, d, t = place
    rank = (p * grid[1] + d) * grid[2] + t
    return (f"rank {rank} (p{p} d{d} t{t}) step 3 {direction} stage {stage} microbatch {microbatch}, "
            f"layer {layer} ({kind}): {tensor}")


def check_places(folder):
    good = {tied: tiny.train(folder, f"good-{tied}", 1, "run.stop_at=2", *([] if tied else [UNTIED]))
            for tied in (True, False)}
    for number, case in enumerate(CASES):
        run = f"case-{number}"
        shutil.copytree(good[UNTIED not in case.words].folder, os.path.join(folder, run))
        poison(os.path.join(folder, run, "checkpoints", "step-00000002.h5"), case.poison)
        pipeline, data, tensor = case.grid
        words = [f"grid.pipeline={pipeline}", f"grid.data={data}", f"grid.tensor={tensor}",
                 f"pipeline.microbatches={4 // data}", *case.words]
        if pipeline > 1:
            words.append("pipeline.balance=explicit")
        check_end(folder, run, pipeline * data * tensor, words, case.name,
                  message_of(case.grid, case.place, case.direction, case.stage, 0, case.layer, case.tensor))


def check_one_rank(folder):
    """Only one data rank comes upon a token whose embedding and position together overflow; every rank stops."""
    with h5py.File(os.path.join(folder, "corpus.h5")) as file:
        samples = tiny.samples_of(file["tokens"][()])[:, :-1]
    words = ["grid.data=2", "grid.pipeline=2", "pipeline.microbatches=2", "data.shuffle=false", UNTIED]
    good = tiny.train(folder, "good-data", 4, *words, "run.stop_at=2")
    batch = samples[24:36].reshape(2, 2, 3, -1)  # [microbatches, data ranks, sequences, tokens]
    for d in (0, 1):
        token = min(set(batch[:, d].flat) - set(batch[:, 1 - d].flat))
        microbatch = 0 if token in batch[0, d] else 1
        shutil.copytree(good.folder, os.path.join(folder, f"data-{d}"))
        file = os.path.join(folder, f"data-{d}", "checkpoints", "step-00000002.h5")
        poison(file, [("embedding/token", (token, 0), 3.3e38), ("embedding/position", (ALL, 0), 1e38)])
        check_end(folder, f"data-{d}", 4, words, f"a token of data rank {d} alone",
                  message_of((2, 2, 1), (0, d, 0), "FORWARD", 0, microbatch, 0, f"output 'residual' {FIRST}"))


def check_validation(folder):
    """A token that only the validation has makes its loss overflow."""
    words = [UNTIED, "grid.pipeline=2", "data.train=few.h5", "data.validation=more.h5", "run.evaluate_every=1"]
    tiny.write_dataset(os.path.join(folder, "few.h5"), vocabulary=tiny.VOCABULARY - 1)
    tiny.write_dataset(os.path.join(folder, "more.h5"), tokens=800)
    good = tiny.train(folder, "validation", 2, *words, "run.stop_at=1")
    first = good.metrics("validation_loss")
    tap.ok(len(first) == 1 and np.isfinite(first[0]), "a validation loss that is finite")
    poison(good.checkpoint(1), [("embedding/token", (tiny.VOCABULARY - 1, 0), 3.3e38),
                                ("embedding/position", (ALL, 0), 1e38)])
    found = tiny.train(folder, "validation", 2, *words)
    tap.is_equal(found.metrics("validation_loss"), first + [None] * 3,
                 "a validation loss that is not: null")
    tap.is_equal(found.errors.splitlines(),
                 [f"ppmodel: warning: step {step}: the validation loss is not finite; the training goes on"
                  for step in (2, 3, 4)], "it is said once for each evaluation")
    tap.is_equal(len(found.metrics("loss")), 4, "the training goes on")
    found = tiny.run(folder, "evaluation", 2, *words, "run.mode=evaluate", f"checkpoint.resume={found.checkpoint(4)}")
    tap.is_equal((found.code, found.errors, found.metrics("validation_loss")),
                 (0, "ppmodel: warning: the validation loss is not finite\n", [None]), "the same in mode = 'evaluate'")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        check_places(folder)
        check_one_rank(folder)
        check_validation(folder)
    tap.done()


main()
