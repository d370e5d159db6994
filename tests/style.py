#!/usr/bin/env python3
"""The house rules that a program can check. TAP: one test for each rule, its violations behind `#`."""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

import tap

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAYERS = ["base", "pipeline", "kernels", "parallel", "io", "model", "plan", "run"]  # each includes only those before it
LINE_WIDTH = 120
FILE_LINES = 600
OUTPUT_FILES = {"src/base/log.c", "src/run/main.c", "src/run/pack_main.c"}
CLANG_FORMAT_VERSION = "14"


def check(name, violations):
    tap.ok(not violations, name)
    for violation in violations:
        tap.note(violation)


def find(*folders, ends):
    """The files under these folders with one of these endings, as paths from the top."""
    found = []
    for folder in folders:
        for place, _, names in os.walk(os.path.join(TOP, folder)):
            found += [os.path.relpath(os.path.join(place, name), TOP) for name in names if name.endswith(ends)]
    return sorted(found)


def read(path):
    with open(os.path.join(TOP, path), encoding="utf-8") as file:
        return file.read()


def without_comments(text):
    """C code with comments and the contents of strings blanked, line by line as it was."""
    token = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)

    def blank(match):
        found = match.group()
        return found[0] * 2 if found[0] in "\"'" else re.sub(r"[^\n]", " ", found)

    return token.sub(blank, text)


def lines_with(pattern, paths, code_only=True):
    """'path:line: text' of every line that the pattern matches."""
    matches = []
    for path in paths:
        text = read(path)
        searched = without_comments(text) if code_only else text
        for number, (line, shown) in enumerate(zip(searched.splitlines(), text.splitlines()), 1):
            if re.search(pattern, line):
                matches.append(f"{path}:{number}: {shown.strip()}")
    return matches


def layer_of(path):
    """The layer of a file or of an included name, None where it belongs to none."""
    parts = path.removeprefix("src/").split("/")
    return parts[0] if parts[0] in LAYERS and len(parts) > 1 else None


def check_layers(program):
    violations = []
    for path in program:
        own = layer_of(path)
        for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', read(path), re.MULTILINE):
            target = layer_of(included)
            if target is None:  # beside the file itself, or made by the build
                beside = os.path.join(TOP, os.path.dirname(path), included)
                if not os.path.exists(beside) and (own, included) != ("run", "version.h"):
                    violations.append(f"{path}: includes {included}, which is in no layer")
            elif LAYERS.index(target) > LAYERS.index(own):
                violations.append(f"{path}: {own} includes {included} of a higher layer")
    check("a layer includes only itself and lower ones: " + ", ".join(LAYERS), violations)


def check_callers(program):
    def outside(*allowed):
        return [path for path in program if not path.startswith(allowed)]

    check("only src/parallel calls MPI", lines_with(r"\bP?MPI_[A-Z]\w*\s*\(", outside("src/parallel/")))
    check("only src/io calls HDF5", lines_with(r"\bH5[A-Z]{1,2}\w*\s*\(", outside("src/io/")))
    check("only kernels calls BLAS and oneDNN", lines_with(r"\b(cblas|dnnl|openblas)_\w+\s*\(", outside("kernels/")))
    check("only kernels calls CUDA and cuBLAS", lines_with(r"\b(cuda|cublas(Lt)?)[A-Z]\w*\s*\(", outside("kernels/")))
    check("only src/parallel calls NCCL", lines_with(r"\bnccl[A-Z]\w*\s*\(", outside("src/parallel/")))
    silent = [path for path in program if path not in OUTPUT_FILES]
    check("standard output belongs to the log and the main programs",
          lines_with(r"(?<!\w)(v?printf|puts|putchar)\s*\(|(?<!fflush\()\bstdout\b", silent))


def check_text(c_files, texts):
    check("no tabs in C", lines_with("\t", c_files, code_only=False))
    check(f"no line beyond {LINE_WIDTH} columns", lines_with(".{%d}" % (LINE_WIDTH + 1), texts, code_only=False))
    check("no blanks at the end of a line", lines_with(r"[ \t]+$", texts, code_only=False))
    check(f"no file beyond {FILE_LINES} lines",
          [f"{path}: {count} lines" for path in texts if (count := len(read(path).splitlines())) > FILE_LINES])
    unfinished = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, r"#\s*if\s+0\b"))
    check("nothing is left for later", lines_with(rf"(?<!\w)(?:{unfinished})(?!\w)", texts, code_only=False))
    check("no VLA-like calls and no unbounded text", lines_with(r"\b(alloca|sprintf|vsprintf|strcpy|strcat|gets)\s*\(",
                                                               c_files))


def check_format(c_files):
    name = "formatted by clang-format"
    program = next((found for command in (f"clang-format-{CLANG_FORMAT_VERSION}", "clang-format")
                    if (found := shutil.which(command))), None)
    if not program:
        return tap.skip(name, "no clang-format here")
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    if f"version {CLANG_FORMAT_VERSION}." not in version:
        return tap.skip(name, f"not clang-format {CLANG_FORMAT_VERSION}: {version.strip()}")
    run = subprocess.run([program, "--dry-run", "--Werror", *c_files], cwd=TOP, capture_output=True, text=True)
    return check(name, sorted(set(re.findall(r"^([^:\n]+):\d", run.stderr, re.MULTILINE)))
                 or ([run.stderr.strip()] if run.returncode else []))


