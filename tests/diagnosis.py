#!/usr/bin/env python3
"""What a training says about itself: where the time went, and each thing that goes wrong with pipelines, provoked. TAP.
Errors far from their cause are the matter of nonfinite.py."""
import json
import os
import re

import tap
import tiny

P = 2
# Blocks that take some milliseconds, so that the times of single ones mean something.
SIZE = [f"grid.pipeline={P}", "model.layers=6", "model.hidden=128", "model.sequence=64", "pipeline.microbatch_size=4",
        "pipeline.microbatches=4", "run.steps=8", "checkpoint.directory=''"]
WHY = ("fill", "drain", "imbalance", "communication")


def choose(*overrides):
    """SIZE with overrides, of which the last of each key holds."""
    chosen = dict(word.split("=", 1) for word in [*SIZE, *overrides])
    return [f"{key}={value}" for key, value in chosen.items()]


class Told:
    """What the run in `folder`/name says of itself."""

    def __init__(self, folder, name, *overrides):
        self.run = tiny.train(folder, name, P, *choose(*overrides))
        self.findings = {}
        path = os.path.join(self.run.folder, "diagnosis.json")
        if tap.ok(os.path.exists(path), f"{name}: diagnosis.json is written"):
            with open(path, encoding="ascii") as file:
                self.all = json.load(file)
            self.findings = {finding["what"]: finding for finding in self.all["findings"]}

    def finding(self, what):
        found = self.findings.get(what, {"cause": "", "change": "", "gain": 0, "figure": 0})
        tap.ok(what in self.findings, f"{what} is found")
        tap.ok(f"finding      {what}: {found['cause']}" in self.run.out, "and told")
        return found


def changes(text):
    """The keys that a finding proposes, as overrides."""
    return [f"pipeline.{key}={value.strip()}".replace("'", "").replace(", ", ",")
            for key, value in re.findall(r"(\w+) = ('[^']*'|\d+(?:, \d+)*)", text)]


def ends_idle(told):
    """The part of the time in which the pipeline fills and drains."""
    idle = sum(rank["fill"] + rank["drain"] for rank in told.all["ranks"])
    return idle / (P * told.all["makespan"])


def check_balance(folder):
    told = Told(folder, "uneven", "pipeline.balance=explicit", "pipeline.stage_layers=1,5")
    for p, rank in enumerate(told.all["ranks"]):
        idle = sum(rank[why] for why in WHY)
        tap.ok(rank["pipeline"] == p and abs(rank["busy"] + idle - told.all["makespan"]) < 1e-6 and rank["busy"] > 0,
               f"rank {p}: what it did fills the time")
    busy = sum(rank["busy"] for rank in told.all["ranks"])
    tap.ok(abs(1 - busy / (P * told.all["makespan"]) - told.all["bubble"]) < 1e-6, "the bubble is what is not computed")
    tap.ok(0 < told.all["latency"] < told.all["makespan"] <= told.all["seconds"] and 2 <= told.all["step"] <= 8,
           "a microbatch is faster than all, and all of them than the step")
    tap.ok(told.run.out.count("\nstep ") >= 8 + 2 and told.run.out.count("the pipeline computes") == 2,
           "told after some steps and at the end")
    finding = told.finding("balance")
    tap.ok("rank 1 computes" in finding["cause"] and finding["figure"] > 0.2 and finding["gain"] > 0.1,
           f"the slow rank is named: {finding['cause']}")
    proposed = changes(finding["change"])
    if tap.ok(len(proposed) == 2 and proposed[0] == "pipeline.balance=explicit", f"a cut: {finding['change']}"):
        mended = Told(folder, "mended", *proposed)
        tap.ok("balance" not in mended.findings or mended.findings["balance"]["figure"] < finding["figure"] / 2,
               "it mends that")


def check_quiet(folder):
    quiet = tiny.train(folder, "quiet", P, *choose("run.quiet=true"))
    tap.ok(quiet.out == "" and quiet.errors == "" and len(quiet.metrics("loss")) == 8, "a quiet run says nothing")


def check_few(folder):
    told = Told(folder, "few", "pipeline.microbatches=1")
    finding = told.finding("few microbatches")
    tap.ok(told.all["bubble"] > 0.4 and abs(finding["figure"] - told.all["bubble"]) < 1e-6, "one microbatch, half idle")
    mended = Told(folder, "more", *changes(finding["change"].split(" with ")[0]))
    tap.ok(ends_idle(mended) < ends_idle(told) - 0.1, f"mended by {finding['change']}")


def check_many(folder):
    """By a curve of efficiencies that is given."""
    told = Told(folder, "many", "pipeline.microbatches=24", "pipeline.microbatch_size=1", "machine.peak_gflops=100",
                "machine.matmul_gflop=0.001,0.1", "machine.matmul_efficiency=0.1,0.9")
    finding = told.finding("many microbatches")
    tap.ok(finding["figure"] > 0.1 and finding["gain"] > 0.1, f"larger ones: {finding['change']}")
    proposed = dict(word.split("=") for word in changes(finding["change"]))
    tap.is_equal(int(proposed["pipeline.microbatch_size"]) * int(proposed["pipeline.microbatches"]), 24,
                 "of the same sequences")


def check_memory(folder):
    large = ["pipeline.schedule=gpipe", "pipeline.microbatches=16", "plan.memory_gib=0.02"]
    result = tiny.run(folder, "large", P, *choose(*large))
    tap.is_equal(result.code, 2, "more memory than allowed ends with 2")
    tap.ok("&plan memory_gib = 0.02" in result.errors and result.errors.count("\n") == 1, "one message")
    cut = ["pipeline.balance=explicit", "pipeline.stage_layers=3,3"]
    explicit = tiny.run(folder, "explicit", P, *choose(*large, *cut))
    told = "which is more than &plan memory_gib = 0.02" in explicit.errors
    tap.ok(explicit.code == 2 and told, "also of a given cut")
    found = re.search(r"finding +memory: (.*)\n +change: (.*)\n", result.out)
    if tap.ok(found and "activations of up to 16 microbatches" in found[1], "the cause is told"):
        proposed = changes(found[2].split(":")[0])
        tap.ok(proposed, f"and a change: {found[2]}")
        mended = tiny.run(folder, "smaller", P, *choose(*large, *proposed))
        tap.is_equal(mended.code, 0, "with which it fits")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        tiny.write_dataset(os.path.join(folder, "corpus.h5"), 40000)
        check_balance(folder)
        check_quiet(folder)
        check_few(folder)
        check_many(folder)
        check_memory(folder)
    tap.done()


main()
