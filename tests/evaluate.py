#!/usr/bin/env python3
"""mode = 'evaluate' and evaluations inside training: the mean loss of any number of samples, on any grid, is that of
PyTorch and of GPT-2 in double precision here, which agrees with PyTorch. TAP."""
import math
import os

import tap
import tiny

np, h5py = tiny.np, tiny.h5py

LIMIT = 1e-6  # largest relative error of a loss
GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")

# pipeline, data, tensor, sequence parallel, microbatches, microbatch size, samples in the validation set. One sample;
# fewer samples than data ranks; whole microbatches, ranks and batches without any; a last one that is cut short.
CASES = [
    (1, 1, 1, False, 1, 1, 1),
    (1, 1, 1, False, 4, 3, 31),
    (1, 1, 1, False, 2, 5, 10),
    (1, 1, 2, True, 2, 5, 13),
    (1, 1, 4, True, 3, 1, 1),
    (1, 1, 4, False, 1, 4, 7),
    (1, 4, 1, False, 2, 3, 1),
    (1, 4, 1, False, 1, 2, 3),
    (2, 2, 1, False, 3, 2, 29),
    (3, 1, 1, False, 4, 3, 31),
    (3, 1, 1, False, 5, 1, 2),
    (5, 1, 1, False, 2, 2, 7),
    (2, 1, 2, True, 3, 3, 10),
]

# The same, of models made by make_golden.py: 3 heads, validation sets of 1, 2, 7 and 31 samples each.
GOLDEN_GRIDS = {
    "untied": [(1, 1, 1, False, 4, 3), (1, 2, 3, True, 1, 5)],
    "tied": [(3, 1, 1, False, 2, 2), (2, 2, 1, False, 3, 4)],
}


def right_loss(tree, stream, count=None):
    return tiny.losses(tree, tiny.samples_of(stream, count)).mean()


def is_right(found, expected, name):
    if not tap.ok(len(found) == 1 and abs(found[0] / expected - 1) <= LIMIT, name):
        tap.note(f"found {found}, expected {expected!r}")


def write_validation(folder, samples, extra):
    """A file of so many samples and `extra` tokens that make no whole one."""
    return tiny.write_dataset(os.path.join(folder, "validation.h5"), samples * tiny.SEQUENCE + 1 + extra, seed=samples)


def evaluate(folder, name, ranks, *overrides):
    return tiny.train(folder, name, ranks, "run.mode=evaluate", "data.validation=validation.h5", *overrides)


def check_grids(folder, models):
    for number, (p, d, t, parallel, microbatches, size, samples) in enumerate(CASES):
        tied = ("tied", "untied")[number % 2]
        stream = write_validation(folder, samples, extra=number % tiny.SEQUENCE)
        found = evaluate(folder, f"grid-{number}", p * d * t, f"grid.pipeline={p}", f"grid.tensor={t}",
                         f"grid.sequence_parallel={str(parallel).lower()}", f"pipeline.microbatches={microbatches}",
                         f"pipeline.microbatch_size={size}", f"model.tied_embeddings={str(tied == 'tied').lower()}",
                         f"checkpoint.directory={tied}/checkpoints")
        grid = f"{p}x{d}x{t}{' sequence parallel' if parallel else ''}"
        name = f"{grid} {tied}, {microbatches} x {size}, {samples} samples"
        is_right(found.metrics("validation_loss"), right_loss(models[tied].tensors(4), stream), name)
        tap.is_equal(found.metrics("tokens"), [samples * tiny.SEQUENCE], f"{name}: every token once")


def check_golden(folder, variant):
    """The losses that PyTorch gives."""
    path, folder = os.path.join(GOLDEN, f"{variant}.h5"), os.path.join(folder, f"golden-{variant}")
    os.mkdir(folder)
    with h5py.File(os.path.join(GOLDEN, "tokens.h5")) as file:
        stream = file["tokens"][()]
    with h5py.File(path) as file:
        sets = list(zip(file["validation/samples"][()].tolist(), file["validation/losses"][()].tolist()))
        epsilon = file.attrs["norm_epsilon"]
        with open(os.path.join(folder, "in.nml"), "w", encoding="ascii") as namelist:
            namelist.write(file.attrs["input"])
    tap.is_equal([samples for samples, _ in sets], [1, 2, 7, 31], f"{variant}: four validation sets")
    for samples, loss in sets:
        found = tiny.losses(tiny.tensors(path), tiny.samples_of(stream, samples), epsilon).mean()
        tap.ok(abs(found / loss - 1) <= 1e-12, f"{variant}, {samples} samples: double precision here as PyTorch")
        tiny.write_stream(os.path.join(folder, "validation.h5"), stream[:samples * tiny.SEQUENCE + 1 + samples % 20])
        for p, d, t, parallel, microbatches, size in GOLDEN_GRIDS[variant]:
            name = f"{p}x{d}x{t} {variant}, {microbatches} x {size}, {samples} samples"
            found = evaluate(folder, name.replace(" ", ""), p * d * t, f"grid.pipeline={p}", f"grid.tensor={t}",
                             f"grid.sequence_parallel={str(parallel).lower()}", "pipeline.global_batch=0",
                             f"pipeline.microbatches={microbatches}", f"pipeline.microbatch_size={size}",
                             "run.device=cpu", "checkpoint.directory=''", f"checkpoint.load_weights={path}")
            is_right(found.metrics("validation_loss"), loss, f"{name}: as PyTorch")


