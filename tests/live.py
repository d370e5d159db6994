"""Jobs while they run: their ranks' processes, and what each does, read from its memory, so that a rank can be stopped
in the midst of an instruction."""
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import tap
import tiny

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "jobs"))
sys.dont_write_bytecode = True
import flight  # noqa: E402

START_SECONDS = 60  # a job trains after this time at the latest
PROGRAM = tap.program("ppmodel")


class Job:
    """A job that trains; its ranks are known once they have made their records."""

    def __init__(self, folder, name, ranks, *overrides, program=PROGRAM, directory=None, **environment):
        self.folder, self.ranks = os.path.join(folder, name), ranks
        words = ["mpiexec.mpich" if shutil.which("mpiexec.mpich") else "mpiexec"]
        words = os.environ.get("MPIEXEC", "").split() or words
        words += [os.environ.get("MPIEXEC_NP") or "-n", str(ranks), program, "in.nml", f"run.output={name}",
                  f"checkpoint.directory={directory or f'{name}/checkpoints'}", *overrides]
        self.process = subprocess.Popen(words, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, "OMP_NUM_THREADS": "1", **environment})

    def record(self, rank):
        """The record of a rank, as it stands in its file."""
        return flight.read_record(os.path.join(self.folder, f"flight-{rank}.record"))

    def wait_for_steps(self):
        """Until training goes on; false: it does not."""
        metrics, end = os.path.join(self.folder, "metrics.jsonl"), time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if os.path.getsize(metrics) > 0:
                    return True
            time.sleep(0.02)
        return False

    def wait_for_records(self):
        """Until all ranks have one."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if all(self.record(rank) for rank in range(self.ranks)):
                    return True
        return False

    def end(self, seconds=60):
        """Waits for the end of the job: what it left behind."""
        try:
            out, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            out, errors = self.process.communicate()
            errors += "\nit had to be ended"
        return tiny.Run(self.folder, self.process.returncode, out, errors)


class Victim:
    """One rank's process and its record in its memory."""

    def __init__(self, job, rank):
        found = job.record(rank)
        self.process, self.address = found.process, found.address
        self.names = found.names
        self.memory = open(f"/proc/{self.process}/mem", "rb", buffering=0)

    def look(self):
        self.memory.seek(self.address)
        return flight.parse_record(self.memory.read(flight.SIZE), self.names)

    def is_in(self, instruction):
        return any(entry["name"] == instruction for entry in self.look().open)

    def catch(self, instruction, stop, go_on):
        """Stops it within the instruction; what it does then, or None."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if not self.is_in(instruction):
                continue
            stop(self.process)
            if self.is_in(instruction):
                return self.look()
            go_on(self.process)
        return None


def stop_process(process):
    os.kill(process, signal.SIGSTOP)
    while True:
        with open(f"/proc/{process}/stat", encoding="ascii") as file:
            if file.read().rsplit(")", 1)[1].split()[0] in "Tt":
                return


def go_on_process(process):
    os.kill(process, signal.SIGCONT)
