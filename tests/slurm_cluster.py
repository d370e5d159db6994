"""A Slurm of one node, for tests: munged, slurmctld and slurmd with all their files in a folder of their own.

    with slurm_cluster.prepared() as (folder, cluster):     # as root, else the test is skipped
        subprocess.run(["srun", ...], env=dict(os.environ, **cluster.environment))

The node has two processors; jobs share them if they ask for it by --oversubscribe. A job that is put back into the
queue waits there for the five seconds of cred_expire. What was started in the cluster ends with it, jobs too.
"""
import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import tap
import tiny

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("srun", "sbatch", "scancel", "scontrol", "sinfo", "munge")
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
START_SECONDS = STOP_SECONDS = 20
PR_SET_PDEATHSIG = 1  # linux/prctl.h

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
MpiDefault=pmi2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
ReturnToService=2
KillWait=2
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=10 OverSubscribe=YES State=UP
"""


def missing():
    """Why there can be no cluster here, or None."""
    absent = [name for name in DAEMONS + COMMANDS if not shutil.which(name, path=PATH)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if os.geteuid() != 0:
        return "slurmd needs root"
    return None


def free_ports(count):
    """Ports of this host that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def leave(*_):
    """At a time limit: ends this process, but not without the cluster's end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come twice: to the process, and to its group
    sys.exit(1)


def parent(process):
    """The process that started it, 0 where it ended meanwhile."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def kill(process):
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Cluster:
    """`environment` holds what commands need to find it, `folder` its files, logs included."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="ppmodel-slurm-")
        self.environment = {"SLURM_CONF": os.path.join(self.folder, "slurm.conf")}
        self.daemons = []

    def __enter__(self):
        signal.signal(signal.SIGTERM, leave)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def command(self, *words):
        """Standard output of one of Slurm's commands."""
        return subprocess.run(words, env=dict(os.environ, **self.environment), capture_output=True, text=True,
                              timeout=10).stdout.strip()

    def processes(self):
        """{process: its environment} of all that runs in the cluster or asks it: daemons, ranks, commands."""
        found = {}
        for process in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                with open(f"/proc/{process}/environ", encoding="utf-8", errors="replace") as file:
                    variables = dict(item.split("=", 1) for item in file.read().split("\0") if "=" in item)
            except OSError:
                continue  # ended meanwhile
            if variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                found[process] = variables
        return found

    def ranks(self, program):
        """{rank: process} of a program that runs in the cluster."""
        found = {}
        for process, variables in self.processes().items():
            try:
                if "SLURM_PROCID" in variables and os.path.samefile(f"/proc/{process}/exe", program):
                    found[int(variables["SLURM_PROCID"])] = process
            except OSError:
                continue  # ended meanwhile
        return found

    def lose_node(self):
        """The node fails with all that runs there, the controller hears of it, and it comes back."""
        controllers = [daemon.pid for daemon in self.daemons[:-1]]
        for process in self.processes():
            if process not in controllers and parent(process) not in controllers:
                kill(process)
        self.daemons.pop().wait()
        node = self.command("sinfo", "--noheader", "--format=%n")
        self.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        self._start_node()

    def stop(self):
        """Ends all of it and removes the folder. May be called again."""
        end = time.monotonic() + STOP_SECONDS
        while (left := self.processes()) and time.monotonic() < end:
            for process in left:
                kill(process)
            time.sleep(0.02)
        for daemon in self.daemons:
            daemon.wait()
        self.daemons = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self):
        os.chmod(self.folder, 0o755)  # munged runs as another user
        for name in ("controller", "node"):
            os.mkdir(os.path.join(self.folder, name))
        host = socket.gethostname().split(".")[0]
        controller_port, node_port = free_ports(2)
        configuration = self.environment["SLURM_CONF"]
        with open(configuration, "w", encoding="ascii") as file:
            file.write(CONFIGURATION.format(folder=self.folder, host=host, controller_port=controller_port,
                                            node_port=node_port))
        self._start_munged()
        self._daemon("slurmctld", "-D", "-i", "-f", configuration)
        self._start_node()

    def _start_node(self):
        host = socket.gethostname().split(".")[0]
        self._daemon("slurmd", "-D", "-N", host, "-f", self.environment["SLURM_CONF"])
        self._wait(lambda: self.command("sinfo", "--noheader", "--format=%t") == "idle", "the node")

    def _start_munged(self):
        folder = os.path.join(self.folder, "munge")
        owner = pwd.getpwnam("munge")
        os.mkdir(folder)
        with open(os.open(f"{folder}/key", os.O_WRONLY | os.O_CREAT, 0o400), "wb") as file:
            file.write(os.urandom(128))
        os.chown(f"{folder}/key", owner.pw_uid, owner.pw_gid)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        os.chmod(folder, 0o711)
        self._daemon("munged", "--foreground", "--num-threads=10", f"--socket={folder}/socket",
                     f"--key-file={folder}/key", f"--pid-file={folder}/pid", f"--seed-file={folder}/seed",
                     f"--log-file={folder}/munged.log", user=owner.pw_uid, group=owner.pw_gid, extra_groups=[])
        self._wait(lambda: self.command("munge", "--no-input", f"--socket={folder}/socket"), "munged")

    def _daemon(self, name, *options, **more):
        """Starts one; it ends when this process does, however that ends."""
        with open(os.path.join(self.folder, f"{name}.out"), "w", encoding="utf-8") as output:
            self.daemons.append(subprocess.Popen(
                [shutil.which(name, path=PATH), *options], env=dict(os.environ, **self.environment),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL), **more))

    def _wait(self, is_ready, what):
        end = time.monotonic() + START_SECONDS
        while not is_ready():
            if time.monotonic() > end or any(daemon.poll() is not None for daemon in self.daemons):
                raise RuntimeError(f"{what} did not start\n{self._last_words()}")
            time.sleep(0.1)

    def _last_words(self):
        """The end of each of the daemons' files."""
        text = ""
        for folder, _, names in os.walk(self.folder):
            for name in (name for name in names if name.endswith((".out", ".log"))):
                with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                    text += f"--- {name}\n" + "".join(file.readlines()[-5:])
        return text


@contextlib.contextmanager
def prepared():
    """A folder with the tiny model's input, and a cluster; the test is skipped where there can be none."""
    reason = missing()
    if reason:
        tap.skip_all(reason)
    with tap.scratch_folder() as folder, Cluster() as cluster:
        tiny.prepare(folder)
        yield folder, cluster
