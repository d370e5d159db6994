#!/usr/bin/env python3
"""Stopping and going on: the same bits as in one go, from the newest undamaged checkpoint, on any grid; which
checkpoints stay; what becomes of metrics.jsonl; and resolved.nml as an input. TAP."""
import os
import shutil

import tap
import tiny

np, h5py = tiny.np, tiny.h5py

STEPS, STOP = 6, 3
DATA_RANKS = ["grid.data=2", "pipeline.microbatches=2", f"run.steps={STEPS}", "optimizer.warmup_steps=2"]

# A name; ranks; overrides. With as many data and tensor ranks as the run that is resumed.
SAME_BITS = [
    ("the same grid", 2, []),
    ("three stages, gpipe", 6, ["grid.pipeline=3", "pipeline.schedule=gpipe"]),
    ("two stages, full recompute", 4, ["grid.pipeline=2", "pipeline.recompute=full"]),
]

# With others: the global batch is the same.
ROUNDING = [
    ("one rank", 1, ["grid.data=1", "pipeline.microbatches=4"]),
    ("tensor ranks", 2, ["grid.data=1", "grid.tensor=2", "grid.sequence_parallel=true", "pipeline.microbatches=4"]),
    ("two stages, single sequences", 2, ["grid.data=1", "grid.pipeline=2", "pipeline.microbatches=12",
                                         "pipeline.microbatch_size=1"]),
]


def flip(path):
    """Another bit in the middle of a weight."""
    with h5py.File(path, "r") as file:
        offset = file["model/blocks/mlp/up/weight"].id.get_offset()
    with open(path, "r+b") as file:
        file.seek(offset + 4000)
        byte = file.read(1)
        file.seek(offset + 4000)
        file.write(bytes([byte[0] ^ 16]))


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def empty(path):
    os.truncate(path, 0)


def forget_step(path):
    with h5py.File(path, "r+") as file:
        del file.attrs["step"]


def copy(run, name):
    """A copy of a run's folder beside it."""
    folder = os.path.dirname(run.folder)
    shutil.copytree(run.folder, os.path.join(folder, name))
    return folder


def merged(overrides, more):
    """The overrides, those of `more` taking the place of the same keys."""
    keys = {word.split("=")[0] for word in more}
    return [word for word in overrides if word.split("=")[0] not in keys] + more


def check_metrics(found, straight, name):
    lines = found.metrics()
    tap.is_equal([line["step"] for line in lines], list(range(1, STEPS + 1)), f"{name}: a line for each step, once")
    tap.is_equal(found.metrics("loss"), straight.metrics("loss"), f"{name}: the losses of one go")
    tap.is_equal(found.metrics("tokens"), straight.metrics("tokens"), f"{name}: the tokens of one go")


def check_resume(half, straight):
    for number, (name, ranks, overrides) in enumerate(SAME_BITS):
        folder = copy(half, f"same-{number}")
        found = tiny.train(folder, f"same-{number}", ranks, *DATA_RANKS, *overrides)
        tap.ok("step-00000003.h5" in found.out, f"{name}: says from what it goes on")
        tiny.is_same(found.tensors(STEPS), straight.tensors(STEPS), f"{name}: the bits of one go")
        check_metrics(found, straight, name)
    for number, (name, ranks, overrides) in enumerate(ROUNDING):
        folder = copy(half, f"rounding-{number}")
        found = tiny.train(folder, f"rounding-{number}", ranks, *merged(DATA_RANKS, overrides))
        tiny.is_close(found.tensors(STEPS), straight.tensors(STEPS), 1e-5, f"{name}: one go to rounding")


def check_file(half, straight):
    """A file by its name; the directory is another one."""
    folder = os.path.dirname(half.folder)
    found = tiny.train(folder, "file", 2, *DATA_RANKS, f"checkpoint.resume={half.checkpoint(STOP)}")
    tiny.is_same(found.tensors(STEPS), straight.tensors(STEPS), "resume = a file: the bits of one go")
    tap.is_equal([line["step"] for line in found.metrics()], [4, 5, 6], "resume = a file: a new metrics.jsonl")
    tap.is_equal(half.checkpoints(), ["step-00000003.h5"], "resume = a file: its folder stays as it is")


def check_damage(straight):
    """A damaged newest file is named and passed over. The unfinished line of metrics.jsonl goes, too."""
    for damage in (flip, truncate, empty, forget_step):
        name = f"damage-{damage.__name__}"
        folder = copy(straight, name)
        run = tiny.Run(os.path.join(folder, name), 0, "", "")
        for step in (1, 2, 4, 5):
            os.remove(run.checkpoint(step))
        damage(run.checkpoint(STEPS))
        with open(os.path.join(run.folder, "metrics.jsonl"), "a", encoding="ascii") as file:
            file.write('{"step": 2, "lo')
        found = tiny.train(folder, name, 2, *DATA_RANKS)
        warnings = [line for line in found.errors.splitlines() if "warning:" in line]
        tap.ok(len(warnings) == 1 and "step-00000006.h5" in warnings[0] and "step-00000003.h5" in found.out,
               f"{name}: named once, and the older file taken")
        tiny.is_same(found.tensors(STEPS), straight.tensors(STEPS), f"{name}: made again with the same bits")
        check_metrics(found, straight, name)


