#!/usr/bin/env python3
"""How fast ppmodel is on this computer, side by side with other programs in the same minutes.

    jobs/benchmark.py --peers DIR [--python PYTHON]     training, against PyTorch
    jobs/benchmark.py --bf16 [--peers DIR]              training in bf16, against float32 (and PyTorch's autocast)
    jobs/benchmark.py --checkpoint [--folder DIR]       writing and reading checkpoints, against dd
    jobs/benchmark.py --overlap                         how much of the transfers is hidden behind computation

DIR holds two PyTorch programs that train the same models: torch_gpt.py in one process, torch_pipeline.py in a pipeline
of two. Each takes --size, --steps and --dtype and prints one line of JSON with tokens_per_s, the median after two
steps, and peak_rss_mib. Ours and theirs take turns, so that a computer that slows down does so for both: compare
figures of one run only, on a computer that does nothing else. Needs Python's h5py and numpy.
"""
import argparse
import collections
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WARM_UP = 2  # steps that do not count
PIPELINE = 2  # ranks

Shape = collections.namedtuple("Shape", "layers hidden heads sequence vocabulary microbatch_size microbatches")
SIZES = {
    "S": Shape(4, 256, 4, 256, 256, 4, 8),
    "W": Shape(8, 512, 8, 256, 8192, 4, 8),
    "M": Shape(12, 768, 12, 256, 50304, 1, 4),  # GPT-2 with 124 million parameters
}
COMPUTATIONS = ("FORWARD", "BACKWARD", "BACKWARD_INPUT", "BACKWARD_WEIGHT")  # in a trace
MESSAGES = Shape(4, 512, 8, 256, 256, 8, 8)  # of 4 MiB between its stages

Mode = collections.namedtuple("Mode", "name ranks threads peer")
MODES = (Mode("1 process x 2 threads", 1, 2, "torch_gpt.py"),
         Mode("2 pipeline ranks x 1 thread", PIPELINE, 1, "torch_pipeline.py"))

# Runs one rank and tells its largest memory, in KiB.
RANK = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], close_fds=False)
sys.stderr.write(f"largest memory {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}\\n")
sys.exit(code)"""


def environment():
    """This one's, without what would set threads or choose another processor's kernels."""
    unwanted = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict({name: value for name, value in os.environ.items() if name not in unwanted},
                PYTHONDONTWRITEBYTECODE="1")


def run(command):
    """Standard output and error of a program that must succeed."""
    done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout, done.stderr


def timed_lines(command):
    """{first word: seconds since the start} of the last line that begins with that word; '' for empty lines."""
    begin, seconds = time.monotonic(), {}
    with subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            seconds[line.split(maxsplit=1)[0] if line.strip() else ""] = time.monotonic() - begin
        errors = process.stderr.read()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{errors}")
    return seconds


class Program:
    """ppmodel of a build folder, and the launcher that it was built for."""

    def __init__(self, build):
        self.path = os.path.join(build, "ppmodel")
        self.checkpoint_speed = os.path.join(build, "tests", "checkpoint_speed")
        if not os.access(self.path, os.X_OK):
            sys.exit(f"no {self.path}: build it first, by jobs/setup.sh")
        self.launcher = [shutil.which("mpiexec.mpich") or "mpiexec", "-n"]
        makefile = os.path.join(build, "Makefile")
        if os.path.exists(makefile):
            with open(makefile, encoding="utf-8") as file:
                variables = dict(re.findall(r"^(MPIEXEC(?:_NP)?) = (.*)$", file.read(), re.MULTILINE))
            self.launcher = f"{variables['MPIEXEC']} {variables['MPIEXEC_NP']}".split()

    def launch(self, ranks):
        """One rank needs no launcher, which might give it one core only."""
        return [*self.launcher, str(ranks)] if ranks > 1 else []

    def command(self, folder, ranks, *overrides):
        return [*self.launch(ranks), self.path, os.path.join(folder, "in.nml"), *overrides]

    def check_cores(self, ranks, threads):
        """The cores that each rank may use; ends the benchmark where ranks would have to share one."""
        script = "import os, sys; sys.stdout.write(f'{sorted(os.sched_getaffinity(0))}\\n')"
        out, _ = run([*self.launch(ranks), sys.executable, "-c", script])
        cores = [set(json.loads(line)) for line in out.splitlines()]
        if len(cores) != ranks or len(set.union(*cores)) < ranks * threads or any(len(own) < threads for own in cores):
            sys.exit(f"{ranks} ranks of {threads} threads would have to share the cores {cores}")
        return cores


def prepare(folder, shape, steps, mode, tied, more=""):
    """The namelist in.nml and its dataset: random tokens, the low numbers more often than the high ones."""
    tokens = (steps + 1) * shape.microbatches * shape.microbatch_size * shape.sequence + 1
    draw = np.random.default_rng(1234).random(tokens)
    with h5py.File(os.path.join(folder, "tokens.h5"), "w") as file:
        file["tokens"] = np.minimum(draw**3 * shape.vocabulary, shape.vocabulary - 1).astype(np.uint16)
        file.attrs.update(format="ppmodel-dataset", version=1, vocabulary=shape.vocabulary, tokenizer="none")
    with open(os.path.join(folder, "in.nml"), "w", encoding="utf-8") as file:
        file.write(f"""&run steps = {steps}  threads = {mode.threads}  device = 'cpu'  output = '{folder}' /
