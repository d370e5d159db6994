#!/usr/bin/env python3
"""Stops on request: by signals to one rank or to the launcher, at any moment, twice; by the file STOP and the wall
limit. The step under way is finished and saved, the exit code is 75, and the next start goes on to the same bits. TAP.
"""
import os
import signal
import time

import live
import tap
import tiny

STEPS = 40
PIPELINE = ["grid.pipeline=2", f"run.steps={STEPS}"]
EVALUATION = ["run.evaluate_every=1", "data.validation=corpus.h5"]
LONG = ["grid.pipeline=2", "run.steps=1000000"]


def last_step(run):
    return max((int(name[5:13]) for name in run.checkpoints() if name.endswith(".h5")), default=0)


def check_stopped(found, why, name):
    """Code 75, the reason, and a checkpoint of the step that metrics.jsonl ends with."""
    tap.is_equal((found.code, found.errors), (75, ""), f"{name}: exit code 75 without a word of error")
    steps = [line["step"] for line in found.metrics()]
    right = f"Stopped after step {steps[-1] if steps else 0} of " in found.out and f" by {why}" in found.out
    if not tap.ok(right and "a checkpoint is written" in found.out, f"{name}: told"):
        tap.note(found.out[-500:])
    tap.is_equal(last_step(found), steps[-1] if steps else 0, f"{name}: a checkpoint of the last step")
    return steps[-1] if steps else 0


def check_goes_on(folder, name, straight, words=()):
    found = tiny.train(folder, name, 2, *PIPELINE, *words)
    tiny.is_same(found.tensors(STEPS), straight.tensors(STEPS), f"{name}: the next start goes on to the bits of one go")
    tap.is_equal([line["step"] for line in found.metrics() if "loss" in line], list(range(1, STEPS + 1)),
                 f"{name}: a line for each step, once")


def check_moment(folder, instruction, more, straight, words=(), resumed=False):
    """Rank 1 stands in the instruction while rank 0 gets the signal. `more`: steps after the one of the instruction."""
    name = f"a signal in {instruction}"
    if resumed:
        tiny.train(folder, name, 2, *PIPELINE, "run.stop_at=3")
    job = live.Job(folder, name, 2, *PIPELINE, *words)
    if not tap.ok(job.wait_for_records() if resumed or instruction == "PREPARE" else job.wait_for_steps(),
                  f"{name}: it runs"):
        tap.note(job.end(0).errors)
        return
    victim, other = live.Victim(job, 1), live.Victim(job, 0)
    found = victim.catch(instruction, live.stop_process, live.go_on_process)
    tap.ok(found, f"{name}: caught in it")
    os.kill(other.process, signal.SIGTERM)
    time.sleep(0.1)
    live.go_on_process(victim.process)
    step = check_stopped(job.end(), "a signal", name)
    tap.is_equal(step, (3 if resumed else max(found.step, 0)) + more, f"{name}: stopped behind the right step")
    check_goes_on(folder, name, straight)


def check_signals(folder):
    """To each rank alone, to the launcher, and two of them close together."""
    for name, number, whom, times in (("SIGTERM to rank 0", signal.SIGTERM, 0, 1),
                                      ("SIGUSR1 to rank 1", signal.SIGUSR1, 1, 1),
                                      ("SIGUSR1 to the launcher", signal.SIGUSR1, None, 1),
                                      ("SIGTERM twice at once", signal.SIGTERM, 1, 2)):
        job = live.Job(folder, name, 2, *LONG)
        tap.ok(job.wait_for_steps(), f"{name}: it trains")
        for _ in range(times):
            os.kill(job.process.pid if whom is None else job.record(whom).process, number)
            time.sleep(0.02)
        check_stopped(job.end(), "a signal", name)


