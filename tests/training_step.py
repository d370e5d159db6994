#!/usr/bin/env python3
"""What a step does, computed again from its definition: the lines of metrics.jsonl, the norm of the gradient, clipping,
AdamW, the learning rate, and the gradients by differences of the loss in double precision. TAP."""
import math
import os

import tap
import tiny

np, h5py = tiny.np, tiny.h5py

# A name, ranks, the norm that gradients are clipped to (0: none; their norms are some 2 to 5), overrides. With tied
# weights on two ranks, whole tensors on several ranks, and sums left to be made.
GRIDS = [
    ("one rank", 1, 0.7, ["model.tied_embeddings=false"]),
    ("three stages", 3, 0.9, ["grid.pipeline=3"]),
    ("tensor ranks", 2, 0, ["grid.tensor=2"]),
    ("sequence parallel, two stages", 4, 100, ["grid.tensor=2", "grid.pipeline=2", "grid.sequence_parallel=true"]),
    ("data ranks, two stages", 4, 0.7, ["grid.data=2", "grid.pipeline=2", "pipeline.microbatches=2"]),
]
KEEP = ["checkpoint.every=1", "checkpoint.keep=9", "checkpoint.gradients=true"]
OPTIMIZER = {"learning_rate": 3e-3, "min_learning_rate": 2e-4, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6,
             "weight_decay": 0.3}

# A name, overrides, and the rate at step n of `STEPS`, of a rate of 1 that ends at 0.1.
STEPS = 9
RATES = [
    ("cosine", [], lambda n: 0.1 + 0.9 * (1 + math.cos(math.pi * n / 9)) / 2),
    ("cosine behind a warm-up", ["optimizer.warmup_steps=4"],
     lambda n: n / 4 if n <= 4 else 0.1 + 0.9 * (1 + math.cos(math.pi * (n - 4) / 5)) / 2),
    ("linear", ["optimizer.decay=linear", "optimizer.warmup_steps=2"],
     lambda n: n / 2 if n <= 2 else 0.1 + 0.9 * (1 - (n - 2) / 7)),
    ("constant", ["optimizer.decay=constant", "optimizer.warmup_steps=3"], lambda n: min(1, n / 3)),
    ("wsd", ["optimizer.decay=wsd", "optimizer.decay_steps=4", "optimizer.warmup_steps=2"],
     lambda n: n / 2 if n <= 2 else 1 if n <= 5 else 0.1 + 0.9 * (9 - n) / 4),
]


def all_near(found, expected, limit):
    return len(found) == len(expected) and all(abs(a - b) <= limit * abs(b) for a, b in zip(found, expected))


def is_near(found, expected, limit, name):
    if not tap.ok(all_near(found, expected, limit), name):
        tap.note(f"found    {found}\nexpected {expected}")


def norm_of(tree):
    """Over every tensor of the file: a logical parameter is there once."""
    return math.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in tiny.part(tree, "gradients/").values()))


def adamw(before, gradients, step, rate, clip):
    """The weights and moments after a step, of those before it; the gradients are multiplied by `clip`."""
    o = OPTIMIZER
    after = {}
    for key, gradient in gradients.items():
        name = key[len("gradients/"):]
        weight, first, second = (before.get(tree + name, np.zeros(1)).astype(np.float64)
                                 for tree in ("model/", "optimizer/first_moment/", "optimizer/second_moment/"))
        gradient = gradient.astype(np.float64) * clip
        first = o["beta1"] * first + (1 - o["beta1"]) * gradient
        second = o["beta2"] * second + (1 - o["beta2"]) * gradient ** 2
        # of matrices and embeddings
        decay = o["weight_decay"] if name.endswith("weight") and "norm" not in name or "embedding" in name else 0
        weight = weight - rate * decay * weight
        divisor = np.sqrt(second / (1 - o["beta2"] ** step)) + o["epsilon"]
        weight -= rate * (first / (1 - o["beta1"] ** step)) / divisor
        after.update({"model/" + name: weight, "optimizer/first_moment/" + name: first,
                      "optimizer/second_moment/" + name: second})
    return after


