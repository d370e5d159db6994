#!/usr/bin/env python3
"""The program under Slurm's own launcher, in a cluster of one node that this test starts and ends. TAP."""
import csv
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import slurm_cluster
import tap
import tiny

h5py = tap.need("h5py")

PROGRAM = tap.program("ppmodel")
TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
START_SECONDS = 20  # a job trains after this time at the latest
END_SECONDS = 5  # and is over, once it lost a rank
HANG_SECONDS = 2

STUDY = f"""[study]
axis = strong
points = 1x1x1 2x1x1
input = in.nml
output = study
program = {PROGRAM}
machine = none
global_batch = 6
launcher = slurm
[settings]
run.steps = 5
[slurm]
ranks_per_node = 2
cores_per_node = 1
sbatch = --oversubscribe --time=5
"""


def under(cluster, *options):
    """Makes srun the launcher of the tests."""
    return mock.patch.dict(os.environ, cluster.environment, MPIEXEC=" ".join(["srun", *options]), MPIEXEC_NP="-n")


def attributes(path):
    """What the root of a checkpoint says, but for the input: that names the output folder."""
    with h5py.File(path, "r") as file:
        return {name: getattr(value, "tobytes", lambda: value)() for name, value in file.attrs.items()
                if name != "input"}


def check_same_as_mpiexec(folder, cluster):
    expected = tiny.train(folder, "mpiexec", 2, "grid.pipeline=2")
    with under(cluster):
        found = tiny.train(folder, "srun", 2, "grid.pipeline=2")
    if found.code == 0 and expected.code == 0:
        tiny.is_same(found.tensors(4), expected.tensors(4),
                     "srun -n 2 trains to the same checkpoint, bit for bit, as mpiexec -n 2")
        tap.is_equal(attributes(found.checkpoint(4)), attributes(expected.checkpoint(4)), "with the same attributes")
    return expected


def check_cube(folder, cluster, expected):
    """Eight ranks on two processors."""
    with under(cluster, "--overcommit"):
        cube = tiny.train(folder, "cube", 8, "grid.pipeline=2", "grid.data=2", "grid.tensor=2",
                          "pipeline.microbatches=2")
    if cube.code == 0 and expected.code == 0:
        found, losses = cube.metrics("loss"), expected.metrics("loss")
        if not tap.ok(len(found) == len(losses) == 4 and all(abs(a - b) <= 1e-6 * b for a, b in zip(found, losses)),
                      "srun -n 8 --overcommit: a grid of 2 x 2 x 2 has the losses of 2 x 1 x 1"):
            tap.note(f"{found}\n{losses}")


def check_wrong_input(folder, cluster):
    with under(cluster):
        run = tiny.run(folder, "wrong", 2, "grid.pipline=2")
    tap.is_equal(run.code, 2, "a mistake in the input under srun: exit code 2")
    errors = [line for line in run.errors.splitlines() if "error" in line and not line.startswith("srun:")]
    if not tap.ok(len(errors) == 1 and "pipline" in errors[0] and "'pipeline'" in run.errors,
                  "and one message, not one from each rank"):
        tap.note(run.errors)


def check_no_pmi(folder, cluster):
    """Ranks that srun does not introduce to each other."""
    with under(cluster, "--mpi=none"):
        run = tiny.run(folder, "strangers", 2, "grid.pipeline=2")
    tap.is_equal(run.code, 2, "srun --mpi=none, where each rank is alone: exit code 2")
    if not tap.ok(run.errors.count("error: srun started 2 ranks") == 1 and "srun --mpi=list" in run.errors
                  and not os.path.exists(run.folder), "one message, and nothing is written"):
        tap.note(run.errors)


def check_study(folder, cluster):
    """A study whose points are jobs."""
    with open(os.path.join(folder, "study.ini"), "w", encoding="ascii") as file:
        file.write(STUDY)
    said = []

    def is_whole():
        said[:] = tap.run(sys.executable, f"{TOP}/jobs/study.py", "study.ini", folder=folder,
                          environment=cluster.environment)
        return said[0] != 0 or said[1].count("done before") == 2

    first = is_whole(), said[1]
    wait_for(is_whole, START_SECONDS)
    if not tap.ok(not first[0] and first[1].count(": submitted") == 2 and said[0] == 0
                  and said[1].count("done before") == 2, "a study: points are submitted, and found when they are done"):
        tap.note(first[1] + "".join(map(str, said)))
    with open(os.path.join(folder, "study", "study.csv"), encoding="ascii", newline="") as file:
        rows = list(csv.DictReader(file))
    tap.is_equal([(row["point"], row["steps"], row["oversubscribed"]) for row in rows],
                 [("1x1x1", "2", "no"), ("2x1x1", "2", "yes")], "a study: its table")


