#!/usr/bin/env python3
"""The optimizer's state split over the data ranks: the same bits as whole, on every grid and schedule; stopping sharded
and going on whole, and back; and the memory that it saves. TAP."""
import os
import re

import tap
import tiny

h5py = tiny.h5py

# P D T  sequence_parallel  tied  schedule  chunks; -: no. The first three columns have every combination. With as many
# data and tensor ranks the whole optimizer has the same bits on one pipeline rank, so that one run stands for several.
# Those of more than 12 ranks are run with PP_LONG=1.
GRIDS = """
1 2 1  -    yes  1f1b         1
2 2 1  -    yes  zb-v         2
3 2 1  -    -    1f1b         1
1 3 1  -    yes  1f1b         1
2 3 1  -    yes  interleaved  3
3 3 1  -    yes  zb-h1        1
1 4 1  -    yes  1f1b         1
2 4 1  -    yes  gpipe        1
3 4 1  -    yes  looped-bfs   2
1 2 2  yes  yes  1f1b         1
2 2 2  yes  yes  v-half       2
3 2 2  -    -    eager-1f1b   1
1 3 2  yes  yes  1f1b         1
2 3 2  yes  yes  zb-v         2
3 3 2  yes  -    1f1b         1
1 4 2  yes  yes  1f1b         1
2 4 2  yes  yes  1f1b         1
3 4 2  yes  yes  interleaved  2
"""

# Parameters of several blocks, which do not divide evenly between tensor ranks.
LARGE = ["model.hidden=96", "model.vocabulary=1009", "model.layers=3"]
# Tensors of more than one bucket.
HUGE = ["model.hidden=256", "model.vocabulary=5003", "model.layers=2"]
SHARDED = "optimizer.sharded=true"


def plain(grid):
    """The grid with one pipeline rank."""
    return " ".join(["1", *grid.split()[1:5], "1f1b", "1"])


def words(grid):
    """Number of ranks, overrides."""
    P, D, T, sequence_parallel, tied, schedule, chunks = grid.split()
    return int(P) * int(D) * int(T), [
        f"grid.pipeline={P}", f"grid.data={D}", f"grid.tensor={T}", f"pipeline.schedule={schedule}",
        f"pipeline.chunks={chunks}", "pipeline.balance=uniform" if chunks != "1" else "pipeline.balance=cost",
        f"grid.sequence_parallel={'true' if sequence_parallel == 'yes' else 'false'}",
        f"model.tied_embeddings={'true' if tied == 'yes' else 'false'}", "pipeline.microbatches=3",
        "pipeline.microbatch_size=1", "checkpoint.gradients=true"]


def check_equal(folder, grids, size, overrides):
    """Weights, both moments, gradients, and the numbers of every step."""
    whole = {}
    for number, grid in enumerate(grids):
        name = " ".join([*grid.split(), size])
        key = plain(grid)
        if key not in whole:
            ranks, more = words(key)
            whole[key] = tiny.train(folder, f"{size}-whole-{number}", ranks, *more, *overrides)
        ranks, more = words(grid)
        found = tiny.train(folder, f"{size}-sharded-{number}", ranks, *more, *overrides, SHARDED)
        tiny.is_same(found.tensors(4), whole[key].tensors(4), f"{name}: all tensors to the bit")
        for what in ("loss", "gradient_norm"):
            tap.is_equal(found.metrics(what), whole[key].metrics(what), f"{name}: the same {what} in every step")


