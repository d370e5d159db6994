#!/usr/bin/env python3
"""jobs/train.sh and, with stand-ins for PBS's commands, jobs/train.pbs: failures, requests to stop, limits, and starts
in vain. jobs/train.sbatch is tested by slurm_jobs.py. TAP."""
import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import tap
import tiny

PROGRAM = tap.program("ppmodel")
TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAMELIST = tiny.NAMELIST.replace("min_learning_rate = 1e-4", "decay = 'constant'")
ENDLESS, MORE_STEPS = 1000000, 4
SECONDS = 40  # until something happens
LAUNCHER = " ".join([os.environ.get("MPIEXEC") or shutil.which("mpiexec.mpich") or "mpiexec",
                     os.environ.get("MPIEXEC_NP") or "-n"])

# Print what PBS says of a job, and note what is submitted.
QSTAT = """#!/bin/sh
cat <<END
Job Id: $2
    Job_Name = mine
    queue = long
    Resource_List.select = 1:ncpus=2:
\tmpiprocs=2
    Resource_List.walltime = 00:03:30
END
"""
QSUB = """#!/bin/sh
printf '%s\\n' "$*" >>submitted
"""


def set_steps(folder, steps):
    with open(os.path.join(folder, "in.nml"), "w", encoding="ascii") as file:
        file.write(NAMELIST.replace("steps = 4", f"steps = {steps}"))


def write_script(folder, name, text):
    with open(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT, 0o755), "w", encoding="ascii") as file:
        file.write(text)


def start(folder, *command, **environment):
    return subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.STDOUT, start_new_session=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "MPIEXEC": LAUNCHER, "PROGRAM": PROGRAM,
                                 **environment})


def start_train(folder, name, *words, **environment):
    return start(folder, f"{TOP}/jobs/train.sh", "2", name, "in.nml", "grid.pipeline=2", "checkpoint.every=3", *words,
                 **environment)


def end(process):
    """Exit code and output of what ends soon."""
    try:
        out, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # which ends the ranks
        out, _ = process.communicate(timeout=SECONDS)
    return process.returncode, out


def newest(folder, name):
    steps = [int(file[5:13]) for file in tiny.Run(os.path.join(folder, name), 0, "", "").checkpoints()
             if file.endswith(".h5")]
    return max(steps, default=0)


def wait_for_step(folder, name, step):
    limit = time.monotonic() + SECONDS
    while newest(folder, name) < step and time.monotonic() < limit:
        time.sleep(0.05)
    return newest(folder, name)


