#!/usr/bin/env python3
"""Runs a study of how training scales, and compares it with the plan:

    jobs/study.py STUDY.ini

Runs the points of the study that are not done yet, here or by sbatch, and asks the planner about each. Writes into the
study's output folder what is known so far: study.csv, and study.png and study.svg where Python has matplotlib. Run it
again when queued points have ended, or after a change: points that are done and still the same are left alone.

A study is an INI file. Paths are relative to the folder in which the command is run.

    [study]
    axis = strong                  what the points are; see below
    points = 1x1x1 2x1x1           separated by blanks
    input = input/quickstart.nml   the namelist that they share
    output = run/studies/strong    folder for everything
    threads = 1                    of each rank
    global_batch = 64              sequences of a step; of a step and rank for axis = weak
    grid = 2x1x1                   pipeline x data x tensor; for the axes that do not vary it
    machine = bench                what the plan goes by: measured once, the name of a preset, a machine.nml, or none
    warm_up = 3                    first steps that do not count
    text = README.md src/*/*.c     pack these files as dataset (default: the one in the input)
    program = build/ppmodel        what is run
    launcher = slurm               default: local, by the mpiexec of the build
    [settings]
    run.steps = 13                 group.key = value for all points
    [slurm]
    ranks_per_node = 8
    cores_per_node = 128
    sbatch = --partition=cpu --time=0:20:00 --exclusive
    srun = --mpi=pmi2 --cpu-bind=cores

| axis | a point | compared are |
| strong | a grid, 4x2x1 | grids of more and more ranks, the batch of a step stays |
| weak | a grid | the batch grows with the number of ranks |
| microbatches | a number | more microbatches of the same size on one grid |
| pipeline-tensor | a grid | grids of the same number of ranks |
| schedules | a name, or name:chunks | schedules on one grid |

Figures are medians over the steps after warm_up. A point whose ranks have more threads than a node has cores is marked:
its ranks wait for each other, and its times say nothing about scaling.
"""
import argparse
import configparser
import csv
import glob
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys

AXES = ("strong", "weak", "microbatches", "pipeline-tensor", "schedules")
KEYS = {"study": ("axis", "points", "input", "output", "threads", "global_batch", "grid", "machine", "warm_up", "text",
                  "program", "launcher"),
        "settings": None, "slurm": ("ranks_per_node", "cores_per_node", "sbatch", "srun")}
COLUMNS = ("point", "ranks", "threads", "oversubscribed", "pipeline", "data", "tensor", "schedule", "chunks",
           "microbatches", "microbatch_size", "steps", "step_seconds", "planned_step_seconds", "tokens_per_second",
           "planned_tokens_per_second", "speedup", "planned_speedup", "ideal_speedup", "efficiency",
           "planned_efficiency", "bubble", "planned_bubble", "bubble_1f1b", "memory_bytes", "planned_memory_bytes")


def grid_of(text):
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not match:
        sys.exit(f"{text} is no grid: write pipeline x data x tensor as 4x2x1")
    return tuple(map(int, match.groups()))