def check_resume(folder):
    """Two steps on one grid, the rest on another; sharded and whole by turns."""
    base = ["grid.data=2", "pipeline.microbatches=6", "pipeline.microbatch_size=1", *LARGE]
    straight = tiny.train(folder, "straight", 2, *base, "checkpoint.every=1", "checkpoint.keep=9")
    turns = [("sharded", [SHARDED]), ("whole", ["grid.pipeline=2", "pipeline.schedule=gpipe"]),
             ("sharded", [SHARDED, "grid.pipeline=3"]),
             ("sharded", [SHARDED, "grid.pipeline=2", "pipeline.schedule=zb-v", "pipeline.chunks=2"])]
    for step, (name, overrides) in enumerate(turns, 1):
        pipeline = [int(word[-1]) for word in overrides if word.startswith("grid.pipeline=")]
        found = tiny.train(folder, "turns", 2 * sum(pipeline or [1]), *base, *overrides, f"run.stop_at={step}",
                           "checkpoint.keep=9")
        tiny.is_same(found.tensors(step), straight.tensors(step), f"step {step}, {name}: the bits of one go")
    for D in (3, 4):
        tiny.train(folder, f"other-{D}", 2, *base, SHARDED, "run.stop_at=2")
        words_of_D = [f"grid.data={D}", f"pipeline.microbatches={12 // D}", *base[2:]]
        for name, more in (("sharded", [SHARDED]), ("whole", [])):
            found = tiny.train(folder, f"other-{D}", D, *words_of_D, *more, f"checkpoint.resume=other-{D}/checkpoints/"
                               "step-00000002.h5", f"checkpoint.directory=other-{D}-{name}")
            tap.ok("step-00000002.h5" in found.out, f"{D} data ranks, {name}: goes on from two sharded ones")
        names = [f"{folder}/other-{D}-{name}/step-00000004.h5" for name in ("sharded", "whole")]
        tiny.is_same(tiny.tensors(names[0]), tiny.tensors(names[1]), f"{D} data ranks: sharded as whole")
        tiny.is_close(tiny.tensors(names[0]), straight.tensors(4), 1e-5, f"{D} data ranks: one go to rounding")


def check_evaluation(folder):
    """Weights on their way are waited for."""
    base = ["grid.data=2", "grid.pipeline=2", "pipeline.microbatches=6", "pipeline.microbatch_size=1", *HUGE,
            "data.validation=corpus.h5", "run.evaluate_every=1", "run.evaluate_batches=2", "checkpoint.directory=''"]
    losses = [tiny.train(folder, f"evaluate-{len(more)}", 4, *base, *more).metrics("validation_loss")
              for more in ([], [SHARDED])]
    tap.ok(len(losses[0]) == 4 and len(set(losses[0])) == 4, "evaluations after each step differ")
    tap.is_equal(losses[1], losses[0], "an evaluation behind each step: the same losses")


def told(out):
    """Bytes by name from the first rank's line about memory."""
    line = next(line for line in out.splitlines() if line.startswith("memory"))
    return {name: int(number) for name, number in re.findall(r"(\w+) (\d+)(?:,| bytes)", line)}


def check_memory(folder):
    """Of 16 bytes for each parameter 8 are split; in bf16 of 18 the moments and the float32 weight, 12."""
    for precision, whole, split in (("fp32", 8, 8), ("bf16", 6, 12)):
        for D in (1, 2, 3, 4):
            found = tiny.train(folder, f"memory-{precision}-{D}", D, *HUGE, "model.tied_embeddings=false",
                               f"grid.data={D}", f"run.precision={precision}", "pipeline.microbatches=1",
                               "run.steps=1", "run.verbose=true", SHARDED, "checkpoint.directory=''")
            bytes_of = told(found.out)
            state = sum(bytes_of[name] for name in ("weights", "gradients", "moments"))
            expected = bytes_of["gradients"] / 4 * (whole + split / D)
            if not tap.ok(abs(state / expected - 1) < 0.03,
                          f"{precision}, {D} data ranks: {whole} + {split}/D bytes for each parameter"):
                tap.note(f"{state:.0f} bytes, {expected:.0f} expected: {bytes_of}")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        most = 24 if os.environ.get("PP_LONG") == "1" else 12
        grids = [grid for grid in GRIDS.strip().splitlines() if words(grid)[0] <= most]
        check_equal(folder, grids, "tiny", [])
        check_equal(folder, ("2 3 1 - yes zb-v 2", "2 2 2 yes yes 1f1b 1", "3 2 1 - - 1f1b 1"), "large", LARGE)
        check_equal(folder, ("2 4 1 - yes zb-v 2",), "huge", HUGE)
        check_resume(folder)
        check_evaluation(folder)
        check_memory(folder)
    tap.done()


main()
