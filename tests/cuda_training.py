#!/usr/bin/env python3
"""Training on CUDA devices against training on the CPU: losses, every gradient of the first step and all weights, on
grids of up to 2 x 2 x 2; the same bits on every pipeline, schedule and order of the device's work; and checkpoints that
pass between the two. TAP.

Under $CUDA_RUNNER, which stands in for devices, or on a computer that has some; grids with more ranks than it has are
left out."""
import json
import os
import shutil

import tap
import tiny

RUNNER = os.environ.get("CUDA_RUNNER", "").split()
LAUNCHER = os.environ.get("MPIEXEC") or ("mpiexec.mpich" if shutil.which("mpiexec.mpich") else "mpiexec")

NAMELIST = """! small enough to be interpreted
&run steps = 3 /
&model layers = 2  hidden = 32  heads = 2  sequence = 16  vocabulary = 101  init_std = 0.1 /
&pipeline microbatches = 4  microbatch_size = 1 /
&data train = 'corpus.h5'  validation = 'corpus.h5' /
&optimizer learning_rate = 1e-3  min_learning_rate = 1e-4 /
&checkpoint gradients = .true.  every = 1  keep = 9 /
"""

# Relative differences allowed between the two kinds of devices, by tensor: of the first step's gradients, of the
# weights behind the last step, of losses. In bf16 the two round products and weights of attention in other places, and
# biases, which are 0 at the start, are made of whole steps of AdamW in directions that rounding decides: they are left
# out.
ALLOWED = {"fp32": (1e-5, 1e-4, 1e-6), "bf16": (2e-2, 2e-3, 1e-3)}

# Without checkpoints between the steps, which wait for all weights to be gathered: the forwards must do so themselves.
SHARDED = ("optimizer.sharded=true", "checkpoint.every=3")

# P D T, schedule, chunks, more; each with the same D and T must have the bits of the first.
GRIDS = (
    (1, 1, 1, "1f1b", 1, ()),
    (2, 1, 1, "1f1b", 1, ()),
    (2, 1, 1, "gpipe", 1, ()),
    (2, 1, 1, "zb-v", 2, ("pipeline.balance=uniform", "pipeline.recompute=full")),
    (1, 2, 1, "1f1b", 1, ()),
    (2, 2, 1, "1f1b", 1, SHARDED),
    (1, 1, 2, "1f1b", 1, ()),
    (2, 1, 2, "gpipe", 1, ("pipeline.recompute=selective",)),
    (1, 2, 2, "1f1b", 1, ()),
    (2, 2, 2, "1f1b", 1, SHARDED),
)
SEQUENCE_PARALLEL = (2, 1, 2, "1f1b", 1, ("grid.sequence_parallel=true",))

# What is run of them, the last one among them, but with PP_LONG=1.
SHORT = {"fp32": (0, 1, 3, 4, 5, 8, 9, 10), "bf16": (0, 2, 8, 9)}


def words(grid):
    """Number of ranks, overrides."""
    P, D, T, schedule, chunks, more = grid
    return P * D * T, [f"grid.pipeline={P}", f"grid.data={D}", f"grid.tensor={T}", f"pipeline.schedule={schedule}",
                       f"pipeline.chunks={chunks}", f"pipeline.microbatches={4 // D}", *more]


def train(folder, name, device, ranks, *overrides, **environment):
    """On the CPU, or through the runner on devices."""
    os.environ["MPIEXEC"] = " ".join([*(RUNNER if device != "cpu" else []), LAUNCHER])
    return tiny.run(folder, name, ranks, f"run.device={device}", *overrides, seconds=280, **environment)


def is_missing(found):
    """Whether the run ended because there are too few devices, which only a computer may have."""
    return not RUNNER and found.code == 2 and "device = 'cuda'" in found.errors


def succeeded(found, name):
    """Says otherwise."""
    if found.code == 0 or tap.ok(False, f"{name} ends with 0, not {found.code}"):
        return True
    tap.note(found.out[-1000:] + found.errors)
    return False


