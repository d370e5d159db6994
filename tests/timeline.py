#!/usr/bin/env python3
"""jobs/timeline.py: a schedule with known makespan, and a trace of a run. TAP."""
import os
import re
import sys
import xml.etree.ElementTree as tree

import tap
import tiny

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "jobs", "timeline.py")
FORWARD, BACKWARD, WEIGHT = "#4878cf", "#3a9a5b", "#ee854a"


def draw(folder, source, *options):
    """Draws; exit code, what is said, and the fills of all boxes by how often they come."""
    code, _, errors = tap.run(sys.executable, SCRIPT, source, "out.svg", *options, folder=folder)
    path = os.path.join(folder, "out.svg")
    if code != 0 or not os.path.exists(path):
        return code, errors, {}, ""
    root = tree.parse(path).getroot()
    fills = [box.get("fill") for box in root.iter("{http://www.w3.org/2000/svg}rect")]
    title = next(root.iter("{http://www.w3.org/2000/svg}text")).text
    return code, errors, {fill: fills.count(fill) for fill in fills}, title


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        for schedule, expected in {"1f1b": (33, 3 / 11), "zb-h1": (27, 1 / 9)}.items():
            code, out, errors = tap.run(tap.program("ppmodel"), "in.nml", "run.mode=plan", f"run.output={schedule}",
                                        "grid.pipeline=4", "pipeline.microbatches=8", f"pipeline.schedule={schedule}",
                                        folder=folder)
            tap.ok(code == 0, f"{schedule}: planned")
            code, errors, fills, title = draw(folder, f"{schedule}/schedule.csv")
            found = re.match(r"(\S+) units, bubble (\S+)", title)
            tap.ok(code == 0 and found and float(found[1]) == expected[0] and abs(float(found[2]) - expected[1]) < 1e-3,
                   f"{schedule}: makespan and bubble as published")
            tap.is_equal(fills.get(FORWARD), 4 * 8 + 1, f"{schedule}: a box for each forward, and one that explains")
            tap.is_equal(fills.get(WEIGHT), 33 if schedule == "zb-h1" else 1, f"{schedule}: and weight gradient")
        _, _, _, title = draw(folder, "1f1b/schedule.csv", "--forward", "2")
        tap.ok(title.startswith("44 units"), "durations count")
        _, _, _, title = draw(folder, "1f1b/schedule.csv", "--message", "0.1")
        tap.ok(title.startswith("34.6 units"), "messages count, as published")
        run = tiny.train(folder, "run", 2, "grid.pipeline=2", "trace.first_step=2", "trace.last_step=3")
        code, errors, fills, title = draw(folder, "run/trace.json", "--step", "3")
        tap.ok(code == 0 and title.startswith("step 3, "), "a trace")
        tap.is_equal((fills.get(FORWARD), fills.get(BACKWARD)), (2 * 4 + 1, 2 * 4 + 1), "all its computations")
        tap.ok(run.code == 0 and draw(folder, "run/trace.json", "--step", "9")[0] != 0, "a step that is not there")
        with open(os.path.join(folder, "bad.csv"), "w", encoding="ascii") as file:
            file.write("0F0,0B0\n1F0,1X0\n")
        code, errors, _, _ = draw(folder, "bad.csv")
        tap.ok(code != 0 and "bad.csv:2: 1X0" in errors, "a cell that is no computation")
    tap.done()


main()
