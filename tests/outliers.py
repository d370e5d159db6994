#!/usr/bin/env python3
"""optimizer.skip_outliers: a burst of garbage in the dataset makes the loss leap; those steps are skipped, which is
worked out again from metrics.jsonl. The same on each number of stages and after a resume within the burst. TAP."""
import math
import os
import re
import shutil

import tap
import tiny

np, h5py = tiny.np, tiny.h5py

STEPS, FROM, TO, STOP, LIMIT = 62, 40, 45, 42, 4
TOKENS = 12 * tiny.SEQUENCE  # of a step
OPTIMIZER = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
WORDS = [f"run.steps={STEPS}", "data.shuffle=false", f"optimizer.skip_outliers={LIMIT}", "optimizer.learning_rate=3e-3",
         "optimizer.decay=constant", "model.layers=2", "run.digest_every=1", "checkpoint.gradients=true",
         "checkpoint.keep=99"]


def write_garbage(path, first, last):
    """Steps of almost regular tokens; from step `first` to `last` they are drawn at random."""
    random = np.random.default_rng(2)
    stream = np.cumsum(random.integers(1, 3, STEPS * TOKENS + 1)) % 20
    garbage = slice((first - 1) * TOKENS + 1, last * TOKENS + 1)
    stream[garbage] = random.integers(20, tiny.VOCABULARY, len(stream[garbage]))
    with h5py.File(path, "w") as file:
        file["tokens"] = stream.astype(np.uint16)
        file.attrs.update(format="ppmodel-dataset", version=1, vocabulary=tiny.VOCABULARY, tokenizer="none")


def is_outlier(window, value):
    if len(window) < 16:
        return False
    mean = math.fsum(window) / len(window)
    return value - mean > LIMIT * math.sqrt(math.fsum((x - mean) ** 2 for x in window) / len(window))


def skipped_steps(lines):
    """The rule: more than LIMIT standard deviations above the last 128 steps that were taken; after 16 in a row the
    window begins anew."""
    window, skipped, row = [], [], 0
    for line in lines:
        numbers = (line["loss"], line["gradient_norm"])
        if any(is_outlier(values, number) for values, number in zip(zip(*window), numbers)):
            row += 1
            if row <= 16:
                skipped.append(line["step"])
                continue
            window = []
        row = 0
        window = window[-127:] + [numbers]
    return skipped


def check_lines(found, name):
    """The lines and the log say what the rule says; returns the steps."""
    lines = found.metrics()
    skipped = skipped_steps(lines)
    tap.is_equal([line["step"] for line in lines], list(range(1, STEPS + 1)), f"{name}: a line for each step")
    tap.is_equal([line["skipped"] for line in lines],
                 [sum(step <= number for step in skipped) for number in range(1, STEPS + 1)],
                 f"{name}: `skipped` counts the steps that the rule skips")
    said = [int(step) for step in re.findall(r"^step (\d+) skipped: its \w.* is more than 4 standard", found.out, re.M)]
    tap.is_equal([step for step in skipped if step >= min(said, default=STEPS)], said, f"{name}: the log names them")
    kept = [line["step"] for line, before in zip(lines[1:], lines) if line["digest"] == before["digest"]]
    tap.is_equal(kept, skipped, f"{name}: these leave the weights as they are, the others do not")
    return skipped


def check_step(found, step, updates):
    """AdamW from the files around a step, which is the optimizer's update number `updates`."""
    before, after, o = found.tensors(step - 1), found.tensors(step), OPTIMIZER
    clip = min(1, 1 / (found.metrics("gradient_norm")[step - 1] + 1e-6))
    worst = 0
    for name in ("blocks/mlp/up/weight", "final_norm/bias"):
        gradient = after["gradients/" + name].astype(np.float64) * clip
        weight, first, second = (before[tree + name].astype(np.float64)
                                 for tree in ("model/", "optimizer/first_moment/", "optimizer/second_moment/"))
        first = o["beta1"] * first + (1 - o["beta1"]) * gradient
        second = o["beta2"] * second + (1 - o["beta2"]) * gradient ** 2
        change = 3e-3 * first / (1 - o["beta1"] ** updates) / (
            np.sqrt(second / (1 - o["beta2"] ** updates)) + o["epsilon"])
        if "weight" in name:
            change = change + 3e-3 * o["weight_decay"] * weight
        worst = max(worst, tiny.relative(before["model/" + name].astype(np.float64) - after["model/" + name], change))
    tap.ok(worst < 1e-4, f"step {step} is the update {updates}: skipped ones do not count in the moments' correction")


def check_burst(folder):
    write_garbage(os.path.join(folder, "corpus.h5"), FROM, TO)
    straight = tiny.train(folder, "straight", 1, *WORDS, "checkpoint.every=1")
    skipped = check_lines(straight, "a burst")
    tap.is_equal(skipped, list(range(FROM, TO + 1)), "the burst is skipped, and nothing else")
    tree = tiny.part(straight.tensors(FROM - 1), "model/", "optimizer/")
    tiny.is_same(tiny.part(straight.tensors(TO), "model/", "optimizer/"), tree, "weights and moments are as before it")
    with h5py.File(straight.checkpoint(TO)) as file:
        tap.is_equal((file.attrs["step"], file.attrs["samples"], len(file.attrs["outlier_window"])),
                     (TO, TO * 12, 2 * FROM), "steps and samples go on; the window is in the checkpoint")
    check_step(straight, TO + 1, FROM)
    check_step(straight, TO + 2, FROM + 1)
    for ranks in (2, 3):
        found = tiny.train(folder, f"stages-{ranks}", ranks, *WORDS, f"grid.pipeline={ranks}")
        check_lines(found, f"{ranks} stages")
        tiny.is_same(found.tensors(STEPS), straight.tensors(STEPS), f"{ranks} stages: the same bits")
    return straight


def check_resume(folder, straight):
    tiny.train(folder, "half", 2, *WORDS, "grid.pipeline=2", f"run.stop_at={STOP}")
    for ranks in (1, 3):
        shutil.copytree(os.path.join(folder, "half"), os.path.join(folder, f"whole-{ranks}"))
        found = tiny.train(folder, f"whole-{ranks}", ranks, *WORDS, f"grid.pipeline={ranks}")
        check_lines(found, f"from step {STOP} on {ranks} ranks")
        tiny.is_same(found.tensors(STEPS), straight.tensors(STEPS), f"from step {STOP} on {ranks} ranks: the same bits")
    # Without the option nothing more is skipped, but what was skipped still does not count in the correction.
    shutil.copytree(os.path.join(folder, "half"), os.path.join(folder, "without"))
    words = [word for word in WORDS if "skip_outliers" not in word]
    found = tiny.train(folder, "without", 1, *words, "checkpoint.every=1", f"run.stop_at={STOP + 2}")
    tap.is_equal([line["step"] for line in found.metrics() if "skipped" not in line], [STOP + 1, STOP + 2],
                 "without the option there is no `skipped`")
    check_step(found, STOP + 2, FROM + 1)


def check_level(folder):
    """Garbage to the end: after 16 steps it is what there is to learn."""
    write_garbage(os.path.join(folder, "corpus.h5"), FROM, STEPS)
    found = tiny.train(folder, "level", 2, *WORDS, "grid.data=2", "pipeline.microbatches=2")
    skipped = check_lines(found, "another level")
    tap.is_equal(skipped, list(range(FROM, FROM + 16)), "another level: 16 steps are skipped")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        straight = check_burst(folder)
        check_resume(folder, straight)
        check_level(folder)
    tap.done()


main()