class Study:
    """What the file says, checked."""

    def __init__(self, path):
        self.file = configparser.ConfigParser(inline_comment_prefixes=("!",), interpolation=None)
        try:
            with open(path, encoding="utf-8") as file:
                self.file.read_file(file)
        except (OSError, configparser.Error) as error:
            sys.exit(f"{path}: {error}")
        for section in self.file.sections():
            if section not in KEYS:
                sys.exit(f"{path}: unknown section [{section}]; there are {', '.join(KEYS)}")
            for key in self.file[section]:
                if KEYS[section] and key not in KEYS[section]:
                    sys.exit(f"{path}: unknown key {key} in [{section}]; there are {', '.join(KEYS[section])}")
        self.path = path
        self.axis = self.get("axis")
        if self.axis not in AXES:
            sys.exit(f"{path}: axis = {self.axis}; there are {', '.join(AXES)}")
        self.input, self.output = self.get("input"), self.get("output")
        self.threads, self.warm_up = self.number("threads", "1"), self.number("warm_up", "3")
        self.machine, self.program = self.get("machine", "bench"), os.path.abspath(self.get("program", "build/ppmodel"))
        self.is_local = self.get("launcher", "local") == "local"
        self.settings = dict(self.file["settings"]) if "settings" in self.file else {}
        if self.is_local:
            self.cores, self.ranks_per_node = len(os.sched_getaffinity(0)), 1 << 30
        else:
            self.cores = self.number("cores_per_node", section="slurm")
            self.ranks_per_node = self.number("ranks_per_node", section="slurm")
        names = self.get("points").split()
        if len(set(names)) != len(names):
            sys.exit(f"{path}: a point is given twice")
        self.points = [Point(self, name) for name in names]

    def get(self, key, default=None, section="study"):
        value = self.file.get(section, key, fallback=default)
        if value is None:
            sys.exit(f"{self.path}: [{section}] needs {key}; see jobs/study.py --help")
        return value

    def number(self, key, default=None, section="study"):
        value = self.get(key, default, section)
        if not value.isdigit():
            sys.exit(f"{self.path}: {key} = {value} is no number")
        return int(value)

    def words(self, **more):
        """Overrides of all points, then of one run."""
        values = {**self.settings, "run.threads": self.threads, **{key.replace("__", "."): value
                                                                  for key, value in more.items()}}
        if self.file.has_option("study", "text"):
            values["data.train"] = os.path.join(self.output, "corpus.h5")
        return [f"{key}={value}" for key, value in values.items()]

    def pack(self):
        """The dataset of the given texts, where it is not there yet."""
        path = os.path.join(self.output, "corpus.h5")
        if not self.file.has_option("study", "text") or os.path.exists(path):
            return
        files = sorted(name for pattern in self.get("text").split() for name in glob.glob(pattern))
        if not files:
            sys.exit(f"{self.path}: text = {self.get('text')}: there is no such file")
        must_run([os.path.join(os.path.dirname(self.program), "ppmodel-pack"), "-o", path, *files])

    def launch(self, ranks):
        """The words before the program."""
        if not self.is_local:
            return ["srun", "--kill-on-bad-exit=1", "--distribution=block:block", f"--ntasks={ranks}",
                    f"--cpus-per-task={self.threads}", *self.get("srun", "", "slurm").split()]
        launcher = [shutil.which("mpiexec.mpich") or "mpiexec", "-n"]
        makefile = os.path.join(os.path.dirname(self.program), "Makefile")
        if os.path.exists(makefile):
            with open(makefile, encoding="utf-8") as file:
                variables = dict(re.findall(r"^(MPIEXEC(?:_NP)?) = (.*)$", file.read(), re.MULTILINE))
            launcher = f"{variables['MPIEXEC']} {variables['MPIEXEC_NP']}".split()
        return [*launcher, str(ranks)] if ranks > 1 else []

    def start(self, folder, ranks, command):
        """Runs a command here, or puts it into the queue; whether it is over, and well."""
        log = os.path.join(folder, "output.txt")
        if self.is_local:
            with open(log, "w", encoding="utf-8") as file:
                return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file).returncode == 0
        nodes = math.ceil(ranks / self.ranks_per_node)
        job = must_run(["sbatch", "--parsable", f"--nodes={nodes}", f"--ntasks={ranks}", "--job-name=ppmodel-study",
                        f"--cpus-per-task={self.threads}", f"--output={log}",
                        *self.get("sbatch", "", "slurm").split(), "--wrap", " ".join(map(shell_word, command))])
        with open(os.path.join(folder, "job"), "w", encoding="ascii") as file:
            file.write(job.strip().split(";")[0])
        return False

    def is_queued(self, folder):
        """Whether its job waits or runs."""
        path = os.path.join(folder, "job")
        if self.is_local or not os.path.exists(path):
            return False
        with open(path, encoding="ascii") as file:
            done = subprocess.run(["squeue", "--noheader", "--format=%T", f"--jobs={file.read()}"],
                                  capture_output=True, text=True)
        return done.returncode == 0 and done.stdout.strip() != ""

    def is_crowded(self, ranks):
        return min(ranks, self.ranks_per_node) * self.threads > self.cores

    def measure_machine(self):
        """Overrides that tell the planner of the machine; None while it is being measured."""
        if self.machine == "none":
            return []
        if self.machine != "bench":
            return [f"machine.preset={self.machine}"]
        folder = os.path.join(self.output, "bench")
        path = os.path.join(folder, "machine.nml")
        if not os.path.exists(path):
            if self.is_queued(folder):
                return None
            point = max((point for point in self.points if not self.is_crowded(point.ranks)
                         and point.ranks <= self.ranks_per_node), key=lambda point: point.ranks, default=None)
            if point is None:
                sys.exit(f"{self.path}: no point fits on a node to measure the machine there; give another machine")
            os.makedirs(folder, exist_ok=True)
            print(f"bench: {point.ranks} ranks of {self.threads} threads", flush=True)
            if not self.start(folder, point.ranks, [*self.launch(point.ranks), self.program, self.input, *point.words,
                                                    "run.mode=bench", f"run.output={folder}"]) and self.is_local:
                sys.exit(f"the bench failed: see {folder}/output.txt")
        return [f"machine.preset={path}"] if os.path.exists(path) else None


