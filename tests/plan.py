#!/usr/bin/env python3
"""mode = 'plan' end to end: its numbers against the trainer's own and against arithmetic done here, its files as inputs
of training, and a search over ten thousand devices. TAP."""
import json
import os
import random
import re
import time

import tap
import tiny

PARTS = ("weights", "gradients", "moments", "activations", "buffers", "workspace")

# A machine whose times are easy to compute: 1 Gflop/s whatever the size, memory and links that cost nothing.
PLAIN = ["machine.peak_gflops=1"]
SEARCHED = [*PLAIN, "machine.memory_gbs=10", "machine.link_gbs=1", "machine.link_latency_us=5"]


def plan(folder, name, *overrides, seconds=120, ranks=1):
    """Runs the planner; its exit code, output, messages and plan.json (None where there is none)."""
    code, out, errors = tap.launch(ranks, tap.program("ppmodel"), "in.nml", "run.mode=plan", f"run.output={name}",
                                   *overrides, folder=folder, seconds=seconds)
    path = os.path.join(folder, name, "plan.json")
    found = None
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    return code, out, errors, found


def told_memory(out):
    """The parts that a verbose run says each rank holds, by rank."""
    pattern = r"memory +rank (\d+): " + ", ".join(rf"{part} (\d+)" for part in PARTS) + " bytes"
    return {int(match[0]): dict(zip(PARTS, map(int, match[1:]))) for match in re.findall(pattern, out)}


def check_memory(folder):
    """Every byte that the planner counts for a pipeline rank is one that the trainer allocates there, and no other."""
    cases = [(1, 1, 1, "1f1b", 1, "none", ()), (2, 1, 1, "gpipe", 1, "selective", ()),
             (3, 1, 1, "zb-h1", 1, "full", ("model.tied_embeddings=.false.",)),
             (2, 2, 1, "interleaved", 2, "none", ()), (2, 1, 2, "zb-v", 2, "none", ("grid.sequence_parallel=t",)),
             (1, 2, 2, "1f1b", 1, "full", ()), (2, 1, 1, "v-min", 2, "selective", ("pipeline.microbatches=7",)),
             (7, 1, 1, "eager-1f1b", 1, "none", ("pipeline.microbatches=5",)),
             (2, 2, 1, "1f1b", 1, "selective", ("run.precision=bf16",)),
             (1, 3, 1, "1f1b", 1, "none", ("optimizer.sharded=t",)),
             (2, 2, 1, "zb-v", 2, "none", ("optimizer.sharded=t", "run.precision=bf16"))]
    for p, d, t, schedule, chunks, recompute, more in cases:
        overrides = [f"grid.pipeline={p}", f"grid.data={d}", f"grid.tensor={t}", f"pipeline.schedule={schedule}",
                     f"pipeline.chunks={chunks}", f"pipeline.recompute={recompute}", *more]
        name = f"{p}x{d}x{t}-{schedule}-{recompute}{len(more)}"
        code, out, errors, found = plan(folder, f"plan-{name}", *overrides)
        if not tap.ok(code == 0, f"{name}: planned"):
            tap.note(out + errors)
            continue
        trained = tiny.run(folder, name, p * d * t, *overrides, "run.steps=1", "run.verbose=t",
                           "checkpoint.directory=''")
        told = told_memory(trained.out)
        expected = [told.get(rank * d * t) for rank in range(p)]
        planned = [{part: memory[part] for part in PARTS} for memory in found["candidates"][0]["memory_bytes"]]
        if "optimizer.sharded=t" in more: # what any data rank holds at most
            tap.ok(all(0 <= rank[part] - own[part] <= (1 << 20 if part in ("weights", "moments", "buffers") else 0)
                       for rank, own in zip(planned, expected) for part in PARTS),
                   f"{name}: sharded, at least the bytes of every part and not much more")
        else:
            tap.is_equal(planned, expected, f"{name}: the bytes of every part on every pipeline rank")


def operations(rows, hidden, ffn, sequence, vocabulary):
    """Floating-point operations of forward, input and weight gradient of a block and of the head."""
    matrices = 2 * rows * (4 * hidden * hidden + 2 * hidden * ffn)
    attention = 2 * rows * sequence * hidden
    product = 2 * rows * hidden * vocabulary
    return (matrices + attention, matrices + 2.5 * attention, matrices), (product, product, product)


