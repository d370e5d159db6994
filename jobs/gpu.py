#!/usr/bin/env python3
"""Tests and measures ppmodel on the CUDA devices of this computer and writes one report, to be sent to whoever asks:

    jobs/setup.sh && jobs/gpu.py                      all parts, some 10 minutes on one H100: gpu-report.txt
    jobs/gpu.py --parts parity,training               some of them
    jobs/gpu.py --device cpu --size tiny              a trial of this program, where there is no device

    tests      the tests of kernels, layers and communication that need a device
    parity     a small model trained on the device and on the CPU, on every grid that the devices allow: losses,
               gradients and weights agree to rounding, and grids that must give the same bits do so
    kernels    tests/kernels_speed: what each operation takes, and the limits of the device
    training   GPT-2 with 124 million parameters: tokens per second, beside PyTorch's where --python has it

Weights are compared where this Python has h5py and numpy; so the training's tokens are as frequent as words. Without
them they are the bytes of this project. Exit code 0: all is as it should be; 1: something differs or failed; 2: it
could not begin.
"""
import argparse
import collections
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import traceback

try:
    import h5py
    import numpy as np
except ImportError:
    h5py = None

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PARTS = ("tests", "parity", "kernels", "training")
WARM_UP = 4  # steps that do not count
LONGEST = 1800  # seconds of one program

Grid = collections.namedtuple("Grid", "pipeline data tensor")
GRIDS = (Grid(1, 1, 1), Grid(2, 1, 1), Grid(1, 2, 1), Grid(1, 1, 2), Grid(2, 1, 2), Grid(1, 2, 2), Grid(2, 2, 2))

Shape = collections.namedtuple("Shape", "layers hidden heads sequence vocabulary microbatch_size microbatches steps")
SIZES = {"gpt2": Shape(12, 768, 12, 1024, 50304, 8, 4, 14), "tiny": Shape(2, 64, 4, 32, 256, 2, 2, 7)}
SMALL = Shape(4, 120, 6, 61, 256, 2, 4, 5)  # of the comparison with the CPU

# How far the device may be from the CPU: losses and norms of all steps, relative; gradients of the first step and
# weights after the last, the L2 norm of the difference over that of the tensor, for the worst tensor. Two tensor ranks,
# which add in another order, are so far from one on the CPU itself: in fp32 2.9e-8, 1.4e-7, 9.5e-7 and 1.6e-6, in bf16
# 1.0e-4, 9.7e-4, 1.3e-2 and 3.0e-2. The worst weights are biases: they begin at 0, so that all of them is AdamW's.
LIMITS = {"fp32": {"loss": 1e-6, "gradient_norm": 2e-5, "gradients": 2e-5, "weights": 3e-4},
          "bf16": {"loss": 1e-3, "gradient_norm": 1e-2, "gradients": 3e-2, "weights": 1e-1}}

# How far the first step may be from that of PyTorch, which in tf32 and bf16 rounds in other places.
FIRST_STEP = {"fp32": {"loss": 2e-6, "gradient_norm": 5e-6}, "tf32": {"loss": 1e-3, "gradient_norm": 1e-2},
              "bf16": {"loss": 1e-3, "gradient_norm": 1e-2}}

# The bias of the keys has a gradient of 0 but for rounding.
NOISE = "attention/key/bias"


class Report:
    """Lines on standard output and in a file, and the verdicts of all parts."""

    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8")
        self.verdicts = []

    def say(self, text=""):
        print(text, flush=True)
        print(text, file=self.file, flush=True)

    def title(self, text):
        self.say(f"\n{text}\n{'-' * len(text)}")

    def check(self, good, text):
        """One verdict; returns it."""
        self.verdicts.append((bool(good), text))
        self.say(f"{'good' if good else 'BAD '}  {text}")
        return good

    def close(self):
        bad = [text for good, text in self.verdicts if not good]
        self.title("Verdict")
        self.say(f"{len(self.verdicts) - len(bad)} of {len(self.verdicts)} checks are good")
        for text in bad:
            self.say(f"BAD   {text}")
        self.file.close()
        return 1 if bad or not self.verdicts else 0