class Point:
    """One configuration: what it overrides, and what is known of it."""

    def __init__(self, study, name):
        self.study, self.name = study, name
        self.folder = os.path.join(study.output, name.replace(":", "-"))
        values = {"pipeline__microbatches": 0}
        varies = study.axis in ("strong", "weak", "pipeline-tensor")
        grid = grid_of(name if varies else study.get("grid"))
        self.ranks = math.prod(grid)
        if varies:
            batch = study.number("global_batch")
            values["pipeline__global_batch"] = batch * self.ranks if study.axis == "weak" else batch
        elif study.axis == "microbatches":
            if not name.isdigit():
                sys.exit(f"{study.path}: point {name} is no number of microbatches")
            values.update(pipeline__microbatches=name, pipeline__global_batch=0)
        else:
            schedule, _, chunks = name.partition(":")
            values = {"pipeline__schedule": schedule, "pipeline__chunks": chunks or 1}
        values.update(grid__pipeline=grid[0], grid__data=grid[1], grid__tensor=grid[2])
        self.words = study.words(**values)
        self.plan = None

    def command(self, *more):
        return [self.study.program, self.study.input, *self.words, f"run.output={self.folder}",
                "checkpoint.every=0", "trace.first_step=0", *more]

    def metrics(self):
        path = os.path.join(self.folder, "metrics.jsonl")
        if not os.path.exists(path):
            return []
        with open(path, encoding="utf-8") as file:
            return [line for line in map(json.loads, file) if "seconds" in line]

    def is_done(self):
        """Whether it ran to its end, just as it is now."""
        path = os.path.join(self.folder, "done.json")
        if not os.path.exists(path) and not self.study.is_local:  # a job leaves only what the program writes
            self.note_done()
        if not os.path.exists(path):
            return False
        with open(path, encoding="utf-8") as file:
            return json.load(file) == self.words

    def note_done(self):
        """After its end: the metrics go up to the last step."""
        path = os.path.join(self.folder, "resolved.nml")
        started = os.path.join(self.folder, "started.json")
        if not os.path.exists(path) or not os.path.exists(started):
            return
        with open(path, encoding="utf-8") as file:
            steps = re.search(r"^\s*steps\s*=\s*(\d+)", file.read(), re.MULTILINE)
        metrics = self.metrics()
        if metrics and steps and metrics[-1]["step"] == int(steps[1]):
            os.rename(started, os.path.join(self.folder, "done.json"))

    def last_words(self):
        """The last line of a job that ended too early, '' for none."""
        path = os.path.join(self.folder, "output.txt")
        if not os.path.exists(os.path.join(self.folder, "started.json")) or not os.path.exists(path):
            return ""
        with open(path, encoding="utf-8", errors="replace") as file:
            return next((line.strip() for line in reversed(file.readlines()) if line.strip()), "")

    def run(self):
        """Runs it unless it is done; returns what became of it."""
        if self.is_done():
            return "done before"
        if self.study.is_queued(self.folder):
            return "in the queue"
        lost = self.last_words()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        with open(os.path.join(self.folder, "started.json"), "w", encoding="utf-8") as file:
            json.dump(self.words, file)
        good = self.study.start(self.folder, self.ranks, [*self.study.launch(self.ranks), *self.command()])
        if not self.study.is_local:
            return f"submitted again; it had ended with: {lost}" if lost else "submitted"
        if good:
            self.note_done()
        return "done" if self.is_done() else f"failed: see {self.folder}/output.txt"

    def predict(self, machine):
        """Asks the planner, on this computer."""
        folder = os.path.join(self.folder, "plan")
        done = subprocess.run([self.study.program, self.study.input, *self.words, "run.mode=plan",
                               f"run.output={folder}", *machine], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True)
        if done.returncode != 0:
            print(f"{self.name}: no plan: {done.stderr.strip()}")
            return
        with open(os.path.join(folder, "plan.json"), encoding="utf-8") as file:
            plan = json.load(file)
        self.plan = plan["candidates"][0]
        if not plan["times_known"]:
            self.plan.update(step_seconds=None, tokens_per_second=None)

    def row(self):
        """What the table says of it."""
        study, plan = self.study, self.plan or {}
        counted = self.metrics()[study.warm_up:] if self.is_done() else []
        row = {"point": self.name, "ranks": self.ranks, "threads": study.threads, "steps": len(counted),
               "oversubscribed": "yes" if study.is_crowded(self.ranks) else "no"}
        row.update({key: plan.get(key) for key in ("pipeline", "data", "tensor", "schedule", "chunks", "microbatches",
                                                   "microbatch_size")})
        row.update(planned_step_seconds=plan.get("step_seconds"), planned_bubble=plan.get("bubble"),
                   planned_tokens_per_second=plan.get("tokens_per_second"),
                   planned_memory_bytes=plan.get("peak_memory_bytes"))
        if plan:
            row["bubble_1f1b"] = (plan["pipeline"] - 1) / (plan["microbatches"] + plan["pipeline"] - 1)
        if counted:
            row.update(step_seconds=statistics.median(step["seconds"] for step in counted),
                       tokens_per_second=statistics.median(step["tokens_per_second"] for step in counted),
                       bubble=statistics.median(step["bubble"] for step in counted),
                       memory_bytes=max(step["peak_memory_bytes"] for step in counted))
        return row