def check_second(folder):
    """A step that does not end: the second signal ends the job."""
    name = "a second signal"
    job = live.Job(folder, name, 2, *LONG, "checkpoint.every=2", "checkpoint.keep=9")
    tap.ok(job.wait_for_steps(), f"{name}: it trains")
    processes = [job.record(rank).process for rank in (0, 1)]
    live.stop_process(processes[1])
    before = tiny.Run(job.folder, 0, "", "").checkpoints()
    os.kill(processes[0], signal.SIGTERM)
    time.sleep(1.3)
    tap.ok(job.process.poll() is None, f"{name}: after the first one it waits for the end of the step")
    begin = time.monotonic()
    os.kill(processes[0], signal.SIGTERM)
    found = job.end()
    tap.ok(time.monotonic() - begin < 5, f"{name}: at once")
    tap.ok(found.code not in (0, 2, 3, 75), f"{name}: with a code on which job scripts start again")
    tap.is_equal(found.errors.count("a second signal: ended at once"), 1, f"{name}: told")
    tap.is_equal(found.checkpoints(), before, f"{name}: no other checkpoint")


def check_file(folder, straight):
    name = "STOP at the start"
    os.makedirs(os.path.join(folder, name))
    stop = os.path.join(folder, name, "STOP")
    with open(stop, "w", encoding="ascii"):
        pass
    step = check_stopped(tiny.run(folder, name, 2, *PIPELINE), "the file STOP", name)
    tap.is_equal(step, 1, f"{name}: after the first step")
    tap.ok(not os.path.exists(stop), f"{name}: the file is gone")
    check_goes_on(folder, name, straight)

    name = "STOP in the last step"
    os.makedirs(os.path.join(folder, name))
    with open(os.path.join(folder, name, "STOP"), "w", encoding="ascii"):
        pass
    found = tiny.run(folder, name, 2, *PIPELINE, "run.stop_at=1")
    tap.is_equal((found.code, os.path.exists(os.path.join(folder, name, "STOP"))), (0, False),
                 f"{name}: done, and the file is gone")


def check_unsaved(folder):
    name = "no directory"
    os.makedirs(os.path.join(folder, name))
    with open(os.path.join(folder, name, "STOP"), "w", encoding="ascii"):
        pass
    found = tiny.run(folder, name, 2, *PIPELINE, "checkpoint.directory=''")
    tap.is_equal((found.code, found.errors), (75, ""), f"{name}: exit code 75")
    tap.ok("nothing is saved, because &checkpoint directory is not set" in found.out, f"{name}: told")


def check_wall(folder):
    """Three seconds, of which no step or evaluation may use more."""
    for name, words in (("the wall limit", []), ("the wall limit with evaluations", EVALUATION)):
        begin = time.monotonic()
        found = tiny.run(folder, name, 2, *LONG, *words, "run.wall_minutes=0.05")
        seconds = time.monotonic() - begin
        check_stopped(found, "&run wall_minutes", name)
        if not tap.ok(2 < seconds < 4, f"{name}: in time"):
            tap.note(f"{seconds:.2f} s")


def check_evaluation(folder, straight):
    """mode = 'evaluate' has nothing to save: a signal ends it."""
    name = "evaluation"
    tiny.write_dataset(os.path.join(folder, "long.h5"), tokens=3000000)
    job = live.Job(folder, name, 2, *PIPELINE, "run.mode=evaluate", "data.validation=long.h5",
                   f"checkpoint.resume={straight.checkpoint(STEPS)}")
    tap.ok(job.wait_for_records(), f"{name}: it runs")
    while not live.Victim(job, 0).is_in("EVALUATE"):
        time.sleep(0.01)
    os.kill(job.record(0).process, signal.SIGTERM)
    begin = time.monotonic()
    found = job.end()
    tap.ok(time.monotonic() - begin < 5 and found.code not in (0, 2, 3, 75), f"{name}: a signal ends it at once")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        straight = tiny.train(folder, "straight", 2, *PIPELINE)
        check_moment(folder, "PREPARE", 1, straight)
        check_moment(folder, "CHECKPOINT_READ", 1, straight, resumed=True)
        check_moment(folder, "FORWARD", 0, straight)
        check_moment(folder, "CHECKPOINT_WRITE", 1, straight, ["checkpoint.every=1"])
        check_moment(folder, "EVALUATE", 1, straight, EVALUATION)
        check_signals(folder)
        check_second(folder)
        check_file(folder, straight)
        check_unsaved(folder)
        check_wall(folder)
        check_evaluation(folder, straight)
    tap.done()


main()