def environment():
    """This one's, without what chooses another processor's kernels."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}


def run(command, folder=TOP):
    """Exit code and output of a program; 127 where there is no such program, 124 when it took too long."""
    try:
        done = subprocess.run([str(word) for word in command], cwd=folder, env=environment(), text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=LONGEST, errors="replace")
        return done.returncode, done.stdout
    except OSError as error:
        return 127, str(error)
    except subprocess.TimeoutExpired as error:
        return 124, (error.stdout or b"").decode(errors="replace") + f"\nended after {LONGEST} s"


def tail(text, lines=15):
    return "\n".join("    " + line for line in text.strip().splitlines()[-lines:])


class Program:
    """The programs of a build folder, and the launcher that they were built for."""

    def __init__(self, build):
        self.build = os.path.abspath(build)
        self.path = os.path.join(self.build, "ppmodel")
        with open(os.path.join(self.build, "Makefile"), encoding="utf-8") as file:
            makefile = file.read()
        variables = dict(re.findall(r"^(MPIEXEC(?:_NP)?) = (.*)$", makefile, re.MULTILINE))
        self.launcher = [*variables["MPIEXEC"].split(), variables["MPIEXEC_NP"]]
        self.cuda_tests = sorted(set(re.findall(r"\btests/[\w.]+\.cuda\b", makefile)))

    def make(self, *words):
        return run(["make", "-j", os.cpu_count() or 1, *words], self.build)


class Training:
    """What a run left: exit code, output, and its files in `folder`."""

    def __init__(self, code, out, folder):
        self.code, self.out, self.folder = code, out, folder
        self.steps = []
        if code == 0:
            with open(os.path.join(folder, "metrics.jsonl"), encoding="ascii") as file:
                self.steps = [json.loads(line) for line in file]

    def metric(self, name):
        return [step[name] for step in self.steps if name in step]

    def checkpoint(self, step):
        return os.path.join(self.folder, "checkpoints", f"step-{step:08d}.h5")


# Initial weights are so large that attention is far from uniform: a mistake in it shows.
NAMELIST = """&run steps = {shape.steps}  device = '{device}'  precision = '{precision}'  output = '{place}'
     {threads} /
&model layers = {shape.layers}  hidden = {shape.hidden}  heads = {shape.heads}  sequence = {shape.sequence}
       vocabulary = {shape.vocabulary}  init_std = 0.1 /