def check_close(found, expected, precision, name):
    """The two kinds of devices, by what was trained."""
    gradients, weights, loss = ALLOWED[precision]
    tiny.is_close(tiny.part(found.tensors(1), "gradients/"), tiny.part(expected.tensors(1), "gradients/"), gradients,
                  f"{name}: all gradients of the first step as on the CPU")
    trained = [{path: value for path, value in tiny.part(run.tensors(3), "model/").items()
                if precision == "fp32" or not path.endswith("/bias")} for run in (found, expected)]
    tiny.is_close(*trained, weights, f"{name}: all weights behind the last step as on the CPU")
    pairs = list(zip(found.metrics("loss"), expected.metrics("loss")))
    if not tap.ok(len(pairs) == 3 and all(abs(a - b) <= loss * b for a, b in pairs), f"{name}: losses as on the CPU"):
        tap.note(pairs)


def check_grids(folder, precision):
    """The first run of each D and T against the CPU, the others against its bits."""
    first = {}
    grids = (*GRIDS, SEQUENCE_PARALLEL)
    if os.environ.get("PP_LONG") != "1":
        grids = [grids[number] for number in SHORT[precision]]
    for number, grid in enumerate(grids):
        ranks, overrides = words(grid)
        name = " ".join([precision, *map(str, grid[:4]), *grid[5]])
        overrides += [f"run.precision={precision}"]
        found = train(folder, f"{precision}-{number}", "cuda", ranks, *overrides, PTX_SEED=str(number + 1))
        if is_missing(found):
            tap.skip(name, f"this computer has fewer than {ranks} devices")
            continue
        if not succeeded(found, name):
            continue
        key = grid[1:3]
        if key in first and grid is not SEQUENCE_PARALLEL:
            tiny.is_same(found.tensors(3), first[key].tensors(3), f"{name}: the bits of another pipeline")
            tap.is_equal(found.metrics("gradient_norm"), first[key].metrics("gradient_norm"), f"{name}: norms too")
            continue
        expected = train(folder, f"{precision}-{number}-cpu", "cpu", ranks, *overrides)
        if succeeded(expected, f"{name} on the CPU"):
            check_close(found, expected, precision, name)
        first.setdefault(key, found)


def check_files(folder):
    """From the device to the CPU and back, and an evaluation on both."""
    begun = [train(folder, f"begun-{device}", device, 1, "run.stop_at=2") for device in ("cuda", "cpu")]
    for device, other, found in (("cuda", "cpu", begun[0]), ("cpu", "cuda", begun[1])):
        gone_on = train(folder, f"on-{other}", other, 1, f"checkpoint.resume={found.checkpoint(2)}",
                        f"checkpoint.directory=on-{other}")
        if succeeded(gone_on, f"from {device} to {other}"):
            tap.ok(len(gone_on.metrics("loss")) == 1, f"written on {device}, read on {other}: goes on at step 3")
            tiny.is_close(tiny.part(tiny.tensors(f"{folder}/on-{other}/step-00000003.h5"), "model/"),
                          tiny.part(tiny.tensors(f"{folder}/fp32-0/checkpoints/step-00000003.h5"), "model/"), 1e-4,
                          f"written on {device}, read on {other}: the weights of one go")
    losses = [train(folder, f"evaluate-{device}", device, 1, "run.mode=evaluate", "run.evaluate_batches=2",
                    f"checkpoint.load_weights={begun[0].checkpoint(2)}", "checkpoint.directory=''")
              .metrics("validation_loss") for device in ("cuda", "cpu")]
    if not tap.ok(len(losses[0]) == len(losses[1]) == 1 and abs(losses[0][0] / losses[1][0] - 1) < 1e-6,
                  "an evaluation on both: the same loss"):
        tap.note(losses)


def check_nonfinite(folder):
    """A weight that is not a number is found on the device too."""
    path = os.path.join(folder, "spoilt.h5")
    shutil.copy(os.path.join(folder, "begun-cuda", "checkpoints", "step-00000002.h5"), path)
    with tiny.h5py.File(path, "r+") as file:
        weight = file["model/blocks/mlp/up/weight"]
        del weight.attrs["digest"]
        weight[1, 3, 5] = float("nan")
    found = train(folder, "spoilt", "cuda", 1, f"checkpoint.resume={path}", "checkpoint.directory=''",
                  "checkpoint.every=0")
    if not tap.ok(found.code == 3 and "blocks/mlp/up/weight" in found.errors, "a NaN: exit code 3, and where it is"):
        tap.note(f"exit code {found.code}: {found.errors}")