&model layers = {shape.layers}  hidden = {shape.hidden}  heads = {shape.heads}  sequence = {shape.sequence}
       vocabulary = {shape.vocabulary}  tied_embeddings = {'.true.' if tied else '.false.'} /
&grid pipeline = {mode.ranks} /
&pipeline schedule = '1f1b'  microbatches = {shape.microbatches}  microbatch_size = {shape.microbatch_size} /
&data train = '{folder}/tokens.h5' /
&optimizer learning_rate = 6e-4  min_learning_rate = 6e-4  decay = 'constant'  clip_norm = 1.0 /
{more}
""")


def model_flops(shape):
    """Of one token: 6 for each weight of a matrix product, and attention in full, not only its causal half."""
    weights = 12 * shape.layers * shape.hidden**2 + shape.vocabulary * shape.hidden
    return 6 * weights + 12 * shape.layers * shape.hidden * shape.sequence


Result = collections.namedtuple("Result", "tokens_per_second mib bubble")


def train(program, shape, mode, steps, precision="fp32"):
    """One run of ours. Memory is the sum of all ranks' largest."""
    with tempfile.TemporaryDirectory(prefix="ppmodel-benchmark-") as folder:
        prepare(folder, shape, steps, mode, tied=mode.ranks == 1)
        own = program.command(folder, mode.ranks, f"run.precision={precision}")
        place = own.index(program.path)
        _, errors = run([*own[:place], sys.executable, "-c", RANK, *own[place:]])
        with open(os.path.join(folder, "metrics.jsonl"), encoding="ascii") as file:
            counted = [json.loads(line) for line in file][WARM_UP:]
    tokens = shape.microbatches * shape.microbatch_size * shape.sequence
    return Result(tokens / statistics.median(step["seconds"] for step in counted),
                  sum(map(int, re.findall(r"largest memory (\d+)", errors))) / 1024,
                  statistics.median(step["bubble"] for step in counted))


def train_peer(options, size, mode, precision="fp32"):
    """One run of theirs."""
    out, _ = run([options.python, os.path.join(options.peers, mode.peer), "--size", size, "--steps",
                  str(options.steps), "--threads", str(mode.threads), "--dtype", precision])
    report = json.loads(out.strip().splitlines()[-1])
    return Result(report["tokens_per_s"], sum(report["peak_rss_mib"]), None)


def compare_training(program, options):
    for mode in MODES:
        print(f"{mode.name}: the ranks may use the cores {program.check_cores(mode.ranks, mode.threads)}")
    print(f"\n{'':32}{'tokens/s':^22}{'ratio':^{8 + 7 * options.rounds}}{'MiB, all ranks':^16}"
          f"{'model GFLOP/s':^16}{'bubble':^16}")
    print(f"{'size  mode':32}{'ours':>10}{'theirs':>10}  {'rounds':>{7 * options.rounds}}{'median':>8}"
          f"{'ours':>8}{'theirs':>8}{'ours':>8}{'theirs':>8}{'measured':>10}{'1f1b':>6}")
    for size in options.sizes.split(","):
        shape = SIZES[size]
        for mode in MODES:
            ours, theirs = [], []
            for number in range(options.rounds):
                for is_ours in (True, False) if number % 2 == 0 else (False, True):
                    if is_ours:
                        ours.append(train(program, shape, mode, options.steps))
                    else:
                        theirs.append(train_peer(options, size, mode))
            show_training(size, shape, mode, ours, theirs)


