#!/usr/bin/env python3
"""jobs/study.py with a tiny model: its points and what they override, its table against the files of the runs, points
that are done and left alone, plots, and mistakes in a study. TAP."""
import csv
import json
import os
import statistics
import sys

import tap
import tiny

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "jobs", "study.py")
STEPS, WARM_UP = 5, 2
CORES = len(os.sched_getaffinity(0))

STUDY = f"""[study]
axis = AXIS
points = POINTS
input = in.nml
output = OUTPUT
program = {tap.program("ppmodel")}
machine = none
warm_up = {WARM_UP}
MORE
[settings]
run.steps = {STEPS}
pipeline.microbatch_size = 1
"""


def study(folder, output, axis, points, more="", change=lambda text: text):
    """Writes a study and runs it; exit code, what is said, and the table by point."""
    text = STUDY.replace("AXIS", axis).replace("POINTS", points).replace("OUTPUT", output).replace("MORE", more)
    with open(os.path.join(folder, f"{output}.ini"), "w", encoding="ascii") as file:
        file.write(change(text))
    code, out, errors = tap.run(sys.executable, SCRIPT, f"{output}.ini", folder=folder, seconds=200,
                                environment={"OMP_NUM_THREADS": "1"})
    path = os.path.join(folder, output, "study.csv")
    rows = {}
    if os.path.exists(path):
        with open(path, encoding="ascii", newline="") as file:
            rows = {row["point"]: row for row in csv.DictReader(file)}
    return code, out + errors, rows


def metrics(folder, output, point):
    return tiny.Run(os.path.join(folder, output, point), None, "", "").metrics()


def close(found, expected):
    return abs(float(found) - expected) <= 1e-9 * abs(expected)


def check_strong(folder):
    code, out, rows = study(folder, "strong", "strong", "1x1x1 2x1x1 1x3x1", "global_batch = 12")
    if not tap.ok(code == 0 and list(rows) == ["1x1x1", "2x1x1", "1x3x1"], "strong: three points"):
        tap.note(out)
        return
    for point, (ranks, microbatches) in {"1x1x1": (1, 12), "2x1x1": (2, 12), "1x3x1": (3, 4)}.items():
        row, steps = rows[point], metrics(folder, "strong", point)[WARM_UP:]
        counts = [int(row[key]) for key in ("ranks", "microbatches", "steps")]
        tap.is_equal(counts, [ranks, microbatches, STEPS - WARM_UP],
                     f"{point}: ranks, microbatches and steps that count")
        tap.ok(close(row["step_seconds"], statistics.median(step["seconds"] for step in steps))
               and close(row["bubble"], statistics.median(step["bubble"] for step in steps))
               and close(row["memory_bytes"], max(step["peak_memory_bytes"] for step in steps)),
               f"{point}: medians of step and bubble, largest memory")
        speed = [statistics.median(step["tokens_per_second"] for step in metrics(folder, "strong", name)[WARM_UP:])
                 for name in ("1x1x1", point)]
        tap.ok(close(row["speedup"], speed[1] / speed[0]) and close(row["efficiency"], speed[1] / speed[0] / ranks)
               and float(row["ideal_speedup"]) == ranks, f"{point}: speed-up and efficiency")
        tap.is_equal(row["oversubscribed"], "yes" if ranks > CORES else "no", f"{point}: oversubscribed or not")
        with open(os.path.join(folder, "strong", point, "plan", "plan.json"), encoding="ascii") as file:
            plan = json.load(file)["candidates"][0]
        tap.ok(close(row["planned_bubble"], plan["bubble"])
               and int(row["planned_memory_bytes"]) == max(rank["total"] for rank in plan["memory_bytes"])
               and row["planned_step_seconds"] == "", f"{point}: as planned; no times without a machine")
    tap.ok(close(rows["2x1x1"]["bubble_1f1b"], 1 / 13), "the bubble in closed form")
    tap.ok(("1x3x1 *" in out) == (3 > CORES), "the printed table marks what is oversubscribed")


def check_done(folder):
    """Only what is new or different runs again."""
    before = metrics(folder, "strong", "1x1x1"), metrics(folder, "strong", "2x1x1")
    code, out, rows = study(folder, "strong", "strong", "1x1x1 2x1x1 1x2x1", "global_batch = 12")
    tap.ok(code == 0 and out.count("done before") == 2 and len(rows) == 3, "done points are left alone, a new one runs")
    tap.ok(before == (metrics(folder, "strong", "1x1x1"), metrics(folder, "strong", "2x1x1")), "with the same figures")
    code, out, rows = study(folder, "strong", "strong", "1x1x1 2x1x1", "global_batch = 6")
    tap.ok(code == 0 and "done before" not in out and rows["2x1x1"]["microbatches"] == "6", "others run anew")
    os.truncate(os.path.join(folder, "strong", "1x1x1", "metrics.jsonl"), 0)
    os.rename(os.path.join(folder, "strong", "1x1x1", "done.json"),
              os.path.join(folder, "strong", "1x1x1", "started.json"))
    code, out, rows = study(folder, "strong", "strong", "1x1x1 2x1x1", "global_batch = 6")
    tap.ok(code == 0 and out.count("done before") == 1 and rows["1x1x1"]["steps"] == str(STEPS - WARM_UP),
           "and what was broken off")


