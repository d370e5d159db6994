"""Test Anything Protocol for the Python tests: ok(), is_equal(), note(), skip_all(), done(), and running the programs.

The programs are looked for in the folder $top_builddir (default: the current one). MPI programs are started by $MPIEXEC
(which may hold options too; default: MPICH's) with $MPIEXEC_NP (default: -n) before the number of ranks.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

_count = 0


def ok(condition, name):
    """One named check; returns its verdict."""
    global _count
    _count += 1
    print(f"{'ok' if condition else 'not ok'} {_count} - {name}", flush=True)
    return bool(condition)


def is_equal(found, expected, name):
    """Holds when the two are equal; shows both otherwise."""
    if not ok(found == expected, name):
        note(f"found    {found!r}")
        note(f"expected {expected!r}")


def note(text):
    """Comment lines."""
    for line in str(text).splitlines():
        print(f"# {line}", flush=True)


def skip(name, reason):
    """One check that is left out."""
    global _count
    _count += 1
    print(f"ok {_count} - {name} # SKIP {reason}", flush=True)


def skip_all(reason):
    """Ends the program; none of its checks applies."""
    print(f"1..0 # SKIP {reason}")
    sys.exit(0)


def done():
    """Prints the plan; the last call of a test program."""
    print(f"1..{_count}")


def program(name):
    """Absolute path of a program that was built."""
    return os.path.abspath(os.path.join(os.environ.get("top_builddir", "."), name))


def run(*command, folder=None, environment=None, seconds=120):
    """Runs a command to its end; returns its exit code, standard output and standard error."""
    done_process = subprocess.run([str(word) for word in command], cwd=folder, timeout=seconds, text=True,
                                  capture_output=True, env=dict(os.environ, **(environment or {})))
    return done_process.returncode, done_process.stdout, done_process.stderr


# Tests have more ranks than most computers have cores, and are warned of it.
CROWDED = re.compile(r"ppmodel: warning: \d+ ranks of 1 thread share [^\n]*\n")


def launch(ranks, *command, folder=None, environment=None, seconds=60):
    """The same on `ranks` ranks, of one thread each unless `environment` says otherwise. What runs longer is ended,
    with the exit code 124. A warning of more ranks than cores is left out."""
    default = "mpiexec.mpich" if shutil.which("mpiexec.mpich") else "mpiexec"
    words = (os.environ.get("MPIEXEC") or default).split() + [os.environ.get("MPIEXEC_NP") or "-n", str(ranks)]
    with subprocess.Popen(words + [str(word) for word in command], cwd=folder, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}) as process:
        try:
            out, errors = process.communicate(timeout=seconds)
            return process.returncode, out, CROWDED.sub("", errors)
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher ends the ranks
        try:
            out, errors = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
        return 124, out, errors + f"\nended after {seconds} s"


# Words before a program under launch(): each rank then says its exit code, for rank_codes().
EACH_RANK = ("sh", "-c",
             'program=$1; shift; "$program" "$@"; code=$?; echo "rank ended with $code" >&2; exit $code', "sh")


def rank_codes(errors):
    """Takes what the ranks said of their exit codes out of the messages; the codes and the rest."""
    said = "rank ended with "
    lines = errors.splitlines(keepends=True)
    return ([int(line[len(said):]) for line in lines if line.startswith(said)],
            "".join(line for line in lines if not line.startswith(said)))


def scratch_folder():
    """A folder for the test's files, removed at its end: `with scratch_folder() as folder:`."""
    return tempfile.TemporaryDirectory(prefix="ppmodel-test-")


def need(module):
    """Imports a module, or skips the whole program where Python has none of that name."""
    try:
        return __import__(module)
    except ImportError:
        skip_all(f"no Python module {module}")
        return None