def wait_for(is_done, seconds):
    """Whether it is done within this time."""
    end = time.monotonic() + seconds
    while not (done := is_done()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


def check_killed(folder, cluster, victim):
    """A rank is killed while the job trains. Slurm ends the others only if asked to by --kill-on-bad-exit."""
    what = f"rank {victim} killed"
    metrics = os.path.join(folder, f"killed-{victim}", "metrics.jsonl")
    command = ["srun", "--kill-on-bad-exit=1", "-n", "2", PROGRAM, "in.nml", "grid.pipeline=2", "run.steps=1000000",
               f"run.output=killed-{victim}"]
    with subprocess.Popen(command, cwd=folder, env=dict(os.environ, **cluster.environment, OMP_NUM_THREADS="1"),
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        wait_for(lambda: os.path.exists(metrics) and os.path.getsize(metrics) > 1000, START_SECONDS)
        ranks = cluster.ranks(PROGRAM)
        if not tap.ok(ranks.keys() == {0, 1} and job.poll() is None, f"{what}: before, both train"):
            tap.note(f"ranks {ranks}, exit code {job.poll()}")
        if victim in ranks:
            os.kill(ranks[victim], signal.SIGKILL)
        ended = wait_for(lambda: job.poll() is not None and not cluster.ranks(PROGRAM), END_SECONDS)
        tap.ok(ended, f"{what}: the job ends within {END_SECONDS} s, and no rank stays behind")
        if not tap.ok(job.poll() not in (None, 0, 2, 3), f"{what}: with a code on which job scripts start again"):
            tap.note(f"exit code {job.poll()}")
        job.kill()


def check_unasked(folder, cluster, victim, number, verdict):
    """A rank is killed or stopped where Slurm was not asked to end the others: the watchdog does."""
    what = f"rank {victim} gets {signal.Signals(number).name} without --kill-on-bad-exit"
    output = f"unasked-{number}"
    metrics = os.path.join(folder, output, "metrics.jsonl")
    command = ["srun", "-n", "2", PROGRAM, "in.nml", "grid.pipeline=2", "run.steps=1000000",
               f"run.hang_seconds={HANG_SECONDS}", f"run.output={output}"]
    with subprocess.Popen(command, cwd=folder, env=dict(os.environ, **cluster.environment, OMP_NUM_THREADS="1"),
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True) as job:
        wait_for(lambda: os.path.exists(metrics) and os.path.getsize(metrics) > 1000, START_SECONDS)
        ranks = cluster.ranks(PROGRAM)
        os.kill(ranks[victim], number)
        ended = wait_for(lambda: job.poll() is not None and not cluster.ranks(PROGRAM), HANG_SECONDS + END_SECONDS)
        tap.ok(ended, f"{what}: the job ends within hang_seconds + {END_SECONDS} s, and no rank stays behind")
        job.kill()
        errors = job.stderr.read()
        if not tap.ok(f"  rank {victim} (p{victim} d0 t0) {verdict}" in errors, f"{what}: told"):
            tap.note(errors)
        if not tap.ok(job.poll() not in (None, 0, 2, 3), f"{what}: with a code on which job scripts start again"):
            tap.note(f"exit code {job.poll()}")


def main():
    with slurm_cluster.prepared() as (folder, cluster):
        expected = check_same_as_mpiexec(folder, cluster)
        check_cube(folder, cluster, expected)
        check_wrong_input(folder, cluster)
        check_no_pmi(folder, cluster)
        check_study(folder, cluster)
        for victim in (0, 1):
            check_killed(folder, cluster, victim)
        check_unasked(folder, cluster, 1, signal.SIGKILL, "is stopped or dead")
        check_unasked(folder, cluster, 0, signal.SIGSTOP, "is stopped or dead")
    tap.done()


if __name__ == "__main__":
    main()
