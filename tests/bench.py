#!/usr/bin/env python3
"""mode = 'bench': tiny shapes, all figures of a machine, and their use by the planner and the trainer. TAP."""
import json
import os
import re

import tap
import tiny

CURVES = {"matmul_gflop": "matmul_efficiency", "message_bytes": "message_us", "sum_bytes": "tensor_sum_us"}
ALONE = ["peak_gflops", "memory_gbs", "optimizer_ns", "write_gbs", "read_gbs"]
BETWEEN = ["link_latency_us", "link_gbs", "message_overlap", "sum_ranks"]
LAYERS = ["layer_recompute", "layer_forward_gflop", "layer_input_gflop", "layer_weight_gflop", "layer_forward_ms",
          "layer_input_ms", "layer_weight_ms"]


def read_machine(path):
    """The keys of a &machine; lists of numbers."""
    with open(path, encoding="utf-8") as file:
        text = re.sub(r"^!.*$", "", file.read(), flags=re.MULTILINE)
    found = {}
    for key, value in re.findall(r"^  (\w+) = (.*?)(?=^  \w+ =|^/)", text, re.MULTILINE | re.DOTALL):
        found[key] = value.strip() if value.startswith("'") else [float(word) for word in value.split(",")]
    return found


def bench(folder, name, ranks, *overrides):
    """Measures; the figures, or none where it fails."""
    code, out, errors = tap.launch(ranks, tap.program("ppmodel"), "in.nml", "run.mode=bench", f"run.output={name}",
                                   *overrides, folder=folder, seconds=240)
    if not tap.ok(code == 0, f"{ranks} ranks{' '.join(('',) + overrides)}: measured"):
        tap.note(out + errors)
        return {}
    return read_machine(os.path.join(folder, name, "machine.nml"))


def check_figures(found, ranks):
    tap.is_equal([key for key in ALONE if not found.get(key, [0])[0] > 0], [], "what one rank does is known")
    tap.is_equal([key for key in BETWEEN if key in found], BETWEEN if ranks > 1 else [],
                 "what lies between ranks is known where there are several")
    for sizes, values in CURVES.items():
        if ranks == 1 and sizes != "matmul_gflop":
            continue
        tap.ok(len(found[sizes]) == len(found[values]) > 3 and found[sizes] == sorted(found[sizes]) and
               min(found[values]) > 0, f"{values} over {sizes}")
    tap.is_equal(max(found["matmul_efficiency"]), 1.0, "the fastest product is the peak")
    tap.ok(all(len(found[key]) == len(found["layer_kind"]) for key in LAYERS), "layers have all figures")
    timed = set(zip(found["layer_kind"], found["layer_recompute"]))
    tap.is_equal(timed, {(kind, mode) for kind in (0, 1, 2) for mode in (0, 1, 2)}, "every kind in every mode")
    tap.ok(min(found["layer_forward_ms"]) > 0 and min(found["layer_weight_ms"]) > 0, "and times")


def check_use(folder, found):
    """At the measured shapes the plan has the measured times."""
    code, out, errors = tap.run(tap.program("ppmodel"), "in.nml", "run.mode=plan", "run.output=plan",
                                "machine.preset=two/machine.nml", "grid.pipeline=2", "pipeline.balance=uniform",
                                folder=folder)
    if not tap.ok(code == 0, "the planner takes the file"):
        tap.note(out + errors)
        return
    with open(os.path.join(folder, "plan", "plan.json"), encoding="utf-8") as file:
        best = json.load(file)
    tap.ok(best["layers_measured"] and best["times_known"], "and says that times are measured")

    def seconds(kind, key):
        return next(ms / 1e3 for k, mode, ms in zip(found["layer_kind"], found["layer_recompute"], found[key])
                    if k == kind and mode == 0)

    stage = best["candidates"][0]["stages"][0]
    expected = seconds(0, "layer_forward_ms") + 3 * seconds(1, "layer_forward_ms")
    tap.ok(abs(stage["forward_seconds"] / expected - 1) < 1e-4, "a stage takes what its layers took: forward")
    expected = seconds(0, "layer_weight_ms") + 3 * seconds(1, "layer_weight_ms")
    tap.ok(abs(stage["weight_seconds"] / expected - 1) < 1e-4, "and weight gradient")
    with open(os.path.join(folder, "plan", "resolved.nml"), encoding="utf-8") as file:
        tap.ok("preset = ''" in file.read(), "resolved.nml holds the figures themselves")
    trained = tiny.run(folder, "train", 2, "machine.preset=two/machine.nml", "grid.pipeline=2", "run.steps=1")
    tap.ok(trained.code == 0 and trained.metrics("mfu"), "the trainer takes the file, and tells mfu")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        check_figures(bench(folder, "one", 1), 1)
        found = bench(folder, "two", 2, "grid.pipeline=2")
        check_figures(found, 2)
        check_use(folder, found)
        found = bench(folder, "tensor", 2, "grid.tensor=2", "grid.sequence_parallel=t")
        tap.is_equal(found.get("layer_tensor"), [2.0], "times of shares of layers say of how many")
    tap.done()


main()