def show_training(size, shape, mode, ours, theirs):
    def median(results, name):
        return statistics.median(getattr(result, name) for result in results)

    ratios = [a.tokens_per_second / b.tokens_per_second for a, b in zip(ours, theirs)]
    speeds = [median(results, "tokens_per_second") for results in (ours, theirs)]
    bubble = f"{'-':>10}{'-':>6}"
    if mode.ranks > 1:
        ideal = (mode.ranks - 1) / (shape.microbatches + mode.ranks - 1)
        bubble = f"{median(ours, 'bubble'):10.3f}{ideal:6.3f}"
    print(f"{size:6}{mode.name:26}{speeds[0]:10.0f}{speeds[1]:10.0f}  "
          + "".join(f"{ratio:7.2f}" for ratio in ratios) + f"{statistics.median(ratios):8.2f}"
          + f"{median(ours, 'mib'):8.0f}{median(theirs, 'mib'):8.0f}"
          + "".join(f"{speed * model_flops(shape) / 1e9:8.1f}" for speed in speeds) + bubble, flush=True)


def compare_precision(program, options):
    """Ours in bf16, ours in float32 and, where they are, theirs in bf16, in turn."""
    print(f"\n{'size  mode':32}{'bf16':>10}{'fp32':>10}{'ratio':>8}{'MiB bf16':>10}{'fp32':>8}"
          f"{'theirs bf16':>13}{'ratio':>8}")
    for size in options.sizes.split(","):
        for mode in MODES:
            rounds = []
            for _ in range(options.rounds):
                rounds.append([train(program, SIZES[size], mode, options.steps, "bf16"),
                               train(program, SIZES[size], mode, options.steps)]
                              + ([train_peer(options, size, mode, "bf16")] if options.peers else []))
            bf16, float32, *theirs = ([result.tokens_per_second for result in column] for column in zip(*rounds))
            memory = [statistics.median(result.mib for result in column) for column in list(zip(*rounds))[:2]]
            line = (f"{size:6}{mode.name:26}{statistics.median(bf16):10.0f}{statistics.median(float32):10.0f}"
                    f"{statistics.median(a / b for a, b in zip(bf16, float32)):8.2f}{memory[0]:10.0f}{memory[1]:8.0f}")
            for column in theirs:
                line += (f"{statistics.median(column):13.0f}"
                         f"{statistics.median(a / b for a, b in zip(bf16, column)):8.2f}")
            print(line, flush=True)


def dd(path, size, *options):
    """Seconds to write a file of that many bytes, flushed to disk; None where the file system refuses."""
    os.sync()
    begin = time.monotonic()
    done = subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=8M", f"count={size}", "iflag=count_bytes",
                           "conv=fsync", *options], capture_output=True)
    seconds = time.monotonic() - begin
    os.unlink(path)
    return seconds if done.returncode == 0 else None


def measure_checkpoint(program, folder):
    """{what: seconds} of one round, and the bytes of a checkpoint.

    The program's own writing goes from the line of its only step to the summary. tests/checkpoint_speed writes and
    reads as much, in fewer tensors.
    """
    path = os.path.join(folder, "step-00000001.h5")
    os.sync()
    lines = timed_lines(program.command(folder, PIPELINE, f"checkpoint.directory={folder}"))
    size = os.path.getsize(path)
    os.unlink(path)
    os.sync()
    notes, _ = run([*program.launch(PIPELINE), program.checkpoint_speed, str(size / 1e9), folder])
    test = {what: float(seconds) for what, seconds in re.findall(r"^# checkpoint: (\w+).* in +([\d.]+) s:", notes,
                                                                 re.MULTILINE)}
    return {"ppmodel, written": lines[""] - lines["step"], "checkpoint_speed, written": test["written"],
            "checkpoint_speed, read": test["read"], "dd conv=fsync": dd(path, size),
            "dd oflag=direct conv=fsync": dd(path, size, "oflag=direct")}, size


def compare_checkpoint(program, options):
    if not os.access(program.checkpoint_speed, os.X_OK):
        sys.exit(f"no {program.checkpoint_speed}: build it first, by make -C {options.build} tests/checkpoint_speed")
    rounds = []
    with tempfile.TemporaryDirectory(prefix="ppmodel-benchmark-", dir=options.folder) as folder:
        prepare(folder, SIZES["M"]._replace(microbatches=PIPELINE), 1, MODES[1], tied=True)
        for _ in range(options.rounds):
            seconds, size = measure_checkpoint(program, folder)
            rounds.append(seconds)
    print(f"\ncheckpoint of {size / 1e9:.2f} GB, {PIPELINE} ranks, in {options.folder}; GB/s\n"
          f"{'':32}{'rounds':>{7 * options.rounds}}{'median':>8}")
    for what in rounds[0]:
        if any(seconds[what] is None for seconds in rounds):
            print(f"{what:32}not possible on this file system")
            continue
        speeds = [size / 1e9 / seconds[what] for seconds in rounds]
        print(f"{what:32}" + "".join(f"{speed:7.2f}" for speed in speeds) + f"{statistics.median(speeds):8.2f}")


