#!/usr/bin/env python3
"""jobs/compare.py, jobs/norms.py and jobs/history.py: against NumPy, and in less memory than the tensors have. TAP."""
import csv
import io
import json
import os
import shutil
import sys

import h5py
import numpy as np

import tap
import tiny

JOBS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "jobs")
QUERY, TOKEN, OUTPUT = ("/model/blocks/attention/query/weight", "/model/embedding/token",
                        "/model/blocks/attention/output/weight")

# Runs a script and tells its largest memory, in MiB, on standard error.
MEASURE = """import resource, subprocess, sys
code = subprocess.call([sys.executable] + sys.argv[1:])
sys.stderr.write(f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024}")
sys.exit(code)"""


def job(folder, script, *words):
    return tap.run(sys.executable, os.path.join(JOBS, script), *words, folder=folder)


def lines_of(out):
    """{(first word, second where it is a number): the other words} of each line about a tensor."""
    found = {}
    for words in (line.split() for line in out.splitlines() if line.startswith("/")):
        found[words[0], int(words[1]) if words[1].isdigit() and "." not in words[1] else None] = words[1:]
    return found


def check_compare(folder, path):
    other = os.path.join(folder, "other.h5")
    shutil.copy(path, other)
    code, out, _ = job(folder, "compare.py", path, other)
    tap.ok(code == 0 and len(out.splitlines()) == 2, "a copy is the same")
    tap.note(out.splitlines()[-1])
    with h5py.File(other, "r+") as file:
        a = file[QUERY][()].astype(np.float64)
        file[QUERY][1, 2, 3, 4] += 0.5
        file[QUERY][4, 3, 11, 47] -= 2
        b = file[QUERY][()].astype(np.float64)
        zero = file["/model/final_norm/bias"][()]
        zero[7] = -0.0 if zero[7] == 0 else zero[7]
        file["/model/final_norm/bias"][...] = zero * np.float32(1) + 1
        file[TOKEN][50, 6] = np.nan
        del file["/optimizer/second_moment/final_norm/weight"]
    code, out, _ = job(folder, "compare.py", path, other, "--all")
    found = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("/")}
    tap.ok(code == 1, "a change is told by the exit code")
    different, largest, relative = found[QUERY][:3]
    tap.ok(int(different) == 2 and abs(float(largest) - 2) < 1e-3
           and abs(float(relative) / (np.linalg.norm(a - b) / np.linalg.norm(a)) - 1) < 1e-3,
           "how many, how far, and how far in all")
    tap.ok("which is not so" in " ".join(found[QUERY]), "a digest that is not of its tensor is told")
    tap.ok(found["/model/final_norm/bias"][0] == str(tiny.HIDDEN), "all elements of a tensor")
    tap.ok(found[TOKEN][:2] == ["1", "nan"], "a NaN is a difference")
    tap.ok("only in" in " ".join(found["/optimizer/second_moment/final_norm/weight"]), "a tensor of one file alone")
    equal = [path for path, words in found.items() if words[0] == "0"]
    tap.is_equal(len(equal), len(found) - 4, "all others are the same")
    code, out, _ = job(folder, "compare.py", path, other, "--below", "/optimizer/first_moment")
    tap.ok(code == 0 and "/model" not in out, "one group alone")
    code, out, _ = job(folder, "compare.py", path, other, "--digests", "--below", "model")
    tap.ok(code == 0, "stored digests alone: they are still the same")
    code, _, errors = job(folder, "compare.py", path, "in.nml")
    tap.ok(code == 2 and errors.startswith("in.nml cannot be read"), "no HDF5 file")