def check_finished(straight):
    """The same command once more has nothing to do."""
    folder = copy(straight, "finished")

    directory = os.path.join(folder, "finished", "checkpoints")

    def state():
        return [(item.name, item.stat().st_mtime_ns, item.stat().st_size)
                for item in sorted(os.scandir(directory), key=lambda item: item.name)]

    before = state()
    found = tiny.train(folder, "finished", 2, *DATA_RANKS)
    tap.ok("Nothing to do" in found.out, "the end reached before: that is said")
    tap.is_equal(state(), before, "the end reached before: no checkpoint is touched")
    tap.is_equal(found.metrics(), straight.metrics(), "the end reached before: metrics.jsonl stays")


def check_weights(folder, straight):
    """Weights alone: the optimizer and the step begin anew."""
    with h5py.File(os.path.join(folder, "weights.h5"), "w") as file:
        for name, value in tiny.part(straight.tensors(STEPS), "model/").items():
            file[name] = value
        file.attrs.update(format="ppmodel-checkpoint", version=1)
    words = ["grid.pipeline=2", "checkpoint.load_weights=weights.h5", "checkpoint.gradients=true"]
    frozen = tiny.train(folder, "frozen", 2, *words, "run.steps=1", "optimizer.learning_rate=0",
                        "optimizer.min_learning_rate=0", "optimizer.clip_norm=0")
    found, right = frozen.tensors(1), straight.tensors(STEPS)
    tiny.is_same(tiny.part(found, "model/"), tiny.part(right, "model/"), "load_weights: the weights of the file")
    for moment, share in (("first", 0.1), ("second", 0.05)):
        tree = f"optimizer/{moment}_moment/"
        begun = all(tiny.relative(value, share * found["gradients/" + name[len(tree):]].astype(np.float64)
                                  ** (1 if moment == "first" else 2)) < 1e-6
                    for name, value in tiny.part(found, tree).items())
        tap.ok(begun, f"load_weights: the {moment} moment begins with the first gradient")
    tap.is_equal([line["step"] for line in frozen.metrics()], [1], "load_weights: from step 1")
    whole = tiny.train(folder, "loaded", 2, *words)
    tiny.train(folder, "loaded-halves", 2, *words, "run.stop_at=2")
    halves = tiny.train(folder, "loaded-halves", 2, *words)
    tiny.is_same(halves.tensors(4), whole.tensors(4), "load_weights: a checkpoint in the directory comes first")


def check_keep(folder):
    os.makedirs(os.path.join(folder, "keep", "checkpoints"))
    for name in ("step-00000001.h5.partial", "notes.txt"):
        with open(os.path.join(folder, "keep", "checkpoints", name), "w", encoding="ascii") as file:
            file.write("left behind")
    found = tiny.train(folder, "keep", 2, "grid.data=2", "run.steps=8", "checkpoint.every=1", "checkpoint.keep=2",
                       "checkpoint.keep_every=4")
    tap.is_equal(found.checkpoints(), ["notes.txt"] + [f"step-0000000{step}.h5" for step in (4, 7, 8)],
                 "keep = 2, keep_every = 4: step 4 and the last two")


def check_resolved(folder):
    """resolved.nml gives the same run; and itself again, but for the folders."""
    words = ["grid.pipeline=3", "pipeline.schedule=gpipe", "pipeline.balance=parameters", "model.tied_embeddings=false",
             "optimizer.learning_rate=7.3e-4", "optimizer.decay=linear", "run.seed=12345678901", "run.steps=3"]
    first = tiny.train(folder, "first", 3, *words)
    code, out, errors = tap.launch(3, tap.program("ppmodel"), "first/resolved.nml", "run.output=second",
                                   "checkpoint.directory=second/checkpoints", folder=folder)
    second = tiny.Run(os.path.join(folder, "second"), code, out, errors)
    tap.is_equal((code, errors), (0, ""), "resolved.nml is an input")
    tiny.is_same(second.tensors(3), first.tensors(3), "resolved.nml: the same bits")
    texts = []
    for run in (first, second):
        with open(os.path.join(run.folder, "resolved.nml"), encoding="ascii") as file:
            texts.append(file.read())
    again = [line.split() for line in texts[1].replace("'second", "'first").splitlines()]
    changed = [line for line, other in zip(texts[0].splitlines(), again) if line.split() != other]
    tap.is_equal((changed, len(again)), ([], len(texts[0].splitlines())), "resolved.nml: itself again")
    with h5py.File(first.checkpoint(3)) as file:
        stored = file.attrs["input"]
    stored = stored.decode() if isinstance(stored, bytes) else stored
    tap.is_equal(stored, texts[0], "resolved.nml is in the checkpoint")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        straight = tiny.train(folder, "straight", 2, *DATA_RANKS, "checkpoint.every=1", "checkpoint.keep=9",
                              "checkpoint.resume=none")
        half = tiny.train(folder, "half", 2, *DATA_RANKS, f"run.stop_at={STOP}")
        check_resume(half, straight)
        check_file(half, straight)
        check_damage(straight)
        check_finished(straight)
        check_weights(folder, straight)
        check_keep(folder)
        check_resolved(folder)
    tap.done()


main()
