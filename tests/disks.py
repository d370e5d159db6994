#!/usr/bin/env python3
"""Disks that are full or may not be written to, folders that vanish, a dataset that is cut off while it is used: one
message that says what and where, the right exit code, and the last good checkpoint untouched. TAP."""
import contextlib
import os
import shutil
import subprocess
import time

import live
import tap
import tiny

PIPELINE = ["grid.pipeline=2", "run.steps=1000000"]
EACH = ["checkpoint.every=1", "checkpoint.keep=99"]
KIB = 1024


@contextlib.contextmanager
def small_disk(path, kib):
    """A file system of this size at the path."""
    os.makedirs(path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)  # processes that end may still hold it


def remount(path, how):
    subprocess.run(["mount", "-o", f"remount,{how}", path], check=True)


def may_mount(folder):
    path = os.path.join(folder, "probe")
    os.makedirs(path)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], capture_output=True).returncode:
        return False
    subprocess.run(["umount", path], check=True)
    return True


def complete(directory):
    """The files under a checkpoint's name, all of which are complete; None: one is not."""
    names = sorted(name for name in os.listdir(directory) if name.endswith(".h5"))
    good = all(tap.run(tap.program("ppmodel"), "--digest", os.path.join(directory, name))[0] == 0 for name in names)
    return names if good else None


def check_failed(found, code, parts, name):
    """The exit code, and one message with these parts."""
    messages = [line for line in found.errors.splitlines() if line.startswith("ppmodel:")]
    right = found.code == code and len(messages) == 1 and all(part in messages[0] for part in parts)
    if not tap.ok(right, f"{name}: exit code {code} and one message"):
        tap.note(f"{found.code}\n{found.errors}")


def wait_for_checkpoints(job, directory, count):
    end = time.monotonic() + live.START_SECONDS
    while time.monotonic() < end and job.process.poll() is None:
        with contextlib.suppress(OSError):
            if sum(name.endswith(".h5") for name in os.listdir(directory)) >= count:
                return
        time.sleep(0.005)


def check_full(folder, size):
    """Room for three checkpoints and a half."""
    name = "a full disk"
    with small_disk(os.path.join(folder, "full"), int(3.5 * size / KIB)) as disk:
        shared = set(os.listdir("/dev/shm"))
        words = ["grid.pipeline=2", "run.steps=6", "checkpoint.every=1", f"checkpoint.directory={disk}"]
        found = tiny.run(folder, "full-out", 2, *words, "checkpoint.keep=99")
        check_failed(found, 4, [disk, "step-00000004.h5.partial", "No space left on device"], name)
        tap.is_equal(os.listdir(disk) and complete(disk), [f"step-0000000{step}.h5" for step in (1, 2, 3)],
                     f"{name}: the checkpoints before are complete")
        tap.is_equal([left for left in os.listdir(disk) if "partial" in left], [], f"{name}: nothing unfinished stays")
        tap.is_equal({left for left in set(os.listdir("/dev/shm")) - shared if "ppmodel" in left}, set(),
                     f"{name}: nor anything in memory")
        found = tiny.run(folder, "full-out", 2, *words, "checkpoint.keep=1")
        check_failed(found, 4, [disk, "No space left on device"], f"{name}, again")
        os.remove(os.path.join(disk, "step-00000001.h5"))
        tiny.train(folder, "full-out", 2, *words, "checkpoint.keep=1")
        straight = tiny.train(folder, "straight", 2, "grid.pipeline=2", "run.steps=6")
        tiny.is_same(tiny.tensors(os.path.join(disk, "step-00000006.h5")), straight.tensors(6),
                     f"{name}: with room it goes on to the same bits")


def check_full_output(folder):
    name = "a full output folder"
    with small_disk(os.path.join(folder, "full-output"), 60) as disk:
        found = tiny.run(folder, disk, 2, *PIPELINE, "checkpoint.directory=''")
        check_failed(found, 4, [f"{disk}/metrics.jsonl", "No space left on device", "step"], name)


