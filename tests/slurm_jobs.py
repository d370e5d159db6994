#!/usr/bin/env python3
"""jobs/train.sbatch in a Slurm that this test starts and ends: cancelling, lost ranks and nodes. Whatever happens, the
job goes on from its newest checkpoint and ends with the weights of an uninterrupted run. TAP."""
import json
import os
import re
import signal
import subprocess
import time

import slurm_cluster
import tap
import tiny

PROGRAM = tap.program("ppmodel")
TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENDLESS = 1000000  # steps
MORE_STEPS = 5  # that a job still has to do once it goes on
START_SECONDS = 30  # a job trains, ends or starts again after this time at the latest
OPTIONS = ["--parsable", "--time=5", "--signal=USR1@5", "--oversubscribe", "--ntasks=2", "--output=job-%j.out"]

# Nothing here depends on `steps` but when the training ends: a run of n steps is the start of a longer one.
NAMELIST = tiny.NAMELIST.replace("min_learning_rate = 1e-4", "decay = 'constant'")


def wait_for(is_done, seconds=START_SECONDS):
    """Whether it is done within this time."""
    end = time.monotonic() + seconds
    while not (done := is_done()) and time.monotonic() < end:
        time.sleep(0.05)
    return done


class Job:
    """A training of two pipeline ranks in a folder of its own, under jobs/train.sbatch."""

    def __init__(self, folder, cluster, name, *options, program=PROGRAM, **environment):
        self.folder, self.cluster, self.name = folder, cluster, name
        self.run = tiny.Run(os.path.join(folder, name), None, "", "")
        self.variables = dict(PPMODEL=TOP, PROGRAM=program, **environment)
        self.set_steps(ENDLESS)
        self.submit(*options)

    def set_steps(self, steps):
        with open(os.path.join(self.folder, f"{self.name}.nml"), "w", encoding="ascii") as file:
            file.write(NAMELIST.replace("steps = 4", f"steps = {steps}"))

    def submit(self, *options):
        """Puts it into the queue, as a new job."""
        run = subprocess.run(["sbatch", *OPTIONS, *options, f"{TOP}/jobs/train.sbatch", self.name, f"{self.name}.nml",
                              "grid.pipeline=2", "checkpoint.every=3"], cwd=self.folder, capture_output=True, text=True,
                             env={**os.environ, **self.cluster.environment, **self.variables})
        self.number = run.stdout.strip()
        if not self.number:
            tap.note(run.stderr)

    def output(self):
        path = os.path.join(self.folder, f"job-{self.number}.out")
        if not os.path.exists(path):
            return ""
        with open(path, encoding="utf-8") as file:
            return file.read()

    def show(self, key):
        """What Slurm says of it."""
        found = re.search(rf"\b{key}=(\S+)", self.cluster.command("scontrol", "show", "job", self.number))
        return found[1] if found else ""

    def is_over(self):
        return self.show("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def restarts(self):
        return int(self.show("Restarts") or 0)

    def saved_step(self):
        """The step of the newest checkpoint, 0 for none."""
        steps = [int(name[5:13]) for name in self.run.checkpoints() if name.endswith(".h5")]
        return max(steps, default=0)

    def trains(self):
        """Waits until it has written a checkpoint in this attempt; its ranks' processes."""
        before = self.saved_step()
        wait_for(lambda: self.saved_step() > before)
        return self.cluster.ranks(PROGRAM)

    def goes_on(self, what):
        """Waits until Slurm starts it again, lets it train a few steps more to the end, and says so."""
        queued = wait_for(lambda: self.show("JobState") in ("PENDING", "COMPLETING") or self.restarts() > 0)
        last = self.saved_step() + MORE_STEPS
        self.set_steps(last)
        over = wait_for(self.is_over)
        state = self.show("JobState"), self.show("ExitCode"), self.restarts()
        if not tap.ok(queued and over and state == ("COMPLETED", "0:0", 1) and self.saved_step() == last,
                      f"{what}: started again, once, and trains to its end"):
            tap.note(f"{state}, step {self.saved_step()} of {last}\n{self.output()[-3000:]}")


def digest(job):
    """(step, digest of the weights) of its newest checkpoint."""
    step = job.saved_step()
    _, out, _ = tap.run(PROGRAM, "--digest", job.run.checkpoint(step))
    return step, next((line.split()[0] for line in out.splitlines() if line.split()[-1] == "/model"), out)


def check_cancelled(folder, cluster):
    job = Job(folder, cluster, "cancelled")
    job.trains()
    cluster.command("scancel", job.number)
    over = wait_for(job.is_over) and wait_for(lambda: not cluster.ranks(PROGRAM))
    said = wait_for(lambda: re.search(r"Stopped after step (\d+) of \d+ by a signal", job.output()))
    state = job.show("JobState"), job.restarts()
    if not tap.ok(over and said and state == ("CANCELLED", 0), "scancel: ends with a checkpoint, and for good"):
        tap.note(f"{state}\n{job.output()[-2000:]}")
    step = job.saved_step()
    tap.ok(said and step == int(said[1]) and not any(name.endswith(".partial") for name in job.run.checkpoints()),
           "scancel: of the step under way, and nothing unfinished is left")
    job.set_steps(step + MORE_STEPS)
    job.submit()
    wait_for(job.is_over)
    tap.ok(job.show("JobState") == "COMPLETED" and f"from step {step}\n" in job.output(), "submitted anew, it goes on")
    return job


def check_lost_rank(folder, cluster):
    job = Job(folder, cluster, "rank")
    ranks = job.trains()
    os.kill(ranks[1], signal.SIGKILL)
    job.goes_on("a rank killed")
    return job


def check_lost_daemon(folder, cluster):
    """Slurm's own process on the node that watches over the step: without it srun never hears of the ranks' end, and
    nobody ends a rank that waits for another."""
    job = Job(folder, cluster, "daemon", SILENCE="8")
    ranks = job.trains()
    os.kill(slurm_cluster.parent(ranks[0]), signal.SIGKILL)
    job.goes_on("slurmstepd killed")
    return job


def check_lost_node(folder, cluster):
    job = Job(folder, cluster, "node")
    job.trains()
    cluster.lose_node()
    job.goes_on("a node lost")
    return job


def check_for_good(folder, cluster):
    """The way to end a training that has a long checkpoint to write."""
    job = Job(folder, cluster, "good")
    job.trains()
    cluster.command("scontrol", "update", f"JobId={job.number}", "Requeue=0")
    cluster.command("scancel", "--signal=USR1", job.number)
    wait_for(job.is_over)
    state = job.show("JobState"), job.show("ExitCode"), job.restarts()
    if not tap.ok(state == ("FAILED", "75:0", 0) and wait_for(lambda: "Stopped after" in job.output()),
                  "not to be started again, a signal ends it for good"):
        tap.note(f"{state}\n{job.output()[-2000:]}")


def check_in_vain(folder, cluster):
    """A program that fails before it gets anywhere."""
    job = Job(folder, cluster, "vain", program="/bin/false", ATTEMPTS="2")
    wait_for(job.is_over)
    state = job.show("JobState"), job.show("ExitCode"), job.restarts()
    if not tap.ok(state == ("FAILED", "1:0", 1) and "started 2 times in a row without a new checkpoint" in job.output(),
                  "starts in vain come to an end"):
        tap.note(f"{state}\n{job.output()}")


def check_wrong_input(folder, cluster):
    job = Job(folder, cluster, "wrong", "--ntasks=1")
    wait_for(job.is_over)
    state = job.show("JobState"), job.show("ExitCode"), job.restarts()
    if not tap.ok(state == ("FAILED", "2:0", 0) and job.output().count("ppmodel: error:") == 1
                  and "the input is wrong" in job.output(), "a mistake in the input: not started again"):
        tap.note(f"{state}\n{job.output()}")


def check_weights(folder, jobs):
    """All of them against one run without interruption."""
    found = {job.name: digest(job) for job in jobs}
    last = max(step for step, _ in found.values())
    expected = tiny.train(folder, "whole", 2, "grid.pipeline=2", f"run.steps={last}", "run.digest_every=1",
                          "optimizer.decay=constant", "checkpoint.directory=''")
    digests = {line["step"]: line["digest"] for line in expected.metrics()}
    for name, (step, value) in found.items():
        tap.is_equal(value, digests.get(step), f"{name}: the weights of an uninterrupted run, to the bit")


def main():
    with slurm_cluster.prepared() as (folder, cluster):
        check_wrong_input(folder, cluster)
        check_in_vain(folder, cluster)
        check_for_good(folder, cluster)
        jobs = [check(folder, cluster) for check in (check_lost_rank, check_lost_daemon, check_lost_node,
                                                     check_cancelled)]
        check_weights(folder, jobs)
    tap.done()


if __name__ == "__main__":
    main()
