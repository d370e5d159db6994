#!/usr/bin/env python3
"""jobs/timeline.py: schedules with known makespan, a trace of a run, and a predicted one. TAP."""
import collections
import json
import os
import re
import sys
import xml.etree.ElementTree as tree

import tap
import tiny

JOBS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "jobs")
sys.path.insert(0, JOBS)
import timeline  # noqa: E402

SCRIPT = os.path.join(JOBS, "timeline.py")
PICTURE = os.path.join(JOBS, "pictures", "schedules.svg")
SVG = "{http://www.w3.org/2000/svg}"
FORWARD, BACKWARD, WEIGHT, OPTIMIZER = "#4878cf", "#3a9a5b", "#e58a3c", "#8062b8"


def draw(folder, *words):
    """Draws; exit code, what is said, the fills of all boxes by how often they come, and title and figures of each
    timeline."""
    code, _, errors = tap.run(sys.executable, SCRIPT, *words[:1], "out.svg", *words[1:], folder=folder)
    path = os.path.join(folder, "out.svg")
    if code != 0 or not os.path.exists(path):
        return code, errors, {}, [("", "")]
    root = tree.parse(path).getroot()
    fills = [box.get("fill") or box.get("class") for box in root.iter(f"{SVG}rect")]
    titles = [text.text for text in root.iter(f"{SVG}tspan")]
    os.remove(path)
    return code, errors, {fill: fills.count(fill) for fill in fills}, list(zip(titles[::2], titles[1::2]))


def check_traces(folder):
    """A measured step and a predicted one."""
    options = ("grid.pipeline=2", "pipeline.recompute=selective")
    run = tiny.train(folder, "run", 2, "trace.first_step=2", "trace.last_step=3", *options)
    code, _, fills, titles = draw(folder, "run/trace.json", "--step", "3")
    tap.ok(run.code == 0 and code == 0 and titles[0][0] == "measured, step 3", "a trace")
    read = collections.Counter(span.kind for span in timeline.read_trace(f"{folder}/run/trace.json", 3).spans)
    tap.is_equal([read[kind] for kind in "FBO"], [2 * 4, 2 * 4, 2], "all its computations")
    tap.ok(all(fills.get(kind, 0) > 1 for kind in (FORWARD, BACKWARD, OPTIMIZER)) and read["R"] == tiny.LAYERS * 4,
           "are drawn, where they are not too narrow, and recomputation is told apart")
    shown, measured = float(titles[0][1].split("bubble ")[1]), run.metrics("bubble")[2]
    tap.ok(abs(shown - measured) < 0.002, "the bubble is the one in metrics.jsonl")
    tap.note(f"drawn {shown}, told {measured:.3f}")
    tap.ok(draw(folder, "run/trace.json", "--step", "9")[0] != 0, "a step that is not there")
    code, _, errors = tap.run(tap.program("ppmodel"), "in.nml", "run.mode=plan", "run.output=plan", *options,
                              folder=folder)
    with open(os.path.join(folder, "plan", "plan.json"), encoding="ascii") as file:
        plan = json.load(file)["candidates"][0]
    code, errors, fills, titles = draw(folder, "plan/predicted-trace.json")
    found = re.fullmatch(r"(\S+) ms, bubble (\S+)", titles[0][1])
    tap.ok(code == 0 and titles[0][0] == "predicted" and found
           and abs(float(found[1]) / 1e3 / plan["step_seconds"] - 1) < 1e-3
           and abs(float(found[2]) - plan["bubble"]) < 1e-3, "a predicted trace: step and bubble as in plan.json")
    code, _, _ = tap.run(sys.executable, SCRIPT, "run/trace.json", "plan/predicted-trace.json", "two.svg",
                         folder=folder)
    with open(os.path.join(folder, "two.svg"), encoding="utf-8") as file:
        text = file.read()
    tap.ok(code == 0 and "measured, step 2" in text and "predicted" in text, "both in one picture")
    with open(os.path.join(folder, "cut.json"), "w", encoding="ascii") as file:
        file.write('{"traceEvents":[{"ph":"X"')
    code, errors, _, _ = draw(folder, "cut.json")
    tap.ok(code == 1 and errors.startswith("cut.json is no trace"), "a trace that breaks off is told")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        for schedule, expected in {"1f1b": (33, 3 / 11), "gpipe": (33, 3 / 11), "zb-h1": (27, 1 / 9)}.items():
            code, out, errors = tap.run(tap.program("ppmodel"), "in.nml", "run.mode=plan", f"run.output={schedule}",
                                        "grid.pipeline=4", "pipeline.microbatches=8", f"pipeline.schedule={schedule}",
                                        folder=folder)
            tap.ok(code == 0, f"{schedule}: planned")
            code, errors, fills, titles = draw(folder, f"{schedule}/schedule.csv")
            found = re.match(r"(\S+) units, bubble (\S+)", titles[0][1])
            tap.ok(code == 0 and found and float(found[1]) == expected[0] and abs(float(found[2]) - expected[1]) < 1e-3,
                   f"{schedule}: makespan and bubble as published")
            tap.is_equal(fills.get(FORWARD), 4 * 8 + 1, f"{schedule}: a box for each forward, and one that explains")
            tap.is_equal(fills.get(WEIGHT), 33 if schedule == "zb-h1" else None, f"{schedule}: and weight gradient")
        _, _, _, titles = draw(folder, "1f1b/schedule.csv", "--forward", "2")
        tap.ok(titles[0][1].startswith("44 units"), "durations count")
        _, _, _, titles = draw(folder, "1f1b/schedule.csv", "--message", "0.1")
        tap.ok(titles[0][1].startswith("34.6 units"), "messages count, as published")
        check_traces(folder)
        tap.run(sys.executable, SCRIPT, "gpipe/schedule.csv", "1f1b/schedule.csv", "both.svg", "--title", "GPipe",
                "--title", "1F1B", folder=folder)
        with open(os.path.join(folder, "both.svg"), encoding="utf-8") as file, open(PICTURE, encoding="utf-8") as kept:
            tap.ok(file.read() == kept.read(), "the picture in README.md is what the program makes")
        with open(os.path.join(folder, "bad.csv"), "w", encoding="ascii") as file:
            file.write("0F0,0B0\n1F0,1X0\n")
        code, errors, _, _ = draw(folder, "bad.csv")
        tap.ok(code != 0 and "bad.csv:2: 1X0" in errors, "a cell that is no computation")
    tap.done()


main()
