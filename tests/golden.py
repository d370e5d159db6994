#!/usr/bin/env python3
"""Whole runs against PyTorch: losses, norms, learning rates, every gradient of step 1, and weights and both moments
after the last step, from the files that tests/make_golden.py made, on several grids. TAP."""
import hashlib
import json
import os

import tap

h5py = tap.need("h5py")
np = tap.need("numpy")

TESTS = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(TESTS, "golden")
STEPS = 5
NUMBERS = 1e-6  # largest relative error of losses, norms and learning rates
KINDS = 7  # of errors: three of numbers, four of tensors
LIMITS = {"gradients": 5e-6, "model": 1e-5, "first_moment": 1e-5, "second_moment": 1e-5}  # |found - right| / |right|

# Grid (pipeline x data x tensor) and what goes with it. The global batch is the same on all of them.
GRIDS = {
    "1x1x1": [],
    "3x1x1 uneven": ["pipeline.balance=explicit", "pipeline.stage_layers=1,3,1", "pipeline.recompute=full"],
    "1x1x3": ["pipeline.recompute=selective"],
    "1x1x3 sequence parallel": ["grid.sequence_parallel=.true."],
    "1x2x1": ["pipeline.recompute=selective"],
    "2x2x1": ["pipeline.schedule=gpipe", "pipeline.recompute=full"],
    "2x1x3 sequence parallel": ["grid.sequence_parallel=.true.", "pipeline.recompute=full"],
}
UNCLIPPED = ("1x1x1",)  # also run with clipping off or beyond reach


def script_digest():
    with open(os.path.join(TESTS, "make_golden.py"), "rb") as script:
        return hashlib.sha256(script.read()).hexdigest()


def tensors(group):
    """{path: elements in double precision}; each layer of a stack is a tensor of its own."""
    found = {}

    def visit(path, item):
        if isinstance(item, h5py.Dataset):
            array = item[()].astype(np.float64)
            found.update({f"{path}[{i}]": layer for i, layer in enumerate(array)} if path.startswith("blocks/")
                         else {path: array})

    group.visititems(visit)
    return found


class Errors:
    """The worst relative error of each kind of tensor in a run, and what lies beyond its limit."""

    def __init__(self):
        self.worst = {}
        self.beyond = []

    def add(self, kind, name, error, limit):
        self.worst[kind] = max(self.worst.get(kind, (0.0, "")), (error, name))
        if not error <= limit:
            self.beyond.append(f"{kind}: {name}: relative error {error:.3g}, allowed {limit:.3g}")

    def numbers(self, kind, found, right):
        if len(found) != len(right):
            self.beyond.append(f"{kind}: {len(found)} steps, expected {len(right)}")
        for step, (a, b) in enumerate(zip(found, right), 1):
            self.add(kind, f"step {step}", 0.0 if a == b else abs(a - b) / abs(b), NUMBERS)

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
                error = np.linalg.norm(found[path] - right[path]) / np.linalg.norm(right[path])
                self.add(kind, path, error, LIMITS[kind])


def compare(folder, golden, run):
    errors = Errors()
    right = golden[f"runs/{run}"]
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    for kind, key in (("losses", "loss"), ("gradient_norms", "gradient_norm"), ("learning_rates", "learning_rate")):
        errors.numbers(kind, [line[key] for line in lines], right[kind][()])
    reach = sum(right["learning_rates"][()])  # how far Adam can have moved a weight
    with h5py.File(os.path.join(folder, "step-00000001.h5")) as found:
        gradients = tensors(golden["gradients"])
        errors.tree("gradients", tensors(found["gradients"]), gradients,
                    lambda path: 1e-5 * np.abs(gradients[path.replace("key", "query")]).max())
    with h5py.File(os.path.join(folder, f"step-{STEPS:08}.h5")) as found:
        errors.tree("model", tensors(found["model"]), tensors(right["model"]), lambda path: 0.1 * reach)
        for kind in ("first_moment", "second_moment"):
            moments = tensors(right[kind])
            errors.tree(kind, tensors(found[f"optimizer/{kind}"]), moments,
                        lambda path, all=moments: 1e-5 * np.abs(all[path.replace("key", "query")]).max())
    return errors


def run_case(folder, variant, golden, run, grid):
    """One run of the program; returns its Errors, or None after saying why there are none."""
    pipeline, data, tensor = (int(size) for size in grid.split()[0].split("x"))
    output = os.path.join(folder, f"{variant}-{run}-{grid}".replace(" ", "-"))
    namelist = output + ".nml"
    with open(namelist, "w", encoding="utf-8") as file:
        file.write(golden.attrs["input"])
    settings = [
        f"grid.pipeline={pipeline}", f"grid.data={data}", f"grid.tensor={tensor}",
        f"optimizer.clip_norm={golden[f'runs/{run}'].attrs['clip_norm']}",
        f"data.train={os.path.join(GOLDEN, 'tokens.h5')}", "run.device=cpu", "run.threads=1", f"run.output={output}",
        f"checkpoint.directory={output}", "checkpoint.every=1", f"checkpoint.keep={STEPS}",
        "checkpoint.gradients=.true.", f"checkpoint.load_weights={os.path.join(GOLDEN, variant + '.h5')}",
        *GRIDS[grid]]
    code, out, err = tap.launch(pipeline * data * tensor, tap.program("ppmodel"), namelist, *settings)
    if code != 0:
        tap.note(f"exit code {code}\n{out[-2000:]}\n{err[-4000:]}")
        return None
    return compare(output, golden, run)


def show(case, errors):
    """One line: the worst relative error of each kind."""
    tap.note(f"{case}: " + ", ".join(f"{kind} {error:.1e}" for kind, (error, _) in errors.worst.items()))
    for line in errors.beyond[:12]:
        tap.note(line)
    if len(errors.beyond) > 12:
        tap.note(f"... and {len(errors.beyond) - 12} more")


def main():
    digest = script_digest()
    for name in ("tokens", "untied", "tied", "layers"):
        with h5py.File(os.path.join(GOLDEN, f"{name}.h5")) as file:
            tap.is_equal(file.attrs["script"], digest, f"golden/{name}.h5 was made by make_golden.py as it is now")
    with tap.scratch_folder() as folder:
        for variant in ("untied", "tied"):
            with h5py.File(os.path.join(GOLDEN, f"{variant}.h5")) as golden:
                for grid in GRIDS:
                    for run in ("clipped", "unclipped") if grid in UNCLIPPED else ("clipped",):
                        case = f"{variant}, {run}, {grid}"
                        errors = run_case(folder, variant, golden, run, grid)
                        tap.ok(errors and not errors.beyond and len(errors.worst) == KINDS, f"{case}: as PyTorch")
                        if errors:
                            show(case, errors)
    tap.done()


if __name__ == "__main__":
    main()