def union(spans):
    """The same time as spans that do not touch, in order."""
    merged = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return merged


def hidden_share(events):
    """{(rank, message): (number, bytes of one, seconds under way, share of it while that rank computed)}"""
    lanes = {(event["pid"], event["tid"]): event["args"]["name"] for event in events
             if event["name"] == "thread_name"}
    compute, sends = collections.defaultdict(list), collections.defaultdict(list)
    for event in (event for event in events if event["ph"] == "X"):
        lane, span = lanes[event["pid"], event["tid"]], (event["ts"], event["ts"] + event["dur"])
        if event["name"] in COMPUTATIONS:
            compute[event["pid"]].append(span)
        elif lane.startswith("send"):
            sends[event["pid"], event["name"]].append((*span, event["args"]["bytes"]))
    shares = {}
    for (rank, message), spans in sorted(sends.items()):
        busy = union(compute[rank])
        hidden = sum(max(0, min(end, done) - max(begin, start)) for begin, end, _ in spans for start, done in busy)
        total = sum(end - begin for begin, end, _ in spans)
        shares[rank, message] = len(spans), spans[0][2], total / 1e6, hidden / total
    return shares


def measure_overlap(program, options):
    with tempfile.TemporaryDirectory(prefix="ppmodel-benchmark-") as folder:
        prepare(folder, MESSAGES, options.steps, MODES[1], tied=False,
                more=f"&trace first_step = {WARM_UP + 1}  last_step = {options.steps} /")
        run(program.command(folder, PIPELINE))
        with open(os.path.join(folder, "trace.json"), encoding="utf-8") as file:
            shares = hidden_share(json.load(file)["traceEvents"])
    print(f"\ntransfers of {options.steps - WARM_UP} steps on {PIPELINE} pipeline ranks (1f1b), "
          f"from send to completion\n"
          f"{'':32}{'number':>8}{'MiB each':>10}{'seconds':>10}{'hidden behind computation':>27}")
    for (rank, message), (number, size, seconds, share) in shares.items():
        print(f"rank {rank} {message:25}{number:8}{size / 2**20:10.2f}{seconds:10.3f}{share:27.1%}")
    total = sum(seconds for _, _, seconds, _ in shares.values())
    hidden = sum(seconds * share for _, _, seconds, share in shares.values())
    print(f"{'all':32}{sum(number for number, *_ in shares.values()):8}{'':10}{total:10.3f}{hidden / total:27.1%}")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="DIR", help="folder of torch_gpt.py and torch_pipeline.py")
    parser.add_argument("--python", default="python3", help="a Python that has torch (default: python3)")
    parser.add_argument("--sizes", default="S,W,M", help=f"of {', '.join(SIZES)} (default: S,W,M)")
    parser.add_argument("--rounds", type=int, default=3, help="times that ours and theirs run in turn (default: 3)")
    parser.add_argument("--steps", type=int, default=6, help=f"of each run, {WARM_UP} of them to warm up (default: 6)")
    parser.add_argument("--build", default=os.path.join(TOP, "build"), help="build folder (default: build)")
    parser.add_argument("--bf16", action="store_true", help="compare bf16 with float32")
    parser.add_argument("--checkpoint", action="store_true", help="measure checkpoints")
    parser.add_argument("--folder", default=".", help="where checkpoints are written (default: here)")
    parser.add_argument("--overlap", action="store_true", help="measure how transfers overlap with computation")
    options = parser.parse_args()
    if not (options.peers or options.bf16 or options.checkpoint or options.overlap):
        parser.error("nothing to do: give --peers, --bf16, --checkpoint or --overlap")
    if unknown := set(options.sizes.split(",")) - SIZES.keys():
        parser.error(f"--sizes: no size {', '.join(sorted(unknown))}, only {', '.join(SIZES)}")
    if options.steps <= WARM_UP or options.rounds < 1:
        parser.error(f"at least {WARM_UP + 1} steps and 1 round")
    return options


def main():
    options = parse_options()
    program = Program(os.path.abspath(options.build))
    program.check_cores(PIPELINE, 1)
    print(subprocess.run([program.path, "--version"], env=environment(), capture_output=True, text=True).stdout)
    if options.bf16:
        compare_precision(program, options)
    elif options.peers:
        compare_training(program, options)
    if options.checkpoint:
        compare_checkpoint(program, options)
    if options.overlap:
        measure_overlap(program, options)


if __name__ == "__main__":
    main()
