#!/usr/bin/env python3
"""Hangs: a rank that is stopped in the midst of an instruction, one whose computation does not end, and lost messages.
Each time the job ends with code 5 in time, and the report names the rank, what it does and who waits for it. What it
does is read from its memory, once it stands still. Then ranks that a library ends, and a job that is killed. TAP."""
import ctypes
import glob
import os
import re
import signal
import sys
import time

import live
import tap
import tiny

HANG_SECONDS = 2
END_SECONDS = HANG_SECONDS + 5  # from the stop to the end of the job
ABORT_SECONDS = 7  # from abort() to the end of the job
LOSSY = tap.program("tests/lossy")
FLIGHT = live.flight.__file__

LASTING = ["model.hidden=128", "model.sequence=64", "run.steps=1000000"]
LARGER = LASTING + [f"run.hang_seconds={HANG_SECONDS}"]
PIPELINE = ["grid.pipeline=2", "pipeline.schedule=zb-h1"]
DATA = ["grid.data=2", "pipeline.microbatches=2"]
TENSOR = ["grid.tensor=2"]
UNTIED = "model.tied_embeddings=false"  # ends of a tied weight have messages, too

# The instruction to be stopped in, the rank, the ranks of the job, overrides.
CASES = [
    ("FORWARD", 1, 2, PIPELINE),
    ("BACKWARD_INPUT", 0, 2, PIPELINE),
    ("BACKWARD_WEIGHT", 1, 2, PIPELINE),
    ("RECEIVE_ACTIVATION", 1, 2, PIPELINE),
    ("SUM_GRADIENTS", 1, 4, PIPELINE + DATA),
    ("TENSOR_SUM", 1, 2, TENSOR),
    ("NORM_AGREEMENT", 0, 2, PIPELINE),
    ("UPDATE_WEIGHTS", 1, 2, DATA),
    ("CHECKPOINT_WRITE", 1, 2, PIPELINE + ["checkpoint.every=1"]),
    ("EVALUATE", 0, 2, PIPELINE + ["run.evaluate_every=1", "data.validation=corpus.h5"]),
]


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 17, 0x4206, 0x4207, 0x40000000


