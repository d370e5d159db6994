#!/usr/bin/env python3
"""A loss or gradient that is not finite ends the training with exit code 3 on every rank: the message says where, no
weight changed, and the checkpoints stay as they are. TAP."""
import os
import re
import shutil

import tap
import tiny

np, h5py = tiny.np, tiny.h5py

UNTIED = "model.tied_embeddings=false"

# A name; ranks; overrides; the tensor, element and number that is put into the checkpoint.
CASES = [
    ("a weight, one rank", 1, [], "blocks/mlp/up/weight", (3, 7, 11), np.nan),
    ("a weight of the middle stage", 3, ["grid.pipeline=3"], "blocks/mlp/down/weight", (2, 0, 0), np.nan),
    ("a weight of the last stage, full recompute", 3, ["grid.pipeline=3", "pipeline.recompute=full"],
     "blocks/attention_norm/weight", (4, 47), np.nan),
    ("a head's weight, two stages, gpipe", 2, ["grid.pipeline=2", "pipeline.schedule=gpipe", UNTIED],
     "head/weight", (100, 0), np.nan),
    ("a head of the second tensor rank", 2, ["grid.tensor=2"], "blocks/attention/query/weight", (0, 3, 0, 0), np.nan),
    ("a final norm, sequence parallel", 4, ["grid.tensor=2", "grid.sequence_parallel=true", "grid.pipeline=2"],
     "final_norm/bias", (5,), np.nan),
    ("a number that overflows", 2, ["grid.pipeline=2"], "final_norm/weight", (5,), 3e38),
]

PLACE = r"rank (\d+) \(p(\d+) d(\d+) t(\d+)\), stage (\d+)"


def poison(path, name, element, number):
    """Puts a number into a tensor of /model; its digest is left out."""
    with h5py.File(path, "r+") as file:
        tensor = file["model/" + name]
        tensor[element] = number
        del tensor.attrs["digest"]


def state(folder):
    """Names, sizes and times of change."""
    return sorted((item.name, item.stat().st_size, item.stat().st_mtime_ns)
                  for item in os.scandir(os.path.join(folder, "checkpoints")))


def check_end(folder, name, ranks, overrides, label):
    """Trains on from what is in folder/name; returns the message."""
    before = state(os.path.join(folder, name))
    code, out, errors = tap.launch(ranks, *tap.EACH_RANK, tap.program("ppmodel"), "in.nml", f"run.output={name}",
                                   f"checkpoint.directory={name}/checkpoints", "checkpoint.every=1", *overrides,
                                   folder=folder)
    codes, message = tap.rank_codes(errors)
    tap.is_equal((code, codes), (3, [3] * ranks), f"{label}: exit code 3 on every rank")
    tap.is_equal(state(os.path.join(folder, name)), before, f"{label}: no checkpoint is touched")
    steps = [line["step"] for line in tiny.Run(os.path.join(folder, name), code, out, errors).metrics()]
    tap.is_equal(steps, [1, 2], f"{label}: metrics.jsonl has no line of the step")
    if not tap.ok(message.count("error:") == 1 and len(message.strip().splitlines()) == 1 and "step 3" in message,
                  f"{label}: one message, which names the step"):
        tap.note(message)
    return message


def check_places(folder):
    good = {tied: tiny.train(folder, f"good-{tied}", 1, "run.stop_at=2", *([] if tied else [UNTIED]))
            for tied in (True, False)}
    for number, (label, ranks, overrides, name, element, value) in enumerate(CASES):
        run = f"case-{number}"
        shutil.copytree(good[UNTIED not in overrides].folder, os.path.join(folder, run))
        poison(os.path.join(folder, run, "checkpoints", "step-00000002.h5"), name, element, value)
        message = check_end(folder, run, ranks, overrides, label)
        places = [[int(word) for word in place] for place in re.findall(PLACE, message)]
        right = places and all(rank < ranks and p == stage for rank, p, d, t, stage in places)
        if not tap.ok(right and re.search(r"gradient of \w+/\w+.* layer \d+: \w+", message),
                      f"{label}: names rank, stage, layer and tensor"):
            tap.note(message)


def check_one_rank(folder):
    """Only one data rank comes upon a token that is not finite; every rank stops."""
    with h5py.File(os.path.join(folder, "corpus.h5")) as file:
        samples = tiny.samples_of(file["tokens"][()])[:, :-1]
    words = ["grid.data=2", "grid.pipeline=2", "pipeline.microbatches=2", "data.shuffle=false", UNTIED]
    good = tiny.train(folder, "good-data", 4, *words, "run.stop_at=2")
    batch = samples[24:36].reshape(2, 2, 3, -1)  # [microbatches, data ranks, sequences, tokens]
    for d in (0, 1):
        token = min(set(batch[:, d].flat) - set(batch[:, 1 - d].flat))
        shutil.copytree(good.folder, os.path.join(folder, f"data-{d}"))
        file = os.path.join(folder, f"data-{d}", "checkpoints", "step-00000002.h5")
        poison(file, "embedding/token", (token, 0), np.nan)
        message = check_end(folder, f"data-{d}", 4, words, f"a token of data rank {d} alone")
        first = re.search(PLACE, message)
        tap.is_equal(first and first.group(3), str(d), f"a token of data rank {d} alone: it is named")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        check_places(folder)
        check_one_rank(folder)
    tap.done()


main()