def check_choice(folder):
    """Which devices ranks get."""
    found = train(folder, "auto", "auto", 1, "run.stop_at=1", "checkpoint.directory=''", "checkpoint.every=0")
    tap.ok("device cuda" in found.out, "device = 'auto' is the CUDA device where there is one")
    if not RUNNER:
        return
    for name, environment, words in (("fewer devices than ranks", {"PTX_DEVICES": "3"}, "4 ranks share this node"),
                                     ("one device for all ranks", {"CUDA_VISIBLE_DEVICES": "5"}, "both have the CUDA")):
        found = train(folder, "crowded", "cuda", 4, "grid.data=4", "pipeline.microbatches=1", "checkpoint.directory=''",
                      "checkpoint.every=0", **environment)
        said = [line for line in found.errors.splitlines() if "ppmodel: error" in line]
        if not tap.ok(found.code == 2 and len(said) == 1 and words in said[0] and os.uname().nodename in said[0],
                      f"{name}: exit code 2, and one message that names the node"):
            tap.note(f"exit code {found.code}: {found.errors}")


def check_tf32(folder):
    """Products of factors that are rounded."""
    losses = [train(folder, f"tf32-{precision}", "cuda", 1, f"run.precision={precision}", "run.stop_at=1",
                    "checkpoint.directory=''", "checkpoint.every=0").metrics("loss") for precision in ("fp32", "tf32")]
    if not tap.ok(len(losses[0]) == len(losses[1]) == 1 and losses[0] != losses[1]
                  and abs(losses[1][0] / losses[0][0] - 1) < 1e-3, "tf32: near the loss of fp32, and not the same"):
        tap.note(losses)


def check_trace(folder):
    """Computations by the device's clock."""
    found = train(folder, "trace", "cuda", 2, "grid.pipeline=2", "trace.first_step=2", "trace.last_step=3",
                  "checkpoint.directory=''", "checkpoint.every=0")
    with open(os.path.join(found.folder, "trace.json"), encoding="ascii") as file:
        spans = [span for span in json.load(file)["traceEvents"] if span["ph"] == "X"]
    times = {(span["name"], span["pid"], span["args"]["step"], span["args"]["microbatch"]):
             (span["ts"], span["ts"] + span["dur"]) for span in spans if span["name"] in ("FORWARD", "BACKWARD")}
    keys = [(rank, step, microbatch) for rank in (0, 1) for step in (2, 3) for microbatch in range(4)]
    tap.ok(sorted(times) == sorted((name, *key) for key in keys for name in ("FORWARD", "BACKWARD")),
           "a trace has every computation of the steps that it is of")
    tap.ok(all(times["FORWARD", 0, step, m][1] <= times["FORWARD", 1, step, m][0]
               and times["FORWARD", 1, step, m][1] <= times["BACKWARD", 1, step, m][0]
               and times["BACKWARD", 1, step, m][1] <= times["BACKWARD", 0, step, m][0]
               for step in (2, 3) for m in range(4)), "in it no computation begins before what it needs has ended")


def main():
    with tap.scratch_folder() as folder:
        with open(os.path.join(folder, "in.nml"), "w", encoding="ascii") as file:
            file.write(NAMELIST)
        tiny.write_dataset(os.path.join(folder, "corpus.h5"), 1500)
        first = train(folder, "first", "cuda", 1, "run.stop_at=1", "checkpoint.directory=''")
        if "built without CUDA" in first.errors or is_missing(first):
            tap.skip_all(first.errors.strip().splitlines()[-1])
        for precision in ALLOWED:
            check_grids(folder, precision)
        check_files(folder)
        check_nonfinite(folder)
        check_choice(folder)
        check_tf32(folder)
        check_trace(folder)
    tap.done()


main()
