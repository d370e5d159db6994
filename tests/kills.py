#!/usr/bin/env python3
"""Kills: ranks, and now and then the launcher, are killed at random moments, many of them within the writing of a
checkpoint, and the same training is started again until it is done, on other grids too. What comes out is what comes
out in one go, to the last bit; every file under a checkpoint's name is complete; nothing unfinished stays. TAP.

    tests/kills.py [KILLS [SEED]]     in a build folder; 8 kills, and 100 with PP_LONG=1
"""
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time

import tap
import tiny

PROGRAM = tap.program("ppmodel")
STEPS_PER_LIFE = 6  # at most; a life is from a start to a kill
LIFE_SECONDS = 60
DEATH_SECONDS = 10  # until no rank is left

# Ranks and overrides that give the same bits.
PIPELINES = [(1, []), (2, ["grid.pipeline=2"]), (2, ["grid.pipeline=2", "pipeline.schedule=zb-h1"]),
             (3, ["grid.pipeline=3", "pipeline.schedule=gpipe", "pipeline.recompute=full"])]
DATA = ["grid.data=2", "pipeline.microbatches=2"]
DATA_RANKS = [(2, DATA), (2, DATA + ["optimizer.sharded=true"])]


def processes(text):
    """The running processes that have this text in their command line, by number."""
    found = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
            with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
                is_gone = file.read().rsplit(")", 1)[1].split()[0] in "ZX"
        except OSError:
            continue  # ended meanwhile
        if not is_gone and text in words:
            found[int(process)] = words
    return found


class Training:
    """A training that is killed again and again. `name` is its output folder in `folder`."""

    def __init__(self, folder, name, steps, grids, every):
        self.folder, self.name, self.steps, self.grids = folder, name, steps, grids
        self.checkpoints = os.path.join(folder, name, "checkpoints")
        self.words = [f"run.steps={steps}", f"checkpoint.every={every}", "checkpoint.keep=2"]
        self.mark = f"run.output={os.path.join(folder, name)}"

    def ranks(self):
        """The processes of ranks."""
        return [process for process, words in processes(self.mark).items() if words[0] == PROGRAM]

    def names(self):
        return sorted(os.listdir(self.checkpoints)) if os.path.isdir(self.checkpoints) else []

    def newest(self):
        """The last step with a file under a checkpoint's name."""
        return max((int(name[5:13]) for name in self.names() if name.endswith(".h5")), default=0)

    def partial(self):
        """The unfinished files, as they are now: those of an earlier life stay until the next checkpoint is there."""
        found = set()
        for name in self.names():
            if name.endswith(".partial"):
                with contextlib.suppress(OSError):
                    state = os.stat(os.path.join(self.checkpoints, name))
                    found.add((name, state.st_ino, state.st_mtime_ns))
        return found

    def is_writing(self):
        return bool(self.partial() - self.left_behind)

    def start(self):
        self.left_behind = self.partial()
        ranks, words = random.choice(self.grids)
        launcher = os.environ.get("MPIEXEC", "mpiexec.mpich").split() + [os.environ.get("MPIEXEC_NP") or "-n"]
        return subprocess.Popen(
            [*launcher, str(ranks), PROGRAM, "in.nml", self.mark, f"checkpoint.directory={self.checkpoints}",
             *self.words, *words],
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"})

    def wait_for_moment(self, job):
        """Until the moment of the next kill, in the start-up, in training or while a checkpoint is written: the
        ranks."""
        end, kind = time.monotonic() + LIFE_SECONDS, random.choice(["start", "train", "write", "write"])
        if kind == "start":
            time.sleep(random.uniform(0, 0.6))
            return self.ranks()
        target = self.newest() + random.randint(0 if kind == "write" else 1, STEPS_PER_LIFE - 2)
        while self.newest() < target and job.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        ranks = self.ranks()  # looking for them takes longer than writing
        while kind == "write" and not self.is_writing() and job.poll() is None and time.monotonic() < end:
            pass
        time.sleep(random.uniform(0, 0.03 if kind == "train" else 0.004))
        return ranks

    def kill(self, job, ranks):
        """Kills a rank or the launcher; in the end no rank is left. Whether a checkpoint was being written."""
        whom = random.choice(ranks) if ranks and random.random() < 0.8 else job.pid
        try:
            os.kill(whom, signal.SIGKILL)
        except ProcessLookupError:
            pass
        writing = self.is_writing()
        self.errors = job.communicate()[1]
        end = time.monotonic() + DEATH_SECONDS
        while self.ranks() and time.monotonic() < end:
            time.sleep(0.01)
        return writing


def digest(path):
    """What --digest says of the whole file; None: it says that the file is damaged."""
    code, out, _ = tap.run(PROGRAM, "--digest", path)
    return next(line.split()[0] for line in out.splitlines() if line.endswith("whole file")) if code == 0 else None


def check(folder, name, kills, grids, every):
    steps = STEPS_PER_LIFE * kills + 5
    straight = tiny.train(folder, f"{name}-straight", *grids[0][:1], *grids[0][1], f"run.steps={steps}")
    training = Training(folder, name, steps, grids, every)
    writing, codes, left, damaged, missing = 0, set(), [], [], []
    for _ in range(kills):
        before = training.newest()
        job = training.start()
        writing += training.kill(job, training.wait_for_moment(job))
        codes.add(job.returncode)
        left += training.ranks()
        files = [file for file in training.names() if file.endswith(".h5")]
        damaged += [file for file in files if digest(os.path.join(training.checkpoints, file)) is None]
        if training.newest() < before:
            missing.append(before)
    tap.note(f"{name}: {kills} kills, {writing} while a checkpoint was written, at step {training.newest()} of {steps}")
    if not tap.ok(not codes & {0, 2, 3}, f"{name}: exit codes on which a job is started again"):
        tap.note(f"{codes}\n{training.errors}")
    tap.is_equal(left, [], f"{name}: no rank outlives its job")
    tap.is_equal(damaged, [], f"{name}: every checkpoint is complete after every kill")
    tap.is_equal(missing, [], f"{name}: no kill takes the newest checkpoint away")
    job = training.start()
    errors = job.communicate(timeout=250)[1]
    if not tap.ok(job.returncode == 0 and not errors, f"{name}: the last start ends well, without a warning"):
        tap.note(f"exit code {job.returncode}\n{errors}")
    found = tiny.Run(os.path.join(folder, name), job.returncode, "", errors)
    tap.ok(all(re.fullmatch(r"step-\d{8}\.h5", file) for file in training.names()) and len(training.names()) == 2,
           f"{name}: two checkpoints stay, and nothing unfinished")
    tap.ok(not [file for file in os.listdir(found.folder) if file.startswith("flight")], f"{name}: nor flight records")
    tap.is_equal(digest(found.checkpoint(steps)), digest(straight.checkpoint(steps)), f"{name}: the bits of one go")
    tap.is_equal([line["step"] for line in found.metrics()], list(range(1, steps + 1)),
                 f"{name}: a line for each step, once")
    tap.ok(found.metrics("loss") == straight.metrics("loss"), f"{name}: the losses of one go")


def main():
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100 if os.environ.get("PP_LONG") == "1" else 8
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
    random.seed(seed)
    tap.note(f"kills.py {kills} {seed}")
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        check(folder, "pipelines", kills - kills // 2, PIPELINES, 1)
        check(folder, "data ranks", kills // 2, DATA_RANKS, 2)
    tap.done()


main()