def check_lines(found, name):
    lines = found.metrics()
    right = len(lines) == 4
    for number, line in enumerate(lines, 1):
        right = (right and line["step"] == number and line["tokens"] == number * 12 * tiny.SEQUENCE
                 and 0 < line["loss"] < 20 and 0 < line["seconds"] < 60 and 0 <= line["bubble"] < 1
                 and 1e6 < line["peak_memory_bytes"] < 1e10 and 0 < line["mfu"]
                 and abs(line["tokens_per_second"] * line["seconds"] / (12 * tiny.SEQUENCE) - 1) < 1e-9)
    if not tap.ok(right, f"{name}: every number of metrics.jsonl is there and sane"):
        tap.note(lines)


def check_updates(found, clip_norm, name):
    """Norm, clipping and AdamW, from the files of consecutive steps."""
    trees = {step: found.tensors(step) for step in range(1, 5)}
    norms = found.metrics("gradient_norm")
    is_near(norms, [norm_of(trees[step]) for step in trees], 1e-9,
            f"{name}: the norm counts every parameter once")
    tap.ok(min(norms) > 1 and max(norms) < 100, f"{name}: the norms are where clipping makes a difference")
    for step in range(2, 5):
        clip = min(1, clip_norm / (norms[step - 1] + 1e-6)) if clip_norm else 1
        right = adamw(trees[step - 1], tiny.part(trees[step], "gradients/"), step,
                      found.metrics("learning_rate")[step - 1], clip)
        after = tiny.part(trees[step], "model/", "optimizer/")
        tiny.is_close(after, right, 1e-6, f"{name}: AdamW, step {step}")


def check_rates(folder):
    for number, (name, overrides, rate) in enumerate(RATES):
        found = tiny.train(folder, f"rate-{number}", 1, f"run.steps={STEPS}", "optimizer.learning_rate=0.02",
                           "optimizer.min_learning_rate=0.002", "checkpoint.directory=''", *overrides)
        is_near(found.metrics("learning_rate"), [0.02 * rate(n) for n in range(1, STEPS + 1)], 1e-12,
                f"the learning rate: {name}")


def check_gradients(folder, number):
    """The slope of the loss along each tensor's gradient is the gradient's norm. A rate of 0 leaves the weights where
    the gradients were taken."""
    name, ranks, _, overrides = GRIDS[number]
    found = tiny.train(folder, f"slope-{number}", ranks, *KEEP, *overrides, "run.steps=1", "data.shuffle=false",
                       "optimizer.learning_rate=0", "optimizer.min_learning_rate=0")
    tree = found.tensors(1)
    with h5py.File(os.path.join(folder, "corpus.h5")) as file:
        samples = tiny.samples_of(file["tokens"][()], 12)
    is_near(found.metrics("loss"), [tiny.losses(tree, samples).mean()], 1e-6, f"{name}: the loss of the first batch")
    wrong = {}
    for key, gradient in tiny.part(tree, "gradients/").items():
        gradient = gradient.astype(np.float64)
        size = np.linalg.norm(gradient)
        if tiny.NOISE in key:
            continue
        weight = tree["model/" + key[len("gradients/"):]].astype(np.float64)
        step = 1e-4 * gradient / size
        slopes = [tiny.losses({**tree, "model/" + key[len("gradients/"):]: weight + sign * step}, samples).mean()
                  for sign in (1, -1)]
        slope = (slopes[0] - slopes[1]) / 2e-4
        if not abs(slope / size - 1) < 1e-5:
            wrong[key] = slope / size
    if not tap.ok(not wrong, f"{name}: the gradients are slopes of the loss"):
        tap.note(wrong)


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        optimizer = [f"optimizer.{key}={value}" for key, value in OPTIMIZER.items()]
        for number, (name, ranks, clip_norm, overrides) in enumerate(GRIDS):
            found = tiny.train(folder, f"grid-{number}", ranks, *KEEP, *optimizer, *overrides,
                               f"optimizer.clip_norm={clip_norm}", "machine.peak_gflops=100")
            check_lines(found, name)
            check_updates(found, clip_norm, name)
        check_rates(folder)
        for number in (0, 3, 4):
            check_gradients(folder, number)
    tap.done()


main()