def compile_flags():
    """The compiler and preprocessor flags of the build that this runs in, None where there is none."""
    try:
        with open("Makefile", encoding="utf-8") as file:
            makefile = dict(re.findall(r"^(\w+) = (.*)$", file.read(), re.MULTILINE))
    except OSError:
        return None
    if "HDF5_CFLAGS" not in makefile:
        return None
    flags = [makefile.get(name, "") for name in ("CC", "DEFS", "HDF5_CFLAGS", "BLAS_CFLAGS", "CUDA_CFLAGS",
                                                 "OPENMP_CFLAGS", "ARCH_CFLAGS")]
    return subprocess.run(["sh", "-c", "printf '%s\\n' " + " ".join(flags).replace("\\", "")],
                          capture_output=True, text=True).stdout.split("\n")[:-1]


def check_headers(headers):
    name = "each header compiles alone"
    command = compile_flags()
    if command is None:
        return tap.skip(name, "not in a build folder")
    if not any("cuda" in flag for flag in command):
        headers = [path for path in headers if not path.startswith("kernels/cuda/")]
    if "-DHAVE_NCCL=1" not in command:
        headers = [path for path in headers if path != "src/parallel/comm_nccl_library.h"]
    violations = []
    with tempfile.TemporaryDirectory() as folder:
        for path in headers:
            source = os.path.join(folder, "alone.c")
            with open(source, "w", encoding="utf-8") as file:
                file.write(f'#include "{os.path.join(TOP, path)}"\n')
            run = subprocess.run([*command, "-std=gnu11", "-fsyntax-only", "-I" + os.path.join(TOP, "src"), "-I" + TOP,
                                  source], capture_output=True, text=True)
            if run.returncode:
                violations.append(f"{path}: " + next(iter(re.findall(r"error: .*", run.stderr)), run.stderr))
    return check(name, violations)


def check_names(c_files):
    seen, violations = {}, []
    for path in (path for path in c_files if not path.startswith("tests/") and path.endswith((".c", ".cu"))):
        name = os.path.basename(path)
        if name in seen:
            violations.append(f"{path} and {seen[name]}")
        seen[name] = path
    check("source files have names of their own", violations)
    guards = {}
    for path in (path for path in c_files if path.endswith((".h", ".cuh"))):
        expected = re.sub(r"\W", "_", path.removeprefix("src/")).upper()
        guard = re.search(r"^#ifndef (\w+)\n#define \1$", read(path), re.MULTILINE)
        if not guard or guard.group(1) != expected:
            guards[path] = expected
    check("headers are guarded by their path", [f"{path}: expected {guard}" for path, guard in guards.items()])


def check_lists(texts):
    makefile = re.sub(r"#.*", "", read("Makefile.am"))
    listed = set(re.findall(r"[\w./-]+", makefile))
    folders = tuple(name + "/" for name in listed if "/" in name and os.path.isdir(os.path.join(TOP, name)))
    programs = re.findall(r"(tests/\w+)(?:\.t|\.np\d+|\.cuda)?\s", makefile)
    listed |= {name + ".c" for name in programs if name + "/" not in folders}
    check("Makefile.am lists every file",
          [path for path in texts if "/" in path and path not in listed and not path.startswith((".", *folders))])
    kinds = "c|h|cu|cuh|py|sh|nml|h5|json"
    files = [name for name in listed if re.match(rf"(src|kernels|tests|jobs|input)/.*\.({kinds})$", name)]
    check("Makefile.am lists only what is there",
          sorted(name for name in files if not os.path.exists(os.path.join(TOP, name))))


def check_tree():
    git = ["git", "-C", TOP, "ls-files"]
    tracked = subprocess.run(git, capture_output=True, text=True) if os.path.exists(f"{TOP}/.git") else None
    if tracked is None or tracked.returncode or not tracked.stdout:
        tap.skip("the top level holds what belongs there", "not in a git repository")
        tap.skip("no generated file is committed", "not in a git repository")
        return
    paths = tracked.stdout.splitlines()
    top = {path.split("/")[0] for path in paths}
    allowed = {"configure.ac", "Makefile.am", "README.md", "src", "kernels", "jobs", "input", "tests"}
    check("the top level holds what belongs there", sorted(n for n in top - allowed if not n.startswith(".")))
    ignored = subprocess.run(git + ["-c", "-i", "--exclude-standard"], capture_output=True, text=True).stdout
    check("no generated file is committed", [path for path in ignored.splitlines() if not path.startswith("tests/")]
          + [path for path in paths if re.search(r"\.(o|a|d|log|trs|pyc|orig|rej|partial|resources)$", path)])


def main():
    c_files = find("src", "kernels", "tests", ends=(".c", ".h", ".cu", ".cuh"))
    if not c_files:
        sys.exit("Bail out! no source files")
    program = [path for path in c_files if not path.startswith("tests/")]
    texts = sorted(c_files + find("src", "kernels", "jobs", "input", "tests", ends=(".py", ".sh", ".nml", ".md"))
                   + ["configure.ac", "README.md"] + [os.path.relpath(p, TOP) for p in glob.glob(f"{TOP}/.ci/run")])
    check_layers(program)
    check_callers(program)
    check_text(c_files, texts)
    check_format(c_files)
    check_headers([path for path in c_files if path.endswith(".h")])
    check_names(c_files)
    check_lists(texts)
    check_tree()
    tap.done()


if __name__ == "__main__":
    main()