def check_axes(folder):
    code, _, rows = study(folder, "weak", "weak", "1x1x1 1x2x1", "global_batch = 4")
    tokens = [metrics(folder, "weak", point)[-1]["tokens"] for point in ("1x1x1", "1x2x1")]
    tap.is_equal((code, tokens), (0, [STEPS * 4 * tiny.SEQUENCE, STEPS * 8 * tiny.SEQUENCE]),
                 "weak: the batch grows with the ranks")
    code, _, rows = study(folder, "microbatches", "microbatches", "2 7", "grid = 2x1x1")
    tap.ok(code == 0 and [row["microbatches"] for row in rows.values()] == ["2", "7"]
           and close(rows["7"]["bubble_1f1b"], 1 / 8) and float(rows["2"]["bubble"]) > 0, "microbatches")
    code, _, rows = study(folder, "either", "pipeline-tensor", "2x1x1 1x1x2", "global_batch = 4")
    tap.ok(code == 0 and [(row["pipeline"], row["tensor"]) for row in rows.values()] == [("2", "1"), ("1", "2")],
           "pipeline against tensor")
    code, _, rows = study(folder, "schedules", "schedules", "1f1b zb-v:2", "grid = 2x1x1")
    tap.ok(code == 0 and [(row["schedule"], row["chunks"]) for row in rows.values()] == [("1f1b", "1"), ("zb-v", "2")]
           and float(rows["zb-v:2"]["planned_bubble"]) < float(rows["1f1b"]["planned_bubble"]), "schedules")


def check_machine(folder):
    """The planner's times need a machine; the bench measures it once."""
    with open(os.path.join(folder, "machine.nml"), "w", encoding="ascii") as file:
        file.write("&machine peak_gflops = 1 /\n")
    code, out, rows = study(folder, "given", "strong", "1x1x1 1x2x1", "global_batch = 4",
                            lambda text: text.replace("machine = none", "machine = machine.nml"))
    tap.ok(code == 0 and float(rows["1x1x1"]["planned_step_seconds"]) > 0
           and float(rows["1x2x1"]["planned_speedup"]) > 1.5, "a machine's file: planned times and speed-up")
    measured = [study(folder, "measured", "strong", "1x1x1", "global_batch = 2",
                      lambda text: text.replace("machine = none", "machine = bench")) for _ in range(2)]
    tap.ok(all(code == 0 and float(rows["1x1x1"]["planned_step_seconds"]) > 0 for code, _, rows in measured)
           and ["bench:" in out for _, out, _ in measured] == [True, False], "a machine that is measured, once")


def check_plots(folder):
    pictures = [os.path.join(folder, "weak", f"study.{ending}") for ending in ("png", "svg")]
    code, out, _ = study(folder, "weak", "weak", "1x1x1 1x2x1", "global_batch = 4")
    if "no matplotlib" in out:
        tap.ok(code == 0 and not any(map(os.path.exists, pictures)), "without matplotlib: said, and no plots")
        tap.skip("plots", "no Python module matplotlib")
    else:
        tap.ok(code == 0 and all(os.path.getsize(picture) > 5000 for picture in pictures), "plots as PNG and SVG")


def check_mistakes(folder):
    for name, axis, points, more, word in (
            ("an unknown axis", "string", "1x1x1", "", "strong, weak"),
            ("a point that is no grid", "strong", "1x1", "global_batch = 4", "4x2x1"),
            ("a point that is no number", "microbatches", "two", "grid = 1x1x1", "number of microbatches"),
            ("an unknown key", "strong", "1x1x1", "batch = 4", "unknown key batch"),
            ("a missing key", "strong", "1x1x1", "", "needs global_batch"),
            ("a point that comes twice", "strong", "1x1x1 1x1x1", "global_batch = 4", "twice"),
            ("Slurm without its nodes", "strong", "1x1x1", "global_batch = 4\nlauncher = slurm", "cores_per_node")):
        code, out, _ = study(folder, "mistake", axis, points, more)
        if not tap.ok(code == 1 and word in out and "Traceback" not in out, f"{name}: refused"):
            tap.note(out)
    code, out, rows = study(folder, "bad", "strong", "1x1x1 1x1x3", "global_batch = 4")
    tap.ok(code == 1 and "failed: see bad/1x1x3/output.txt" in out and rows["1x1x1"]["steps"] == str(STEPS - WARM_UP)
           and rows["1x1x3"]["step_seconds"] == "", "a point that fails does not keep others from the table")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        with open(os.path.join(folder, "in.nml"), "w", encoding="ascii") as file:
            file.write(tiny.NAMELIST.replace("microbatches = 4  microbatch_size = 3", "microbatches = 4"))
        check_strong(folder)
        check_done(folder)
        check_axes(folder)
        check_machine(folder)
        check_plots(folder)
        check_mistakes(folder)
    tap.done()


main()
