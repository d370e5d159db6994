#!/usr/bin/env python3
"""Wrong ways to start a job, as a new user would find them: each has one message that says what to do, and exit code 2
on every rank. What is wrong in the input is tested by inputs.py. TAP."""
import os
import subprocess

import tap
import tiny

PROGRAM = tap.program("ppmodel")

# A name; ranks; the command line; what the message must contain. `folder` is one, `text` a file.
STARTS = [
    ("no input", 2, "", ["no input file", "usage: ppmodel input.nml"]),
    ("a launcher's option after the program", 1, "-n 2 in.nml", ["unknown option -n", "under srun or mpiexec"]),
    ("a misspelt option", 1, "--defualts", ["unknown option --defualts", "--defaults"]),
    ("an option after the input", 1, "in.nml --help", ["--help", "write group.key=value"]),
    ("no such input", 2, "input.nml", ["cannot read input.nml"]),
    ("a folder as input", 2, "folder", ["cannot read folder", "directory"]),
    ("a dataset as input", 1, "corpus.h5", ["corpus.h5:", "is this a text file?"]),
    ("two inputs", 1, "in.nml in.nml", ["in.nml", "write group.key=value"]),
    ("blanks around the equals sign", 1, "in.nml run.steps = 5", ["run.steps", "write group.key=value"]),
    ("a key without its group", 1, "in.nml steps=5", ["steps=5", "write group.key=value"]),
    ("a misspelt key", 2, "in.nml run.step=5", ["unknown key 'step'", "did you mean 'steps'"]),
    ("a grid, but no launcher", 0, "in.nml grid.pipeline=2 grid.data=2 grid.tensor=2",
     ["make 8 ranks", "has 1", "mpiexec -n 8", "srun -n 8"]),
    ("a pipeline, but no launcher", 0, "in.nml grid.pipeline=2", ["mpiexec -n 2", "srun -n 2"]),
    ("too few ranks", 2, "in.nml grid.pipeline=2 grid.data=2", ["make 4 ranks", "has 2", "start 4 ranks"]),
    ("too many ranks", 3, "in.nml grid.pipeline=2 grid.data=1", ["make 2 ranks", "has 3", "start 2 ranks"]),
    ("ranks that the grid does not divide", 3, "in.nml grid.pipeline=2", ["3 ranks", "start 2 ranks or a multiple"]),
    ("heads that tensor ranks cannot share", 3, "in.nml grid.tensor=3", ["heads = 4", "tensor = 3", "one of 1 2 4"]),
    ("more stages than layers", 4, "in.nml grid.pipeline=4 model.layers=1", ["4 stages", "largest pipeline", "is 3"]),
    ("no such dataset", 2, "in.nml data.train=none.h5", ["none.h5", "ppmodel-pack"]),
    ("a text as dataset", 2, "in.nml data.train=text", ["text", "ppmodel-pack"]),
    ("sequences longer than the dataset", 1, "in.nml model.sequence=6000", ["5000 tokens", "a shorter sequence"]),
    ("more tokens than the model has", 1, "in.nml model.vocabulary=100", ["vocabulary = 100", "at least 101"]),
    ("a batch that does not divide", 2, "in.nml pipeline.microbatches=0 pipeline.global_batch=20", ["18 and 24"]),
    ("a checkpoint of another model", 2, "in.nml model.layers=6 checkpoint.directory=kept/checkpoints",
     ["kept/checkpoints/step-00000001.h5", "[5, 48]", "[6, 48]", "another model"]),
    ("an output folder that cannot be", 2, "in.nml run.output=/proc/out", ["/proc/out", "cannot be made"]),
    ("a checkpoint folder that cannot be", 2, "in.nml checkpoint.directory=/proc/out", ["/proc/out", "cannot be made"]),
    ("a folder where nothing can be written", 1, "in.nml run.output=/proc/self",
     ["/proc/self", "nothing can be written"]),
    ("a device that this build or node has not", 1, "in.nml run.device=cuda", ["&run device = 'cuda'"]),
]

# How launchers that do not belong to this MPI library appear to it.
STRANGERS = {
    "Open MPI's mpiexec": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "srun without PMI": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
}


def check(name, code, out, errors, parts):
    codes, errors = tap.rank_codes(errors)
    right = {"exit code 2": code == 2 and set(codes) <= {2}, "one message": errors.count("error:") == 1,
             "no other": "warning" not in errors and "BAD TERMINATION" not in out + errors,
             "nothing is trained": "loss" not in out}
    right.update({f"says {part}": part in errors for part in parts})
    if not tap.ok(all(right.values()), name):
        tap.note(f"wrong: {', '.join(key for key, value in right.items() if not value)} (codes {code}, {codes})")
        tap.note(out[-300:] + errors)


def check_stranger(folder, launcher, size, rank):
    """Three ranks that each believe to be alone."""
    ranks = [subprocess.Popen([PROGRAM, "in.nml", "run.output=alone"], cwd=folder, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env=dict(os.environ, **{size: "3", rank: str(number)}))
             for number in range(3)]
    said = [process.communicate(timeout=60) for process in ranks]
    check(f"{launcher}: ranks that do not find each other", max(process.returncode for process in ranks),
          "".join(out for out, _ in said), "".join(errors for _, errors in said),
          ["3 ranks", f"{size} = 3", "alone", "--mpi=pmi2"])
    tap.ok(not os.path.exists(os.path.join(folder, "alone")), f"{launcher}: and write nothing")
    code, _, errors = tap.run(PROGRAM, "in.nml", "run.steps=1", "run.output=one", folder=folder,
                              environment={size: "1", rank: "0"})
    tap.ok(code == 0 and "error" not in errors, f"{launcher}: one rank alone is right")


def check_crowd(folder):
    """More threads than cores: that works, but slowly."""
    cores = len(os.sched_getaffinity(0))
    for threads, crowded in ((1, False), (max(cores, 2), True)):
        run = tiny.train(folder, f"threads-{threads}", 2, "grid.pipeline=2", "run.steps=1", f"run.threads={threads}")
        said = f"2 ranks of {threads} thread{'s' if threads > 1 else ''} share {cores} core" in run.errors
        if not tap.ok(said == crowded and run.errors.count("warning:") == crowded,
                      f"{threads} thread(s) on each of 2 ranks: {'one warning' if crowded else 'no warning'}"):
            tap.note(run.errors)


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        os.mkdir(os.path.join(folder, "folder"))
        with open(os.path.join(folder, "text"), "w", encoding="ascii") as file:
            file.write("a text\n" * 1000)
        tiny.train(folder, "kept", 1, "run.steps=1")
        for name, ranks, words, parts in STARTS:
            command = [PROGRAM, *words.split()]
            check(name, *(tap.launch(ranks, *tap.EACH_RANK, *command, folder=folder) if ranks
                          else tap.run(*command, folder=folder)), parts)
        for launcher, (size, rank) in STRANGERS.items():
            check_stranger(folder, launcher, size, rank)
        check_crowd(folder)
    tap.done()


main()