def check_report(folder):
    """One configuration: times that follow from the operations alone, and the closed forms of the bubble."""
    code, out, errors, found = plan(folder, "report", "model.layers=8", "grid.pipeline=4", "pipeline.balance=uniform",
                                    "pipeline.schedule=gpipe", "pipeline.microbatches=6", *PLAIN)
    tap.is_equal((code, errors), (0, ""), "one configuration is reported on, by one rank whatever the grid")
    best = found["candidates"][0]
    block, head = operations(3 * tiny.SEQUENCE, tiny.HIDDEN, 4 * tiny.HIDDEN, tiny.SEQUENCE, tiny.VOCABULARY)
    lookup = 3 * tiny.SEQUENCE * tiny.HIDDEN
    stages = [2 * sum(block) + 3 * lookup, 2 * sum(block), 2 * sum(block)]
    expected = 2 * block[1] / 1e9
    tap.ok(abs(best["stages"][1]["input_seconds"] / expected - 1) < 1e-9, "a stage's input gradient")
    # GPipe computes the head again in the backward, since several microbatches are under way.
    stages.append(2 * sum(block) + sum(head) + head[0])
    slowest, total = max(stages) / 1e9, sum(stages) / 1e9
    # The slowest stage is the last: fill and drain lead through all, in between it works alone.
    tap.ok(abs(best["makespan_seconds"] / (total + 5 * slowest) - 1) < 1e-9, "GPipe's time: sum + (M - 1) * slowest")
    tap.ok(abs(best["bubble"] - (1 - 6 * total / 4 / (total + 5 * slowest))) < 1e-9, "and its bubble")
    flops = 6 * (8 * sum(block) + sum(head) + 3 * lookup)
    tap.ok(abs(best["tflops_per_device"] * 1e12 * best["step_seconds"] * 4 / flops - 1) < 1e-9,
           "model operations per second and device")
    tap.ok(abs(best["mfu"] - best["tflops_per_device"] * 1e12 / 1e9) < 1e-6, "mfu")
    tap.ok(abs(best["tokens_per_second"] * best["step_seconds"] / (6 * 3 * tiny.SEQUENCE) - 1) < 1e-6, "tokens")
    tap.ok(re.search(r"^r3: .*B5", out, re.MULTILINE), "the timeline is drawn")
    many = plan(folder, "many", "model.layers=8", "grid.pipeline=4", "pipeline.microbatches=1048576",
                "pipeline.schedule=gpipe", *PLAIN)
    tap.ok(many[0] == 0 and abs(many[3]["candidates"][0]["bubble"]) < 0.2, "a million microbatches are no difficulty")
    whole, carried = (plan(folder, f"carried-{m}", "model.layers=8", "grid.pipeline=4", "pipeline.balance=uniform",
                           "pipeline.schedule=gpipe", f"pipeline.microbatches={m}", *PLAIN)[3]["candidates"][0]
                      for m in (60000, 80000))
    ratio = (carried["makespan_seconds"] - whole["makespan_seconds"]) / (20000 * slowest)
    tap.ok(abs(ratio - 1) < 1e-6, "a table that is carried on goes on as the whole one")
    sets = [memory["activations"] for memory in whole["memory_bytes"]]
    more = [memory["activations"] for memory in carried["memory_bytes"]]
    tap.ok(all(abs(3 * b - 4 * a) < 1e-3 * a for a, b in zip(sets, more)), "and so does its memory")


def check_winner(folder, best):
    """No configuration that is reported on alone is faster than the search's best; the best is as the search says."""
    chunks = {"interleaved": 2, "looped-bfs": 2, "zb-v": 2, "v-half": 2, "v-min": 2}
    choices = [(p, t, schedule, size, recompute) for p, t in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1))
               for schedule in ("gpipe", "1f1b", "eager-1f1b", "zb-h1", *chunks) for size in (1, 2, 3, 6)
               for recompute in ("none", "full") if p > 1 or schedule == "1f1b"]
    faster = []
    for p, t, schedule, size, recompute in random.Random(3).sample(choices, 24):
        found = plan(folder, "alone", f"grid.pipeline={p}", f"grid.data={4 // p // t}", f"grid.tensor={t}",
                     f"pipeline.schedule={schedule}", f"pipeline.chunks={chunks.get(schedule, 1)}",
                     f"pipeline.microbatch_size={size}", "pipeline.microbatches=0", "pipeline.global_batch=24",
                     f"pipeline.recompute={recompute}", *SEARCHED)[3]["candidates"][0]
        if found["step_seconds"] < best["step_seconds"] * (1 - 1e-9):
            faster.append((p, t, schedule, size, recompute))
    tap.is_equal(faster, [], "nothing else that was tried is faster")
    again = plan(folder, "again", *(f"grid.{key}={best[key]}" for key in ("pipeline", "data", "tensor")),
                 *(f"pipeline.{key}={best[key]}" for key in ("schedule", "chunks", "microbatch_size", "microbatches",
                                                             "recompute")),
                 f"optimizer.sharded={str(best['sharded']).lower()}", *SEARCHED)[3]["candidates"][0]
    tap.is_equal(again["step_seconds"], best["step_seconds"], "the best alone is as in the search")


