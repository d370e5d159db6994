#!/usr/bin/env python3
"""Memory: how many activation sets the ranks hold at once, counted in the trace; what the start-up says ranks hold;
and what they come to hold. TAP."""
import json
import os
import re

import tap
import tiny

P = 4
MIB = 1 << 20
# One block in each stage, with activations of some 2 MiB.
SIZE = ["grid.pipeline=4", "model.layers=4", "model.hidden=128", "model.sequence=128", "pipeline.microbatch_size=2",
        "pipeline.balance=uniform", "run.steps=2"]

# The most activation sets on pipeline rank r with M microbatches: one for each forward whose backward is not done.
SETS = {"1f1b": lambda r, M: min(M, P - r), "gpipe": lambda r, M: M}


def sets_in_trace(path):
    """By rank, the most forwards begun whose backward has not ended."""
    with open(path, encoding="ascii") as file:
        spans = [span for span in json.load(file)["traceEvents"] if span["ph"] == "X"]
    most = {}
    for rank in {span["pid"] for span in spans}:
        events = []
        for span in spans:
            if span["pid"] == rank and span["name"] in ("FORWARD", "BACKWARD"):
                forward = span["name"] == "FORWARD"
                events.append((span["ts"], 1) if forward else (span["ts"] + span["dur"], -1))
        held = most[rank] = 0
        for _, change in sorted(events):
            held += change
            most[rank] = max(most[rank], held)
        if held != 0:
            most[rank] = None
    return [most.get(rank) for rank in range(P)]


class Sizes:
    """Bytes that each rank was said to hold at the start, and the most that any one held."""

    def __init__(self, folder, schedule, microbatches, recompute="none"):
        name = f"{schedule}-{microbatches}-{recompute}"
        found = tiny.train(folder, name, P, *SIZE, f"pipeline.schedule={schedule}",
                           f"pipeline.microbatches={microbatches}", f"pipeline.recompute={recompute}",
                           "trace.first_step=2", "trace.last_step=2", "checkpoint.directory=''")
        units = {"bytes": 1, "KiB": 1024, "MiB": MIB}
        self.told = [float(number) * units[unit]
                     for number, unit in re.findall(r"rank \d+ holds ([0-9.]+) (\w+)", found.out)]
        self.peak = max(found.metrics("peak_memory_bytes"))
        expected = [SETS[schedule](rank, microbatches) for rank in range(P)]
        tap.is_equal(sets_in_trace(os.path.join(found.folder, "trace.json")), expected,
                     f"{schedule}, {microbatches} microbatches, recompute {recompute}: activation sets on each rank")


def is_near(found, expected, share, slack, name):
    """Bytes that agree to a share of the expected, or to `slack` MiB."""
    if not tap.ok(abs(found - expected) <= max(share * abs(expected), slack * MIB), name):
        tap.note(f"found {found / MIB:.2f} MiB, expected {expected / MIB:.2f}")


def check_microbatches(sizes):
    """1F1B needs the same for any number of microbatches; GPipe a set more for each."""
    for rank in range(P):
        few, some, many = (sizes["gpipe", M].told[rank] for M in (4, 8, 16))
        one_set = (many - some) / 8
        tap.ok(one_set > 1.5 * MIB, f"rank {rank}: a set is not small")
        is_near(some - few, 4 * one_set, 0.05, 0, f"rank {rank}: gpipe grows by a set for each microbatch")
        is_near(sizes["1f1b", 16].told[rank], sizes["1f1b", 4].told[rank], 0, 0.06, f"rank {rank}: 1f1b does not grow")
        saved = many - sizes["1f1b", 16].told[rank]
        is_near(saved, (16 - (P - rank)) * one_set, 0.03, 0, f"rank {rank}: 1f1b holds {P - rank} of 16 sets")


def check_measured(sizes):
    """The memory predicted is the memory used: differences, so that libraries do not count."""
    small = sizes["1f1b", 4]
    tap.ok(small.peak > max(small.told), "the peak holds what was told, and the libraries")
    for key in sizes:
        is_near(sizes[key].peak - small.peak, max(sizes[key].told) - max(small.told), 0.1, 4,
                f"{key[0]}, {key[1]} microbatches{', recompute ' + key[2] if len(key) > 2 else ''}: as predicted")


def check_predicted(folder):
    """What each rank came to hold beside the program itself, of a model so large that libraries matter little."""
    found = tiny.train(folder, "large", 2, "grid.pipeline=2", "model.layers=4", "model.hidden=512", "model.heads=8",
                       "model.sequence=128", "pipeline.schedule=gpipe", "run.steps=2", "checkpoint.directory=''")
    with open(os.path.join(found.folder, "diagnosis.json"), encoding="ascii") as file:
        ranks = json.load(file)["ranks"]
    for rank in ranks:
        is_near(rank["measured_bytes"], rank["predicted_bytes"], 0.05, 0, f"rank {rank['pipeline']}: as predicted")
    tap.is_equal(len(re.findall(r"memory of p\d .* MiB predicted, .* MiB measured", found.out)), 2, "and told")


def check_recompute(sizes):
    for rank in range(P):
        none, selective, full = (sizes[key].told[rank] for key in (("gpipe", 16), ("gpipe", 16, "selective"),
                                                                  ("gpipe", 16, "full")))
        tap.ok(full < 0.5 * none and full < selective < none, f"rank {rank}: recomputation saves memory")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        Sizes(folder, "1f1b", 2)
        sizes = {(schedule, M): Sizes(folder, schedule, M) for schedule in ("1f1b", "gpipe") for M in (4, 8, 16)}
        for recompute in ("selective", "full"):
            sizes["gpipe", 16, recompute] = Sizes(folder, "gpipe", 16, recompute)
        check_microbatches(sizes)
        check_measured(sizes)
        check_recompute(sizes)
        check_predicted(folder)
    tap.done()


main()