def must_run(command):
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def shell_word(word):
    return "'" + word.replace("'", "'\\''") + "'"


def compare(rows):
    """Adds speed-ups over the first point, and what of the ideal they are."""
    for prefix in ("", "planned_"):
        first = next((row for row in rows if row.get(f"{prefix}tokens_per_second")), None)
        for row in rows:
            row["ideal_speedup"] = row["ranks"] / rows[0]["ranks"]
            if first and row.get(f"{prefix}tokens_per_second"):
                speedup = row[f"{prefix}tokens_per_second"] / first[f"{prefix}tokens_per_second"]
                row[f"{prefix}speedup"] = speedup * first["ranks"] / rows[0]["ranks"]
                row[f"{prefix}efficiency"] = speedup * first["ranks"] / row["ranks"]


def show(rows):
    """The table for people: measured, planned."""
    def pair(row, key, form, scale=1.0):
        values = [row.get(name) for name in (key, f"planned_{key}")]
        return "".join(f"{format(value * scale, form):>9}" if value is not None else f"{'-':>9}" for value in values)

    titles = "".join(f"{title:^18}" for title in ("step, ms", "speed-up", "efficiency", "bubble"))
    both = f"{'measured':>9}{'planned':>9}"
    print(f"\n{'point':16}{'ranks':>6}{'M':>5}{titles}{'1f1b':>7}{'MiB a rank':^18}".rstrip()
          + f"\n{'':27}{both * 4}{'':7}{both}")
    for row in rows:
        mark = " *" if row["oversubscribed"] == "yes" else ""
        ideal = row.get("bubble_1f1b")
        print(f"{row['point'] + mark:16}{row['ranks']:6}{row['microbatches'] or '-':>5}"
              f"{pair(row, 'step_seconds', '.1f', 1e3)}{pair(row, 'speedup', '.2f')}{pair(row, 'efficiency', '.2f')}"
              f"{pair(row, 'bubble', '.3f')}{'-' if ideal is None else format(ideal, '.3f'):>7}"
              f"{pair(row, 'memory_bytes', '.0f', 2**-20)}")
    if any(row["oversubscribed"] == "yes" for row in rows):
        print("* more threads than the node has cores: ranks wait for each other")


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"written {path}")