def ranks(name):
    """The processes of a training, by its output folder."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", encoding="utf-8", errors="replace") as file:
                words = file.read().split("\0")
        except OSError:
            continue  # ended meanwhile
        if words[0] == PROGRAM and f"run.output={name}" in words:
            found.append(int(process))
    return found


def check_failure(folder):
    set_steps(folder, ENDLESS)
    job = start_train(folder, "failed")
    step = wait_for_step(folder, "failed", 3)
    last = step + 30
    set_steps(folder, last)
    for rank in ranks("failed")[:1]:
        os.kill(rank, signal.SIGKILL)
    code, out = end(job)
    if not tap.ok(code == 0 and newest(folder, "failed") == last and out.count("ended with exit code") == 1,
                  "train.sh: a rank killed: started again, and trained to the end"):
        tap.note(f"exit code {code}\n{out[-2000:]}")
    whole = tiny.train(folder, "whole", 2, "grid.pipeline=2")
    tiny.is_same(tiny.tensors(os.path.join(folder, "failed", "checkpoints", f"step-{last:08d}.h5")),
                 whole.tensors(last), "train.sh: with the checkpoint of an uninterrupted run")


def check_signal(folder):
    set_steps(folder, ENDLESS)
    job = start_train(folder, "stopped")
    wait_for_step(folder, "stopped", 3)
    job.send_signal(signal.SIGTERM)
    code, out = end(job)
    said = re.search(r"Stopped after step (\d+) ", out)
    if not tap.ok(code == 75 and said and newest(folder, "stopped") == int(said[1]) and "same command goes on" in out
                  and not os.path.exists(os.path.join(folder, "stopped", "STOP")),
                  "train.sh: SIGTERM ends it with a checkpoint, and it is not started again"):
        tap.note(f"exit code {code}\n{out[-1500:]}")
    set_steps(folder, newest(folder, "stopped") + MORE_STEPS)
    code, out = end(start_train(folder, "stopped"))
    tap.ok(code == 0 and said and f"from stopped/checkpoints/step-{int(said[1]):08d}.h5" in out,
           "train.sh: the same command goes on")


def check_in_vain(folder):
    for name, program, expected, starts in (("vain", "/bin/false", 1, 3), ("wrong", PROGRAM, 2, 1)):
        code, out = end(start_train(folder, name, "grid.data=3", PROGRAM=program))
        with open(os.path.join(folder, name, "attempts"), encoding="ascii") as file:
            count = len(file.readlines())
        if not tap.ok((code, count) == (expected, starts), f"train.sh: exit code {expected}: {starts} start(s)"):
            tap.note(f"exit code {code}, {count} starts\n{out}")
    write_script(folder, "hangs", "#!/bin/sh\nexec sleep 60\n")
    code, out = end(start_train(folder, "silent", SILENCE="1", ATTEMPTS="1", MPIEXEC=os.path.join(folder, "hangs")))
    tap.ok(code == 137 and "nothing was written into silent for 1 s" in out, "train.sh: silence is ended")


def submit(folder, name, number, **environment):
    """Runs jobs/train.pbs as PBS would; exit code, output and what it has submitted."""
    path = os.path.join(folder, "submitted")
    if os.path.exists(path):
        os.unlink(path)
    job = start(folder, "bash", f"{TOP}/jobs/train.pbs",
                **{"PATH": f"{folder}/bin:{os.environ['PATH']}", "RUN": name, "INPUT": "in.nml", "PBS_JOBID": number,
                   "PBS_O_WORKDIR": folder, "PBS_NODEFILE": f"{folder}/nodes", "PPMODEL": TOP, **environment})
    return job, path


def check_pbs(folder):
    os.mkdir(os.path.join(folder, "bin"))
    for name, text in (("qstat", QSTAT), ("qsub", QSUB)):
        write_script(os.path.join(folder, "bin"), name, text)
    with open(os.path.join(folder, "nodes"), "w", encoding="ascii") as file:
        file.write("localhost\nlocalhost\n")
    set_steps(folder, ENDLESS)
    job, path = submit(folder, "pbs", "7.server", MORE="grid.pipeline=2 checkpoint.every=3")
    wait_for_step(folder, "pbs", 3)
    with open(os.path.join(folder, "pbs", "STOP"), "w", encoding="ascii"):
        pass
    code, out = end(job)
    again = ""
    if os.path.exists(path):
        with open(path, encoding="ascii") as file:
            again = file.read()
    right = ("-l select=1:ncpus=2:mpiprocs=2 -l walltime=00:03:30 -q long -N mine -W depend=afterany:7.server",
             "RUN=pbs,INPUT=in.nml,CHAIN=7.server,MORE='grid.pipeline=2 checkpoint.every=3'")
    if not tap.ok(code == 75 and all(part in again for part in right), "train.pbs: 75 is submitted again, as it was"):
        tap.note(f"exit code {code}: {again}\n{out[-1500:]}")
    with open(os.path.join(folder, "pbs", "resolved.nml"), encoding="ascii") as file:
        tap.ok(re.search(r"wall_minutes\s*=\s*1\b", file.read()), "train.pbs: wall_minutes keeps within the walltime")
    step = newest(folder, "pbs")
    set_steps(folder, step + MORE_STEPS)
    values = dict(word.split("=", 1) for word in shlex.split(again.split("-v ")[1])[0].split(",")) if again else {}
    job, path = submit(folder, "pbs", "8.server", **values)
    code, out = end(job)
    tap.ok(code == 0 and f"from step {step}\n" in out and not os.path.exists(path), "train.pbs: goes on to its end")
    starts = []
    for number in ("9.server", "10.server"):
        job, path = submit(folder, "lost", number, PROGRAM="/bin/false", CHAIN="9.server", ATTEMPTS="2")
        starts.append((end(job)[0], os.path.exists(path)))
    tap.is_equal(starts, [(1, True), (1, False)], "train.pbs: submitted again until it is in vain")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        check_failure(folder)
        check_signal(folder)
        check_in_vain(folder)
        check_pbs(folder)
    tap.done()


main()