&grid pipeline = {grid.pipeline}  data = {grid.data}  tensor = {grid.tensor} /
&pipeline microbatch_size = {shape.microbatch_size} /
&data train = '{folder}/tokens.h5'  shuffle = .false. /
&optimizer learning_rate = 6e-4  min_learning_rate = 6e-4  decay = 'constant' /
"""


def train(program, folder, name, shape, device, grid, precision, *more, keep=False):
    """One run with its output in folder/name, on the tokens of folder/tokens.h5; `keep`: checkpoints of all steps."""
    ranks, place, threads = math.prod(grid), os.path.join(folder, name), "threads = 1" if device == "cpu" else ""
    with open(os.path.join(folder, f"{name}.nml"), "w", encoding="ascii") as file:
        file.write(NAMELIST.format(shape=shape, device=device, precision=precision, place=place, threads=threads,
                                   grid=grid, folder=folder))
    launcher = [*program.launcher, ranks] if ranks > 1 else []
    if keep:
        more = [*more, f"checkpoint.directory={place}/checkpoints", "checkpoint.every=1",
                f"checkpoint.keep={shape.steps}", "checkpoint.gradients=true"]
    code, out = run([*launcher, program.path, f"{folder}/{name}.nml", *more])
    return Training(code, out, place)


def write_tokens(program, folder, shape, steps):
    """tokens.h5 and, the same as 16-bit numbers alone, tokens.raw; false where that cannot be done."""
    count = (steps + 1) * shape.microbatches * shape.microbatch_size * shape.sequence + 1
    raw, data = (os.path.join(folder, "tokens." + kind) for kind in ("raw", "h5"))
    if h5py:
        uniform = np.random.default_rng(1).random(count)
        tokens = (shape.vocabulary ** uniform - 1).astype(np.uint16)  # frequencies fall with the rank, as words' do
        tokens.tofile(raw)
        with h5py.File(data, "w") as file:
            file["tokens"] = tokens
            file.attrs.update(format="ppmodel-dataset", version=1, vocabulary=shape.vocabulary, tokenizer="none")
        return True
    text = b"".join(open(os.path.join(TOP, "src", "run", name), "rb").read()
                    for name in sorted(os.listdir(os.path.join(TOP, "src", "run"))))
    text = (text * (count // len(text) + 1))[:count]
    with open(os.path.join(folder, "text"), "wb") as file:
        file.write(text)
    with open(raw, "wb") as file:
        file.write(bytes(byte for pair in zip(text, bytes(count)) for byte in pair))
    code, _ = run([os.path.join(program.build, "ppmodel-pack"), "-o", data, os.path.join(folder, "text")])
    return code == 0


# What this computer is


def count_devices(options):
    if options.device == "cpu":
        return options.devices or os.cpu_count() or 1
    code, out = run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(out.strip().splitlines()) if code == 0 else 0
    count = count if seen is None else min(count, len([word for word in seen.split(",") if word]))
    return min(count, options.devices or count)


def describe(report, program):
    report.title("Computer and versions")
    fields = "name,driver_version,memory.total,compute_cap,power.limit,clocks.max.sm,clocks.max.mem"
    for command in (["nvidia-smi", f"--query-gpu={fields}", "--format=csv"], ["nvidia-smi", "topo", "-m"],
                    ["sh", "-c", "nvidia-smi | grep -o 'CUDA Version: [0-9.]*'"],
                    ["sh", "-c", "lscpu | grep -E '^(Model name|CPU\\(s\\)|Socket)'"], ["uname", "-sr"],
                    [program.path, "--version"]):
        code, out = run(command)
        report.say(out.strip() if code == 0 else f"{' '.join(command[:2])}: {out.strip()[:200]}")


# The parts


def part_tests(report, program, options):
    """Tests that are skipped have not been run: they count as bad on a device."""
    code, out = program.make("check", "TESTS=" + " ".join(program.cuda_tests), "CUDA_RUNNER=", "TEST_TIMEOUT=1200")
    counts = {name: int(count) for name, count in re.findall(r"^# (\w+): +(\d+)$", out, re.MULTILINE)}
    skipped = re.findall(r"^SKIP: (.*)$", out, re.MULTILINE)
    for line in re.findall(r"^(?:FAIL|ERROR|XPASS): .*$", out, re.MULTILINE) + [f"skipped: {name}" for name in skipped]:
        report.say("    " + line)
    good = code == 0 and program.cuda_tests and counts.get("PASS", 0) > 0
    if options.device == "cuda":
        good = good and not any("np" not in name for name in skipped)
    if not report.check(good or options.device == "cpu", f"tests: {len(program.cuda_tests)} programs, "
                        + ", ".join(f"{counts.get(name, 0)} {name}" for name in ("PASS", "FAIL", "SKIP", "ERROR"))):
        report.say(tail(out))


def relative(found, expected):
    return max((abs(a / b - 1) for a, b in zip(found, expected)), default=math.inf)


def farthest(one, other, below):
    """The largest relative distance of a tensor below this group from the other file's, and its name."""
    worst = (0.0, "")

    def visit(name, item):
        nonlocal worst
        if not isinstance(item, h5py.Dataset) or NOISE in name:
            return
        expected = second[below][name][()].astype(np.float64)
        distance = np.linalg.norm(item[()] - expected) / max(np.linalg.norm(expected), 1e-30)
        worst = max(worst, (float(distance) if math.isfinite(distance) else math.inf, name))

    with h5py.File(one, "r") as first, h5py.File(other, "r") as second:
        first[below].visititems(visit)
    return worst


def compare(report, name, found, expected, limits):
    """A run on the device with that on the CPU."""
    distances = {key: (relative(found.metric(key), expected.metric(key)), "") for key in ("loss", "gradient_norm")}
    if h5py:
        distances["gradients"] = farthest(found.checkpoint(1), expected.checkpoint(1), "gradients")
        distances["weights"] = farthest(found.checkpoint(SMALL.steps), expected.checkpoint(SMALL.steps), "model")
    texts = [f"{key} {distance:.1e}" for key, (distance, _) in distances.items()]
    if not report.check(all(distance <= limits[key] for key, (distance, _) in distances.items()),
                        f"{name}: distance from the CPU: {', '.join(texts)}"):
        for key, (distance, where) in distances.items():
            if not distance <= limits[key]:
                report.say(f"    {key} {where}: {distance:.3e}, at most {limits[key]:g} was expected")


def failed(report, training, name):
    """Tells where a training failed."""
    if training.code != 0:
        report.check(False, f"{name}: exit code {training.code}")
        report.say(tail(training.out))
    return training.code != 0