def draw(study, rows):
    """study.png and study.svg, where that is possible."""
    try:
        import matplotlib  # noqa: only here, so that everything else works without it
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no plots: this Python has no matplotlib (pip install matplotlib)")
        return
    places = range(len(rows))
    figure, panels = pyplot.subplots(2, 2, figsize=(11, 8), constrained_layout=True)
    figure.suptitle(f"{os.path.basename(study.path)}: {study.axis}, {study.threads} thread(s) a rank")
    for panel, title, key, other, scale in (
            (panels[0, 0], "speed-up over the first point", "speedup", ("ideal_speedup", "ideal"), 1),
            (panels[0, 1], "efficiency: speed-up / ranks", "efficiency", None, 1),
            (panels[1, 0], "bubble", "bubble", ("bubble_1f1b", "(P-1)/(M+P-1)"), 1),
            (panels[1, 1], "memory of the fullest rank, MiB", "memory_bytes", None, 2**-20)):
        lines = [(key, "measured", "C0-"), (f"planned_{key}", "planned", "C1--")]
        for name, label, style in lines + ([(*other, "C7:")] if other else []):
            values = [row[name] * scale if row.get(name) is not None else math.nan for row in rows]
            panel.plot(places, values, style, label=label)
            for place, row, value in zip(places, rows, values):
                crowded = row["oversubscribed"] == "yes"
                panel.plot(place, value, "o", color=style[:2], markerfacecolor="white" if crowded else style[:2])
        if key == "efficiency":
            panel.axhline(1, color="C7", linestyle=":", label="ideal")
        panel.set_title(title)
        panel.set_xticks(places, [row["point"] + (" *" if row["oversubscribed"] == "yes" else "") for row in rows])
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    if any(row["oversubscribed"] == "yes" for row in rows):
        figure.supxlabel("* and hollow: more threads than the node has cores, ranks wait for each other", fontsize=9)
    panels[0, 0].legend()
    panels[1, 0].legend()
    for ending in ("png", "svg"):
        path = os.path.join(study.output, f"study.{ending}")
        figure.savefig(path)
        print(f"written {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="the study, an INI file")
    study = Study(parser.parse_args().study)
    if not os.access(study.program, os.X_OK):
        sys.exit(f"no {study.program}: build it first, by jobs/setup.sh")
    os.makedirs(study.output, exist_ok=True)
    study.pack()
    machine = study.measure_machine()
    failed = False
    for number, point in enumerate(study.points, 1):
        crowded = ", oversubscribed" if study.is_crowded(point.ranks) else ""
        print(f"{number}/{len(study.points)} {point.name}: {point.ranks} ranks{crowded}: ", end="", flush=True)
        outcome = point.run()
        print(outcome, flush=True)
        failed = failed or outcome.startswith("failed")
        point.predict(machine or [])
    rows = [point.row() for point in study.points]
    compare(rows)
    show(rows)
    write_csv(os.path.join(study.output, "study.csv"), rows)
    draw(study, rows)
    if any(row["steps"] == 0 for row in rows):
        print("points without figures are queued or failed: run the same command again later")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