def check_batches(folder, models):
    """evaluate_batches takes the first batches of the file."""
    stream = write_validation(folder, 31, 5)
    for batches, samples in ((1, 12), (2, 24), (3, 31), (100, 31)):
        found = evaluate(folder, f"batches-{batches}", 2, "grid.pipeline=2", f"run.evaluate_batches={batches}",
                         "checkpoint.directory=tied/checkpoints")
        is_right(found.metrics("validation_loss"), right_loss(models["tied"].tensors(4), stream, samples),
                 f"evaluate_batches = {batches}: {samples} of 31 samples")


def check_weights_alone(folder, models):
    """A file of weights by any script: double precision, compressed, no digests."""
    stream = write_validation(folder, 5, 1)
    tree = tiny.part(models["untied"].tensors(4), "model/")
    with h5py.File(os.path.join(folder, "weights.h5"), "w") as file:
        for name, value in tree.items():
            file.create_dataset(name, data=value.astype(np.float64), compression="gzip")
        file.attrs.update(format="ppmodel-checkpoint", version=1)
    found = evaluate(folder, "alone", 2, "grid.tensor=2", "checkpoint.directory=''",
                     "checkpoint.load_weights=weights.h5", "model.tied_embeddings=false")
    is_right(found.metrics("validation_loss"), right_loss(tree, stream), "weights of a file made by h5py")
    tap.is_equal(sorted(os.listdir(found.folder)), ["metrics.jsonl", "resolved.nml"],
                 "an evaluation writes no checkpoint")


def check_training(folder, models):
    """Evaluations between steps are of that step's weights, and do not change the training."""
    stream = write_validation(folder, 7, 3)
    found = tiny.train(folder, "between", 2, "grid.pipeline=2", "data.validation=validation.h5", "run.evaluate_every=2",
                       "run.steps=5", "run.stop_at=4", "checkpoint.every=1", "checkpoint.keep=9")
    lines = [line for line in found.metrics() if "validation_loss" in line]
    tap.is_equal([line["step"] for line in lines], [2, 4], "evaluate_every = 2: after steps 2 and 4")
    for line in lines:
        is_right([line["validation_loss"]], right_loss(found.tensors(line["step"]), stream),
                 f"the validation loss after step {line['step']}")
    without = tiny.train(folder, "without", 2, "grid.pipeline=2", "run.steps=5", "run.stop_at=4")
    tiny.is_same(found.tensors(4), without.tensors(4), "evaluations do not change the training")


def check_first_loss(folder):
    """Nothing learnt yet: all tokens are about equally likely."""
    found = tiny.train(folder, "first", 1, "model.init_std=0.02", "run.steps=1", "data.shuffle=false",
                       "optimizer.learning_rate=0", "optimizer.min_learning_rate=0")
    loss = found.metrics("loss")[0]
    tap.ok(abs(loss - math.log(tiny.VOCABULARY)) < 0.05, "the first loss is near ln(vocabulary)")
    with h5py.File(os.path.join(folder, "corpus.h5")) as file:
        is_right([loss], right_loss(found.tensors(1), file["tokens"][()], 12),
                 "the first loss is that of the first batch")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        models = {tied: tiny.train(folder, tied, 1, f"model.tied_embeddings={str(tied == 'tied').lower()}")
                  for tied in ("tied", "untied")}
        check_grids(folder, models)
        for variant in GOLDEN_GRIDS:
            check_golden(folder, variant)
        check_batches(folder, models)
        check_weights_alone(folder, models)
        check_training(folder, models)
        check_first_loss(folder)
    tap.done()


main()
