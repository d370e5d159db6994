#!/usr/bin/env python3
"""Whole runs against PyTorch: losses, norms, learning rates, every gradient of step 1, and weights and both moments
after the last step, from the files that tests/make_golden.py made, on many grids. TAP."""
import collections
import hashlib
import json
import os

import tap

h5py = tap.need("h5py")
np = tap.need("numpy")

TESTS = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(TESTS, "golden")
STEPS = 5
RUNS = ("clipped", "unclipped")

# Largest relative errors: of numbers, and of tensors |found - right| / |right|.
LIMITS = {"loss": 3e-7, "norm": 3e-6, "rate": 1e-12,
          "gradients": 5e-6, "weights": 3e-6, "first moment": 1e-5, "second moment": 1e-5}

# The same batch of 12 sequences on every grid, in microbatches of 3. stage_layers: -: as the program divides. The run
# whose weights and moments the files have is clipped where the weights are untied and not clipped where they are tied;
# the first case does the other one, too.
Case = collections.namedtuple("Case", "P D T schedule chunks recompute sequence_parallel stage_layers variants")
VARIANTS = {"untied": ("untied",), "tied": ("tied",), "both": ("untied", "tied")}

# P D T  schedule  chunks  recompute  sequence_parallel  stage_layers  variants
CASES = """
1 1 1  1f1b         1  none       -    -              both
1 1 3  1f1b         1  selective  -    -              both
1 1 3  1f1b         1  none       yes  -              both
1 2 1  1f1b         1  full       -    -              both
1 4 1  gpipe        1  selective  -    -              tied
1 2 3  gpipe        1  none       yes  -              untied
2 2 1  1f1b         1  full       -    0,5            both
2 1 3  1f1b         1  full       yes  4,1            both
3 1 1  1f1b         1  selective  -    1,3,1          untied
3 2 1  gpipe        1  none       -    0,1,4          tied
5 1 1  gpipe        1  full       -    -              tied
7 1 1  1f1b         1  none       -    0,1,1,1,1,1,0  both
2 1 1  interleaved  2  none       -    0,2,1,2        tied
2 2 1  interleaved  2  full       -    -              untied
5 1 1  zb-h1        1  none       -    0,2,1,1,1      untied
2 1 3  zb-h1        1  selective  yes  -              tied
2 1 1  zb-v         2  selective  -    -              tied
2 1 3  zb-v         2  full       yes  -              untied
3 1 1  v-half       2  full       -    -              untied
2 2 1  v-half       2  none       -    -              tied
"""


def read_cases():
    return [Case(*(int(word) if word.isdigit() else word for word in line.split())) for line in CASES.split("\n")[1:-1]]


def name_of(case):
    return (f"{case.P}x{case.D}x{case.T} {case.schedule}{' of 2 chunks' if case.chunks > 1 else ''}, {case.recompute}"
            f"{', sequence parallel' if case.sequence_parallel == 'yes' else ''}"
            f"{', ' + case.stage_layers if case.stage_layers != '-' else ''}")


def overrides(case):
    words = [f"grid.pipeline={case.P}", f"grid.data={case.D}", f"grid.tensor={case.T}",
             f"pipeline.schedule={case.schedule}", f"pipeline.chunks={case.chunks}",
             f"pipeline.recompute={case.recompute}",
             f"grid.sequence_parallel={'.true.' if case.sequence_parallel == 'yes' else '.false.'}"]
    if case.stage_layers != "-":
        words += ["pipeline.balance=explicit", f"pipeline.stage_layers={case.stage_layers}"]
    return words


def script_digest():
    with open(os.path.join(TESTS, "make_golden.py"), "rb") as script:
        return hashlib.sha256(script.read()).hexdigest()


def elements(dataset):
    """In double precision; what is stored as counts of steps (make_golden.py) is multiplied out."""
    array = dataset[()].astype(np.float64)
    if "scale" not in dataset.attrs:
        return array
    least, step = (column.reshape(-1, *[1] * (array.ndim - 1)) for column in dataset.attrs["scale"].T)
    return array * step + least


def tensors(group):
    """{path: elements}; each layer of a stack is a tensor of its own."""
    found = {}

    def visit(path, item):
        if isinstance(item, h5py.Dataset):
            found.update({f"{path}[{i}]": layer for i, layer in enumerate(elements(item))}
                         if path.startswith("blocks/") else {path: elements(item)})

    group.visititems(visit)
    return found


def has_results(golden, run):
    """Whether the file has the run's weights and moments."""
    return "change" in golden[f"runs/{run}"]