def stop_main_thread(process):
    """The other threads, the watchdog's too, go on."""
    if LIBC.ptrace(PTRACE_SEIZE, process, None, None) != 0 or LIBC.ptrace(PTRACE_INTERRUPT, process, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(process, WALL)


def go_on_main_thread(process):
    LIBC.ptrace(PTRACE_DETACH, process, None, None)


def check_end(job, begin, name):
    """The messages of a job that must end with code 5 in time."""
    found = job.end(END_SECONDS + 20)
    seconds = time.monotonic() - begin
    tap.is_equal(found.code, 5, f"{name}: exit code 5")
    if not tap.ok(seconds <= END_SECONDS, f"{name}: within hang_seconds + 5 s"):
        tap.note(f"{seconds:.1f} s")
    if not tap.ok(found.errors.count("error: hang:") == 1, f"{name}: one report"):
        tap.note(found.errors)
    return found.errors


def check_stuck(folder, case, stop, go_on, verdict, name):
    instruction, rank, ranks, overrides = case
    os.makedirs(os.path.join(folder, name))
    for left in ("flight-0.record", f"flight-{ranks}.record", "flight-0.json", f"flight-{ranks}.json", "flight.lock"):
        with open(os.path.join(folder, name, left), "w", encoding="ascii") as file:
            file.write("of an earlier run")
    job = live.Job(folder, name, ranks, *LARGER, *overrides)
    if not tap.ok(job.wait_for_steps(), f"{name}: it trains"):
        tap.note(job.end(0).errors)
        return
    found = live.Victim(job, rank).catch(instruction, stop, go_on)
    begin = time.monotonic()
    tap.ok(found, f"{name}: caught in it")
    errors = check_end(job, begin, name)
    causes = [line for line in errors.splitlines() if re.match(r"  (rank|deadlock|a message)", line)]
    doing = [entry["name"] for entry in found.open] if found else ["nothing"]
    expected = rf"  rank {rank} \(p\d d\d t\d\) {verdict} step {found.step} "
    right = (len(causes) == 1 and re.match(expected, causes[0]) and f"; {ranks - 1} rank" in causes[0]
             and all(f" {word}" in causes[0] for word in doing)
             and all(f" {key} {entry[key]}" in causes[0] for entry in found.open for key in ("stage", "microbatch")
                     if key in entry))
    if not tap.ok(right, f"{name}: the report names the rank, its instruction and the {ranks - 1} that wait for it"):
        tap.note(f"rank {rank} did {doing}\n{errors}")
    elif not all(f"rank {other} (p" in errors and f", process {job.record(other).process}:"
                 for other in range(ranks)):
        tap.ok(False, f"{name}: and where each rank stands")
    check_files(job, ranks, rank, found, name)


def check_files(job, ranks, rank, found, name):
    """flight-<rank>.json of each rank, and what jobs/flight.py makes of them."""
    names = sorted(os.path.basename(path) for path in glob.glob(os.path.join(job.folder, "flight-*.json")))
    tap.is_equal(names, sorted(f"flight-{other}.json" for other in range(ranks)), f"{name}: a JSON file of each rank")
    code, out, errors = tap.run(sys.executable, FLIGHT, job.folder)
    first = out.split("\n")[0]
    if not tap.ok(code == 0 and first.startswith(f"rank {rank} ") and found.doing() in first,
                  f"{name}: jobs/flight.py names the same"):
        tap.note(out + errors)


def check_lost(folder, name, ranks, words, lost, expected):
    """The message that `lost` names goes nowhere."""
    job = live.Job(folder, name, ranks, *LARGER, *words, program=LOSSY, LOSE_MESSAGE=lost)
    found = job.end()
    tap.is_equal(found.code, 5, f"{name}: exit code 5")
    if not tap.ok(all(re.search(part, found.errors) for part in expected), f"{name}: told"):
        tap.note(found.errors)


def check_aborted(folder, name, stopped, expected):
    """Rank 1 gets the signal of abort(); before that, `stopped` may be stopped, as a rank that the library misses."""
    job = live.Job(folder, name, 3, *LASTING, "grid.pipeline=3")
    if not tap.ok(job.wait_for_steps(), f"{name}: it trains"):
        tap.note(job.end(0).errors)
        return
    processes = [job.record(rank).process for rank in range(3)]
    if stopped is not None:
        live.stop_process(processes[stopped])
        time.sleep(1)  # the others come to wait for it
    begin = time.monotonic()
    os.kill(processes[1], signal.SIGABRT)
    found = job.end(ABORT_SECONDS + 20)
    seconds = time.monotonic() - begin
    if not tap.ok(found.code == 4 and seconds < ABORT_SECONDS, f"{name}: exit code 4, at once"):
        tap.note(f"{found.code} after {seconds:.1f} s")
    causes = re.findall(r"^  rank \d.*$", found.errors, re.MULTILINE)
    if not tap.ok(found.errors.count("error: rank 1: a library ends the process") == 1 and "hang" not in found.errors
                  and len(causes) == 1 and re.match(expected, causes[0]), f"{name}: told"):
        tap.note(found.errors)


def check_killed(folder):
    """All processes are killed: what the records hold is readable."""
    job = live.Job(folder, "killed", 2, *LARGER, *PIPELINE)
    tap.ok(job.wait_for_steps(), "killed: it trains")
    time.sleep(2)
    processes = [job.record(rank).process for rank in range(2)] + [job.process.pid]
    for process in reversed(processes):
        os.kill(process, signal.SIGKILL)
    job.end()
    code, out, errors = tap.run(sys.executable, FLIGHT, job.folder)
    lines = [re.search(rf"^rank {rank} \(p{rank} d0 t0\) +\S+ +{processes[rank]} .* step \d+ ", out, re.MULTILINE)
             for rank in range(2)]
    if not tap.ok(code == 0 and all(lines), "killed: jobs/flight.py reads the records"):
        tap.note(out + errors)
    code, out, errors = tap.run(sys.executable, FLIGHT, job.folder, "--rank", 1)
    tap.ok(code == 0 and out.count("FORWARD stage 1") > 2 and out.count("BACKWARD_WEIGHT stage 1") > 2,
           "killed: and what a rank did")
    done = tiny.train(folder, "killed", 2, *PIPELINE, "run.steps=4", "checkpoint.resume=none",
                      "checkpoint.directory=other")
    tap.is_equal(glob.glob(os.path.join(done.folder, "flight*")), [], "a run that ends well leaves no record")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        for case in CASES:
            check_stuck(folder, case, live.stop_process, live.go_on_process,
                        r"is stopped or dead, without a sign of life for \d\.\d s, in", f"stopped in {case[0]}")
        case = ("FORWARD", 0, 2, PIPELINE)
        check_stuck(folder, case, stop_main_thread, go_on_main_thread, "does not come to an end with",
                    "an endless FORWARD")
        check_lost(folder, "a lost activation", 2, ["grid.pipeline=2", UNTIED], "0:11",
                   ["deadlock: rank 0 .* waits for rank 1 .* waits for rank 0",
                    "a message is lost: rank 0 did SEND_ACTIVATION stage 0 microbatch 2 to rank 1"])
        check_lost(folder, "a lost gradient", 3, ["grid.pipeline=3", UNTIED], "2:6",
                   ["a message is lost: rank 2 did SEND_GRADIENT stage 2 microbatch 1 to rank 1"])
        check_lost(folder, "a lost part of a sum", 2, DATA, "1:9",
                   ["deadlock: rank 0 .* waits for rank 1 .* waits for rank 0", "SUM_GRADIENTS"])
        dead = r"  rank {0} \(p{0} d0 t0\) is stopped or dead, .* in step \d+ .*; [12] ranks? waits? for it"
        check_aborted(folder, "an abort", None, dead.format(1))
        check_aborted(folder, "an abort for a dead rank", 2, dead.format(2))
        check_killed(folder)
    tap.done()


main()