def chosen(path):
    """The choices of a candidate as an input spells them."""
    with open(path, encoding="utf-8") as file:
        found = dict(re.findall(r"^  (\w+) = '?([^'\s]+)'?", file.read(), re.MULTILINE))
    return {key: type(value)(found[key]) for key, value in (
        ("pipeline", 1), ("data", 1), ("tensor", 1), ("schedule", ""), ("chunks", 1), ("microbatch_size", 1),
        ("microbatches", 1), ("recompute", ""))} | {"sharded": found["sharded"] == ".true."}


def check_written(folder):
    """best.nml of a configuration is that configuration."""
    _, _, _, found = plan(folder, "given", "grid.pipeline=2", "grid.tensor=2", "pipeline.schedule=interleaved",
                          "pipeline.chunks=3", "pipeline.microbatches=5", "pipeline.recompute=full", *PLAIN)
    written = chosen(os.path.join(folder, "given", "best.nml"))
    tap.is_equal(written, {"pipeline": 2, "data": 1, "tensor": 2, "schedule": "interleaved", "chunks": 3,
                           "microbatch_size": 3, "microbatches": 5, "recompute": "full", "sharded": False},
                 "best.nml says all of it")
    tap.is_equal({key: found["candidates"][0][key] for key in written}, written, "and so does plan.json")


def check_search(folder):
    """A search whose winner trains as it is written, on as many ranks, with its CSV too."""
    code, out, errors, found = plan(folder, "search", "plan.devices=4", "pipeline.microbatches=0",
                                    "pipeline.schedule=interleaved", "pipeline.chunks=3", "pipeline.recompute=full",
                                    "pipeline.global_batch=24", *SEARCHED)
    if not tap.ok(code == 0, "a search over 4 devices"):
        tap.note(out + errors)
        return
    candidates = found["candidates"]
    times = [c["step_seconds"] for c in candidates]
    tap.ok(len(times) == 10 and times == sorted(times), "ten candidates, the best first")
    tap.ok(all(c["pipeline"] * c["data"] * c["tensor"] == 4 and
               c["microbatches"] * c["microbatch_size"] * c["data"] == 24 for c in candidates),
           "each fills the devices and the batch")
    kinds = {entry["kind"]: entry["candidate"] for entry in found["best_of"]}
    tap.ok({"schedule gpipe", "schedule zb-v", "schedule interleaved", "recompute full", "pipeline 4", "pipeline 2",
            "tensor 2", "sharded true", "sharded false"} <= kinds.keys(), "the best of each kind")
    tap.ok(all(c["step_seconds"] >= times[0] for c in kinds.values()), "none of them is faster than the best")
    tap.ok(kinds["recompute full"]["peak_memory_bytes"] > 0 and kinds["pipeline 4"]["bubble"] > 0, "with figures")
    reasons = {entry["reason"]: entry["count"] for entry in found["rejected"]}
    tap.is_equal(found["tried"] - sum(reasons.values()), found["possible"], "every configuration is accounted for")
    check_winner(folder, candidates[0])
    written = chosen(os.path.join(folder, "search", "best.nml"))
    tap.is_equal(written, {key: candidates[0][key] for key in written}, "best.nml is the first candidate")
    for number, (name, overrides) in enumerate({
            "best": (), "csv": ("pipeline.schedule=csv", "pipeline.schedule_file=search/schedule.csv")}.items()):
        code, out, errors = tap.launch(4, tap.program("ppmodel"), "search/best.nml", f"run.output={name}",
                                       "run.steps=2", *overrides, folder=folder)
        if not tap.ok(code == 0, f"{('best.nml', 'schedule.csv')[number]} trains on 4 ranks"):
            tap.note(out + errors)


def check_limits(folder):
    """What does not fit is rejected, and the nearest miss told."""
    batch = ["pipeline.microbatches=0", "pipeline.global_batch=24", "plan.devices=2", *PLAIN]
    free = plan(folder, "free", *batch)[3]
    least = min(entry["candidate"]["peak_memory_bytes"] for entry in free["best_of"])
    limit = least * 1.05
    code, _, _, found = plan(folder, "tight", *batch, f"plan.memory_gib={limit / 2**30:.9f}")
    tap.ok(code == 0 and all(c["peak_memory_bytes"] <= limit for c in found["candidates"]), "what is proposed fits")
    tap.ok(found["possible"] < free["possible"], "less is possible")
    code, _, errors, found = plan(folder, "none", *batch, "plan.memory_gib=1e-5")
    tap.ok(code == 2 and "no configuration" in errors and not found["candidates"], "nothing fits: exit code 2")
    tap.ok(found["nearest_miss"]["peak_memory_bytes"] > 1e-5 * 2**30, "the nearest miss is told")
    code, out, _, found = plan(folder, "over", "grid.pipeline=2", "pipeline.schedule=gpipe", "pipeline.microbatches=16",
                               f"plan.memory_gib={limit / 2**30:.9f}", *PLAIN)
    memory = [finding for finding in found["findings"] if finding["what"] == "memory"]
    tap.ok(code == 0 and memory and "recompute" in memory[0]["change"] + out, "a configuration that does not fit")