def check_norms(folder, path):
    tensors = tiny.tensors(path)
    code, out, _ = job(folder, "norms.py", path, "--spectrum", "--csv", "values.csv")
    found = lines_of(out)
    worst, spectra, shown = 0.0, 0.0, 0.0
    with open(os.path.join(folder, "values.csv"), encoding="ascii", newline="") as file:
        told = {}
        for row in csv.DictReader(file):
            told.setdefault((row["tensor"], row["layer"]), []).append(float(row["singular_value"]))
    matrices = 0
    for (name, layer), words in found.items():
        tensor = tensors[name[1:]].astype(np.float64)
        tensor, words = (tensor, words) if layer is None else (tensor[layer], words[1:])
        worst = max(worst, abs(float(words[0]) / np.sqrt(np.mean(tensor ** 2)) - 1),
                    abs(float(words[1]) / np.abs(tensor).max() - 1))
        if name.endswith(("norm/weight", "bias")):
            tap.ok(len(words) == 3, f"{name} is no matrix") if layer in (None, 0) else None
            continue
        rows = tensor.shape[0] if name == OUTPUT else np.prod(tensor.shape[:-1])
        values = np.linalg.svd(tensor.reshape(rows, -1), compute_uv=False)
        own = np.array(told[name, "" if layer is None else str(layer)])
        matrices += 1
        spectra = max(spectra, np.abs(own - values).max() / values[0] if len(own) == len(values) else np.inf)
        shown = max(shown, abs(float(words[5]) / ((values / values[0]) ** 2).sum() - 1),
                    abs(float(words[3]) / values[0] - 1))
    tap.is_equal((code, len(found)), (0, 16 * tiny.LAYERS + 4), "norms of each layer of each tensor")
    tap.ok(worst < 1e-4, f"as NumPy has them, to {worst:.1e}")
    tap.ok(matrices == 6 * tiny.LAYERS + 2 and spectra < 1e-6, f"singular values, too, to {spectra:.1e}")
    tap.ok(shown < 0.01, "and what is shown of them")
    code, out, _ = job(folder, "norms.py", os.path.join(folder, "other.h5"), "--spectrum")
    tap.ok(code == 0 and lines_of(out)[TOKEN, None][2] == "1", "a NaN is counted, and left out of the norm")


def check_slabs(folder):
    """Tensors of 384 MiB that take no room on disk, and the pieces' shapes."""
    for name in ("big-a.h5", "big-b.h5"):
        with h5py.File(os.path.join(folder, name), "w") as file:
            file.create_dataset("/model/blocks/mlp/down/weight", (3, 64, 1 << 19), np.float32)
            file.create_dataset("/model/embedding/token", (1 << 20, 3, 32), np.float32)
            if name == "big-b.h5":
                file["/model/blocks/mlp/down/weight"][2, 63, -1] = 3
    for script, words in {"compare.py": ("big-a.h5", "big-b.h5"), "norms.py": ("big-b.h5", "--spectrum")}.items():
        code, out, errors = tap.run(sys.executable, "-c", MEASURE, os.path.join(JOBS, script), *words, folder=folder)
        tap.ok(code == (script == "compare.py") and errors.isdigit() and int(errors) < 300,
               f"{script} holds pieces of 768 MiB, not all")
        tap.note(f"{errors} MiB\n{out}")
        tap.ok("3.000e+00" in out or "3.0000e+00" in out, f"{script} sees the last element")
    sys.path.insert(0, JOBS)
    import slabs
    for shape in ((), (0,), (7,), (5, 4, 3), (2, 100, 3), (3, 0, 2)):
        counted = np.zeros(shape, int)
        sizes = []
        for where in slabs.slabs(shape, 10):
            counted[where] += 1
            sizes.append(counted[where].size)
        tap.ok((counted == 1).all() and max(sizes, default=0) <= 10, f"pieces of {list(shape)} cover it once")


def check_history(folder, run):
    path = os.path.join(run.folder, "metrics.jsonl")
    code, out, errors = job(folder, "history.py", "run")
    rows = list(csv.DictReader(io.StringIO(out)))
    lines = run.metrics()
    tap.ok(code == 0 and [int(row["step"]) for row in rows] == [1, 2, 3, 4] and not errors, "a line for each step")
    exact = all(float(rows[line["step"] - 1][key]) == value for line in lines for key, value in line.items())
    tap.ok(exact and rows[0]["validation_loss"] == "" != rows[1]["validation_loss"], "every number reads back exactly")
    with open(path, "a", encoding="ascii") as file:
        file.write(json.dumps({"step": 4, "loss": 7.5}) + '\n{"step": 5, "lo')
    code, out, errors = job(folder, "history.py", "run", "--keys", "validation_loss,loss", "-o", "out.csv")
    with open(os.path.join(folder, "out.csv"), encoding="ascii") as file:
        text = file.read().splitlines()
    tap.ok(code == 0 and text[0] == "step,validation_loss,loss" and text[4].endswith(",7.5") and len(text) == 5
           and errors.startswith("1 line"), "chosen columns, the last word on a step, half a line left out")
    code, _, errors = job(folder, "history.py", "run", "--keys", "los")
    tap.ok(code == 1 and errors.startswith("no los in metrics.jsonl"), "an unknown column")
    tap.ok(job(folder, "history.py", "nowhere")[0] == 1, "no run")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        run = tiny.train(folder, "run", 2, "grid.pipeline=2", "run.evaluate_every=2", "data.validation=corpus.h5",
                         "run.evaluate_batches=1")
        check_compare(folder, run.checkpoint(4))
        check_norms(folder, run.checkpoint(4))
        check_slabs(folder)
        check_history(folder, run)
    tap.done()


main()