class Errors:
    """The worst relative error of each kind of a run and where it is, and what lies beyond its limit."""

    def __init__(self):
        self.worst = {kind: (0.0, "") for kind in LIMITS}
        self.compared = set()
        self.beyond = []

    def add(self, kind, name, error):
        self.compared.add(kind)
        self.worst[kind] = max(self.worst[kind], (error, name))
        if not error <= LIMITS[kind]:
            self.beyond.append(f"{kind}: {name}: relative error {error:.3g}, allowed {LIMITS[kind]:.3g}")

    def numbers(self, kind, found, right):
        if len(found) != len(right):
            self.beyond.append(f"{kind}: {len(found)} steps, expected {len(right)}")
        for step, (a, b) in enumerate(zip(found, right), 1):
            self.add(kind, f"step {step}", 0.0 if a == b else abs(a - b) / abs(b))

    def tree(self, kind, found, right, key_bias):
        """The softmax does not see the key's bias: its gradient is 0 but for rounding, which Adam makes large in the
        weights. key_bias(path) tells how large its error may be."""
        if found.keys() != right.keys():
            self.beyond.append(f"{kind}: {sorted(found.keys() ^ right.keys())} on one side only")
        for path in sorted(found.keys() & right.keys()):
            if found[path].shape != right[path].shape:
                self.beyond.append(f"{kind}: {path}: shape {found[path].shape}, expected {right[path].shape}")
            elif "key/bias" in path:
                largest = np.abs(found[path] - right[path]).max()
                if not largest <= key_bias(path):
                    self.beyond.append(f"{kind}: {path}: error {largest:.3g}, allowed {key_bias(path):.3g}")
            else:
                self.add(kind, path, np.linalg.norm(found[path] - right[path]) / np.linalg.norm(right[path]))


def compare(folder, golden, run):
    errors = Errors()
    right = golden[f"runs/{run}"]
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    for kind, key, name in (("loss", "loss", "losses"), ("norm", "gradient_norm", "gradient_norms"),
                            ("rate", "learning_rate", "learning_rates")):
        errors.numbers(kind, [line[key] for line in lines], right[name][()])

    def small(tree):
        """A part of the query's bias, which lies where the key's does."""
        return lambda path: 1e-5 * np.abs(tree[path.replace("key", "query")]).max()

    with h5py.File(os.path.join(folder, "step-00000001.h5")) as found:
        gradients = tensors(golden["gradients"])
        errors.tree("gradients", tensors(found["gradients"]), gradients, small(gradients))
    if not has_results(golden, run):
        return errors
    reach = sum(right["learning_rates"][()])  # how far Adam can have moved a weight
    with h5py.File(os.path.join(folder, f"step-{STEPS:08}.h5")) as found:
        changes = tensors(right["change"])
        weights = {path: initial + changes[path] for path, initial in tensors(golden["model"]).items()}
        errors.tree("weights", tensors(found["model"]), weights, lambda path: 0.1 * reach)
        for order in ("first", "second"):
            moments = tensors(right[f"{order}_moment"])
            errors.tree(f"{order} moment", tensors(found[f"optimizer/{order}_moment"]), moments, small(moments))
    return errors


def run_case(folder, variant, golden, run, case):
    """One run of the program; returns its Errors, or None after saying why there are none."""
    namelist = os.path.join(folder, f"{variant}.nml")
    with open(namelist, "w", encoding="utf-8") as file:
        file.write(golden.attrs["input"])
    with tap.scratch_folder() as output:
        settings = [
            f"optimizer.clip_norm={golden[f'runs/{run}'].attrs['clip_norm']}",
            f"data.train={os.path.join(GOLDEN, 'tokens.h5')}", "run.device=cpu", "run.threads=1",
            f"run.output={output}", f"checkpoint.directory={output}", "checkpoint.every=1", f"checkpoint.keep={STEPS}",
            "checkpoint.gradients=.true.", f"checkpoint.load_weights={os.path.join(GOLDEN, variant + '.h5')}",
            *overrides(case)]
        code, out, err = tap.launch(case.P * case.D * case.T, tap.program("ppmodel"), namelist, *settings)
        if code != 0:
            tap.note(f"exit code {code}\n{out[-2000:]}\n{err[-4000:]}")
            return None
        return compare(output, golden, run)


def check_case(folder, variant, golden, run, case, rows):
    name = f"{variant}, {run}, {name_of(case)}"
    errors = run_case(folder, variant, golden, run, case)
    kinds = len(LIMITS) if has_results(golden, run) else len(LIMITS) - 3
    tap.ok(errors and not errors.beyond and len(errors.compared) == kinds, f"{name}: as PyTorch")
    for line in errors.beyond[:12] if errors else ():
        tap.note(line)
    if errors and len(errors.beyond) > 12:
        tap.note(f"... and {len(errors.beyond) - 12} more")
    if errors:
        moments = max(errors.worst["first moment"], errors.worst["second moment"])
        rows.append([name, *(f"{error:.1e} {where}" for error, where in
                             (errors.worst["gradients"], errors.worst["weights"], moments)),
                     *(f"{errors.worst[kind][0]:.1e}" for kind in ("loss", "norm"))])


def show_table(rows):
    rows = [["worst relative errors", "gradients", "weights", "moments", "loss", "norm"], *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        tap.note("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip())


def main():
    digest = script_digest()
    for name in ("tokens", "untied", "tied", "layers"):
        with h5py.File(os.path.join(GOLDEN, f"{name}.h5")) as file:
            tap.is_equal(file.attrs["script"], digest, f"golden/{name}.h5 was made by make_golden.py as it is now")
    rows = []
    with tap.scratch_folder() as folder:
        for variant in ("untied", "tied"):
            with h5py.File(os.path.join(GOLDEN, f"{variant}.h5")) as golden:
                cases = [case for case in read_cases() if variant in VARIANTS[case.variants]]
                for case in cases:
                    for run in RUNS if case is cases[0] else [run for run in RUNS if has_results(golden, run)]:
                        check_case(folder, variant, golden, run, case, rows)
    show_table(rows)
    tap.done()


if __name__ == "__main__":
    main()