def check_findings(folder):
    """The diagnosis of what was made wrong on purpose."""
    def findings(name, *overrides):
        found = plan(folder, name, *overrides)[3]
        return {finding["what"]: finding for finding in found["findings"]}, found["candidates"][0]

    found, lopsided = findings("lopsided", "model.layers=12", "grid.pipeline=4", "pipeline.balance=explicit",
                               "pipeline.stage_layers=6,2,2,2", "pipeline.microbatches=40", *PLAIN)
    change = found["balance"]["change"]
    tap.ok(re.search(r"stage_layers = 3, 3, 3, 3", change), "unequal stages: the cut that mends them")
    _, even = findings("even", "model.layers=12", "grid.pipeline=4", "pipeline.balance=explicit",
                       "pipeline.stage_layers=3,3,3,3", "pipeline.microbatches=40", *PLAIN)
    gain = 1 - even["step_seconds"] / lopsided["step_seconds"]
    tap.ok(abs(found["balance"]["gain"] - gain) < 0.05, "and what it brings")
    found, _ = findings("few", "model.layers=12", "grid.pipeline=4", "pipeline.microbatches=4",
                        "pipeline.microbatch_size=8", "pipeline.balance=uniform", *PLAIN)
    tap.ok("microbatch_size = 1" in found["few microbatches"]["change"], "too few microbatches: smaller ones")
    found, _ = findings("many", "model.layers=12", "grid.pipeline=2", "pipeline.microbatches=64",
                        "pipeline.microbatch_size=1", "machine.matmul_gflop=0.0001,0.01",
                        "machine.matmul_efficiency=0.2,0.9", *PLAIN)
    tap.ok("microbatch_size" in found["many microbatches"]["change"], "too many: larger ones")
    found, _ = findings("slow", "model.layers=12", "grid.pipeline=4", "pipeline.microbatches=16",
                        "machine.link_gbs=0.0005", *PLAIN)
    tap.ok("eager-1f1b" in found["traffic"]["change"], "slow links: a schedule that hides messages")


def check_mistakes(folder):
    """Bad input: one message, exit code 2."""
    for overrides, words in {
            ("plan.devices=4",): "global_batch",
            ("plan.devices=4", "pipeline.microbatches=0", "pipeline.global_batch=8"): "needs a machine",
            ("machine.preset=h100_sxm",): "did you mean 'h100-sxm'?",
            ("machine.preset=absent.nml",): "absent.nml",
            ("machine.sum_bytes=1,2",): "sum_bytes has 2 values"}.items():
        code, _, errors, _ = plan(folder, "mistake", *overrides)
        tap.ok(code == 2 and words in errors and errors.count("error") == 1, f"{' '.join(overrides)}: refused")
    with open(os.path.join(folder, "bad.nml"), "w", encoding="ascii") as file:
        file.write("&machine link_gb = 5 /\n")
    code, _, errors, _ = plan(folder, "mistake", "machine.preset=bad.nml", ranks=2)
    tap.ok(code == 2 and "bad.nml:1:10: error" in errors and errors.count("error") == 1,
           "a mistake in a machine's file is shown where it is, once")


def check_large(folder):
    """Ten thousand devices and a trillion parameters, in less than a minute."""
    begin = time.time()
    code, out, errors, found = plan(folder, "large", "model.layers=128", "model.hidden=25600", "model.heads=160",
                                    "model.sequence=2048", "model.vocabulary=51200", "pipeline.microbatches=0",
                                    "pipeline.global_batch=3000", "plan.devices=10000", "machine.preset=h100-sxm",
                                    "run.precision=tf32", "run.device=cuda")
    seconds = time.time() - begin
    if not tap.ok(code == 0, "a trillion parameters on 10,000 devices"):
        tap.note(out + errors)
        return
    tap.ok(seconds < 60, "planned in less than a minute")
    best = found["candidates"][0]
    tap.ok(best["peak_memory_bytes"] <= 74.5 * 2**30, "the best fits into a device")
    tap.ok(0.05 < best["mfu"] < 0.75, "and runs below the assumed efficiency")
    tap.ok(best["tensor"] in (1, 2, 4, 8), "tensor ranks stay within a node of 8")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        check_memory(folder)
        check_report(folder)
        check_written(folder)
        check_search(folder)
        check_limits(folder)
        check_findings(folder)
        check_mistakes(folder)
        check_large(folder)
    tap.done()


main()