def part_parity(report, program, options):
    more = ["run.digest_every=1", f"pipeline.global_batch={SMALL.microbatches * SMALL.microbatch_size}"]
    devices = count_devices(options)
    with tempfile.TemporaryDirectory(prefix="ppmodel-gpu-", dir=options.folder) as folder:
        write_tokens(program, folder, SMALL, SMALL.steps)
        for precision, limits in LIMITS.items():
            expected = train(program, folder, f"cpu-{precision}", SMALL, "cpu", GRIDS[0], precision, *more, keep=True)
            if failed(report, expected, f"{precision} on the CPU"):
                continue
            digests = {}
            for grid in [GRIDS[0], *(grid for grid in GRIDS if math.prod(grid) <= devices)]:
                name = f"{precision} {'x'.join(map(str, grid))}"
                again = (grid.data, grid.tensor) in digests
                found = train(program, folder, f"{name.replace(' ', '-')}{'-again' * again}", SMALL, options.device,
                              grid, precision, *more, keep=True)
                if failed(report, found, name):
                    continue
                if again:
                    report.check(found.metric("digest") == digests[grid.data, grid.tensor] and found.metric("digest"),
                                 f"{name}: the same bits as before" if grid.pipeline == 1
                                 else f"{name}: the same bits as on one pipeline rank")
                else:
                    digests[grid.data, grid.tensor] = found.metric("digest")
                    compare(report, name, found, expected, limits)


def part_kernels(report, program, options):
    code, out = program.make("tests/kernels_speed")
    if not report.check(code == 0, "kernels: tests/kernels_speed is built"):
        report.say(tail(out))
        return
    cases = ([("bf16", "gpt2"), ("fp32", "gpt2"), ("tf32", "gpt2"), ("bf16", "large"), ("fp32", "large")]
             if options.size == "gpt2" else [("fp32", "tiny"), ("bf16", "tiny")])
    for precision, size in cases:
        code, out = run([os.path.join(program.build, "tests", "kernels_speed"), options.device, precision, size])
        report.say(f"\n{out.strip()}")
        limit = re.search(r"^limits: .* (\S+) TFLOP/s$", out, re.MULTILINE)
        if report.check(code == 0 and limit, f"kernels: {size} in {precision} is measured"):
            options.tflops.setdefault(precision, float(limit.group(1)))


def model_flops(shape):
    """Of one token: 6 for each weight of a matrix product, and attention in full, not only its causal half."""
    weights = 12 * shape.layers * shape.hidden**2 + shape.vocabulary * shape.hidden
    return 6 * weights + 12 * shape.layers * shape.hidden * shape.sequence


def show_speed(report, options, name, shape, grid, precision, seconds, memory):
    tokens = shape.microbatches * shape.microbatch_size * shape.sequence * grid.data
    speed, devices = tokens / statistics.median(seconds[WARM_UP:]), math.prod(grid)
    tflops = speed * model_flops(shape) / devices / 1e12
    share = f"{tflops / options.tflops[precision]:10.1%}" if options.tflops.get(precision) else f"{'':10}"
    report.say(f"{name:34}{precision:6}{speed:12.0f}{speed / devices:12.0f}{tflops:10.2f}{share}{memory / 2**20:10.0f}")
    return speed


def train_torch(options, folder, shape, precision, *more):
    """What jobs/gpu_torch.py reports, or None and why not."""
    numbers = [word for name in shape._fields for word in ("--" + name.replace("_", "-"), getattr(shape, name))]
    code, out = run([options.python, os.path.join(TOP, "jobs", "gpu_torch.py"), "--tokens",
                     os.path.join(folder, "tokens.raw"), "--precision", precision, "--device", options.device,
                     *numbers, *more])
    return (json.loads(out.strip().splitlines()[-1]), "") if code == 0 else (None, out)


def python_has(python, words):
    return run([python, "-c", words])[0] == 0


def initial_weights(program, folder, shape, options):
    """A checkpoint of the weights that every training begins with, or None."""
    first = train(program, folder, "initial", shape._replace(steps=1), options.device, GRIDS[0], "fp32",
                  "optimizer.learning_rate=0", "optimizer.min_learning_rate=0",
                  f"pipeline.microbatches={shape.microbatches}", keep=True)
    return first.checkpoint(1) if first.code == 0 else None


def compare_first_step(report, precision, ours, theirs):
    """From the same weights: the loss and the norm of the gradient."""
    found = {key: relative(ours.metric(key)[:1], theirs[key][:1]) for key in ("loss", "gradient_norm")}
    last = relative(ours.metric("loss"), theirs["loss"])
    report.check(all(found[key] <= limit for key, limit in FIRST_STEP[precision].items()),
                 f"training, {precision}: the first step's distance from PyTorch's: "
                 + ", ".join(f"{key} {value:.1e}" for key, value in found.items())
                 + f"; of all losses {last:.1e}")