def check_read_only(folder, size):
    name = "a disk that may not be written to"
    with small_disk(os.path.join(folder, "read-only"), int(99 * size / KIB)) as disk:
        remount(disk, "ro")
        for path in (disk, f"{disk}/a/b"):
            found = tiny.run(folder, "read-only-out", 2, *PIPELINE, f"checkpoint.directory={path}")
            check_failed(found, 2, [disk, "Read-only file system"], f"{name}, at the start")
        found = tiny.run(folder, os.path.join(disk, "out"), 2, *PIPELINE, "checkpoint.directory=''")
        check_failed(found, 2, [disk, "Read-only file system"], f"{name}, for output")
        remount(disk, "rw")
        job = live.Job(folder, "read-only-out", 2, *PIPELINE, *EACH, directory=disk)
        wait_for_checkpoints(job, disk, 3)
        victim = live.Victim(job, 0)
        victim.catch("FORWARD", live.stop_process, live.go_on_process)
        remount(disk, "ro")
        before = complete(disk)
        live.go_on_process(victim.process)
        check_failed(job.end(), 4, [disk, "Read-only file system"], f"{name}, later")
        tap.ok(before and complete(disk) == before, f"{name}: the checkpoints before stay as they are")


def check_vanished(folder):
    """The folder is made again; a file in its place is a failure."""
    name = "a folder that vanishes"
    directory = os.path.join(folder, "vanished", "checkpoints")
    job = live.Job(folder, "vanished", 2, *PIPELINE, *EACH)
    wait_for_checkpoints(job, directory, 2)
    victim = live.Victim(job, 0)
    victim.catch("FORWARD", live.stop_process, live.go_on_process)
    shutil.rmtree(directory)
    live.go_on_process(victim.process)
    wait_for_checkpoints(job, directory, 2)
    tap.ok(os.path.isdir(directory) and job.process.poll() is None, f"{name}: is made again")
    victim.catch("FORWARD", live.stop_process, live.go_on_process)
    shutil.move(directory, directory + "-moved")
    with open(directory, "w", encoding="ascii"):
        pass
    live.go_on_process(victim.process)
    check_failed(job.end(), 4, ["vanished/checkpoints", "Not a directory"], "a file in the folder's place")
    tap.ok(complete(directory + "-moved"), "a file in the folder's place: the checkpoints before are complete")


def check_dataset(folder):
    """One that goes away stays open; one that is cut off ends the job where it is read."""
    for name, what, code in (("removed", os.remove, 0), ("cut off", lambda path: os.truncate(path, 6000), 4)):
        path = os.path.join(folder, f"{name}.h5")
        tiny.write_dataset(path, tokens=200000)
        job = live.Job(folder, f"data-{name}", 2, "grid.pipeline=2", "run.steps=300", "run.wall_minutes=5",
                       f"data.train={name}.h5", "checkpoint.every=1")
        tap.ok(job.wait_for_steps(), f"a dataset that is {name}: it trains")
        what(path)
        found = job.end()
        if code == 0:
            tap.is_equal((found.code, found.errors), (0, ""), "a dataset that is removed stays open")
        else:
            messages = [line for line in found.errors.splitlines() if line.startswith("ppmodel:")]
            if not tap.ok(found.code == 4 and messages and all(f"{name}.h5: is shorter" in line for line in messages),
                          "a dataset that is cut off: exit code 4, and told"):
                tap.note(f"{found.code}\n{found.errors}")
            tap.ok(complete(os.path.join(folder, f"data-{name}", "checkpoints")),
                   "a dataset that is cut off: the checkpoints before are complete")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        size = os.path.getsize(tiny.train(folder, "size", 2, "grid.pipeline=2", "run.steps=1").checkpoint(1))
        if may_mount(folder):
            check_full(folder, size)
            check_full_output(folder)
            check_read_only(folder, size)
        else:
            tap.skip("small disks", "may not be mounted here")
        check_vanished(folder)
        check_dataset(folder)
    tap.done()


main()