def part_training(report, program, options):
    shape = SIZES[options.size]
    cuda = " and torch.cuda.is_available()" if options.device == "cuda" else ""
    torch = python_has(options.python, f"import torch, sys; sys.exit(0 if True{cuda} else 1)")
    if not torch:
        report.say(f"{options.python} has no PyTorch for this device: nothing to compare with")
    with tempfile.TemporaryDirectory(prefix="ppmodel-gpu-", dir=options.folder) as folder:
        write_tokens(program, folder, shape, shape.steps)
        weights = initial_weights(program, folder, shape, options) if torch and python_has(options.python,
                                                                                           "import h5py") else None
        report.say(f"{'':34}{'':6}{'tokens/s':>12}{'per device':>12}{'TFLOP/s':>10}{'of limit':>10}{'MiB':>10}")
        precisions = ("bf16", "tf32", "fp32") if options.device == "cuda" else ("bf16", "fp32")
        for precision in precisions:
            ours = train_ours(report, program, options, folder, shape, GRIDS[0], precision)
            if torch:
                train_theirs(report, options, folder, shape, precision, ours, weights)
        for grid in GRIDS[1:]:
            if math.prod(grid) <= count_devices(options):
                train_ours(report, program, options, folder, shape, grid, "bf16")


def train_ours(report, program, options, folder, shape, grid, precision):
    """One run; None when it failed."""
    name = f"ppmodel, {' x '.join(map(str, grid))}"
    ours = train(program, folder, f"ours-{precision}-{'x'.join(map(str, grid))}", shape, options.device, grid,
                 precision, f"pipeline.microbatches={shape.microbatches}")
    if failed(report, ours, f"training: {name} in {precision}"):
        return None
    show_speed(report, options, name, shape, grid, precision, ours.metric("seconds"),
               max(ours.metric("peak_memory_bytes")))
    return ours


def train_theirs(report, options, folder, shape, precision, ours, weights):
    begin = ["--weights", weights] if weights else []
    for compiled in ([], ["--compile"]) if options.device == "cuda" else ([],):
        theirs, why = train_torch(options, folder, shape, precision, *begin, *compiled)
        name = "PyTorch" + (", compiled" if compiled else "")
        if theirs is None:
            report.say(f"{name} in {precision} failed:\n{tail(why, 5)}")
            continue
        show_speed(report, options, f"{name} {theirs['torch']}", shape, GRIDS[0], precision, theirs["seconds"],
                   theirs["memory"])
        if weights and ours and not compiled:
            compare_first_step(report, precision, ours, theirs)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--build", default=os.path.join(TOP, "build"), help="build folder (default: build)")
    parser.add_argument("--report", default="gpu-report.txt", help="file for the report (default: gpu-report.txt)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a trial of this program")
    parser.add_argument("--devices", type=int, default=0, help="use so many devices at most (default: all)")
    parser.add_argument("--size", choices=SIZES, default="gpt2", help="of kernels and training (default: gpt2)")
    parser.add_argument("--python", default="python3", help="a Python that has torch (default: python3)")
    parser.add_argument("--folder", help="where trainings write for the while (default: the system's)")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: no part {', '.join(sorted(unknown))}, only {', '.join(PARTS)}")
    if not os.access(os.path.join(options.build, "ppmodel"), os.X_OK):
        parser.error(f"no ppmodel in {options.build}: build it first, by jobs/setup.sh")
    if shutil.which("nvidia-smi") is None and options.device == "cuda":
        parser.error("no nvidia-smi here; --device cpu tries this program")
    options.tflops = {}  # of a large product, by precision
    return options


def main():
    options = parse_options()
    program = Program(options.build)
    report = Report(options.report)
    describe(report, program)
    parts = {"tests": ("Tests on the device", part_tests), "parity": ("The device and the CPU", part_parity),
             "kernels": ("Kernels", part_kernels), "training": ("Training GPT-2", part_training)}
    for part in options.parts:
        title, function = parts[part]
        report.title(title)
        try:
            function(report, program, options)
        except Exception:  # the other parts go on: devices may be lent for this one time
            report.check(False, f"{part}: ends early")
            report.say(tail(traceback.format_exc()))
    code = report.close()
    print(f"\nThe report is in {options.report}.")
    return code


if __name__ == "__main__":
    sys.exit(main())
