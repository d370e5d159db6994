#!/usr/bin/env python3
"""Draws what ranks do over time, as SVG, or as PNG where rsvg-convert is installed:

    jobs/timeline.py run/trace.json timeline.svg [--step N]
    jobs/timeline.py run/trace.json plan/predicted-trace.json compared.svg
    jobs/timeline.py plan/schedule.csv schedule.png [--forward 1] [--input 1] [--weight 1] [--message 0]

A trace (&trace of a run; mode = 'plan' writes the predicted one) is drawn as it is, one step of it. A schedule (mode =
'plan' writes one, schedule = 'csv' reads one) is timed with the given durations, in any unit. Several inputs are drawn
one above the other, on one scale where their times have the same unit.

Numbers are microbatches. Lighter shades are later chunks of the model. The narrow strip below a rank shows messages on
their way and sums over ranks. The bubble is the idle part of the time until the last backward ends.
"""
import argparse
import collections
import json
import math
import re
import shutil
import subprocess
import sys
from xml.sax.saxutils import escape

COLOURS = {"F": "#4878cf", "B": "#3a9a5b", "I": "#59b576", "W": "#e58a3c", "R": "#1f9bb0", "O": "#8062b8",
           "C": "#c9578c"}
NAMES = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient", "R": "recomputation",
         "O": "optimizer", "C": "communication", "wait": "waits for a message", "idle": "idle"}
SPANS = {"FORWARD": "F", "BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W", "RECOMPUTE": "R",
         "OPTIMIZER_STEP": "O", "FINISH_GRADIENTS": "C", "GRADIENT_NORM": "C", "WAIT_ACTIVATION": "wait",
         "WAIT_GRADIENT": "wait", "WAIT_SEND": "wait"}
STRIP = ("SEND_ACTIVATION", "SEND_GRADIENT", "REDUCE_GRADIENTS", "GATHER_WEIGHTS")
COMPUTATIONS = "FBIW"
MOST_RANKS = 64

WIDTH, LEFT, RIGHT, HEAD, AXIS, LEGEND = 1200, 74, 18, 34, 30, 34
STYLE = """text { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #24292f }
.title { font-size: 14px; font-weight: 600 }
.note { font-size: 12px; fill: #59636e }
.label { font-size: 12px }
.number { font-size: 11px; fill: #fff; text-anchor: middle }
.tick { font-size: 11px; fill: #59636e; text-anchor: middle }
.grid { stroke: #8c959f; stroke-opacity: 0.25 }
.page { fill: #fff }
.idle { fill: #eceff3 }
.wait { fill: #b9c0ca }
"""
DARK = """@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .note, .tick { fill: #9da7b1 } .number { fill: #fff }
.page { fill: #0d1117 } .idle { fill: #21262d } .wait { fill: #4b535d }
}
"""

# One box: of a rank, times from the step's start; `strip`: messages and sums, which other work may hide.
Span = collections.namedtuple("Span", "rank begin end kind text chunk strip")
# One picture. `busy_end`: the time from a rank's own start of the step to the end of its last computation, of the rank
# where that is longest.
Timeline = collections.namedtuple("Timeline", "title unit ranks spans end busy_end")


class Unusable(Exception):
    """What is wrong with an input."""


def timeline_of(title, unit, ranks, spans, starts):
    busy_end = max(span.end - starts.get(span.rank, 0) for span in spans if span.kind in COMPUTATIONS)
    return Timeline(title, unit, ranks, spans, max(span.end for span in spans), busy_end)


def bubble(timeline):
    busy = sum(span.end - span.begin for span in timeline.spans if span.kind in COMPUTATIONS and not span.strip)
    return 1 - busy / (len(timeline.ranks) * timeline.busy_end)


def load_trace(path):
    """The spans of a trace, and the names of its processes."""
    try:
        with open(path, encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        spans = [event for event in events if event.get("ph") == "X"]
        names = {event["pid"]: event["args"]["name"] for event in events if event.get("name") == "process_name"}
        if not all(math.isfinite(span["ts"] + span["dur"]) and span["args"] is not None for span in spans):
            raise ValueError("times")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unusable(f"{path} is no trace: {error}") from error
    return spans, names


def steps_of(spans):
    """The steps whose computations a trace has."""
    return sorted({span["args"]["step"] for span in spans if span["name"] in SPANS and "step" in span["args"]})


def window(spans, step):
    """Where the step begins and ends in the trace, and where it begins on each rank."""
    own = [span for span in spans if span["args"].get("step") == step and span["name"] in (*SPANS, "STEP")]
    whole = [span for span in own if span["name"] == "STEP"]
    begin = min(span["ts"] for span in whole or own)
    return (begin, max(span["ts"] + span["dur"] for span in whole or own),
            {span["pid"]: (span["ts"] - begin) / 1e3 for span in whole})


def read_trace(path, step=None):
    """One step of a trace, the first that it has unless one is named; what a plan predicts has only one."""
    spans, names = load_trace(path)
    steps = steps_of(spans)
    if not any(span["name"] in SPANS for span in spans) or (step is not None and steps and step not in steps):
        raise Unusable(f"{path} has no computations{'' if step is None else f' of step {step}'}; steps: {steps}")
    step = step if step in steps else next(iter(steps), None)  # None: predicted
    begin, end, starts = window(spans, step)
    boxes, stages = [], collections.defaultdict(set)
    for span in spans:
        if span["name"] in SPANS and "stage" in span["args"]:
            stages[span["pid"]].add(span["args"]["stage"])
    for span in spans:
        strip, args = span["name"] in STRIP, span["args"]
        if span["name"] not in SPANS and not strip or not begin <= span["ts"] <= end:
            continue
        # One rank may still end the step before, or evaluate already; sums over data ranks do not know their step
        if (args.get("step", step) if strip else args.get("step")) != step:
            continue
        chunk = sorted(stages[span["pid"]]).index(args["stage"]) if args.get("stage") in stages[span["pid"]] else 0
        first, last = (max(0, min(time, end) - begin) / 1e3 for time in (span["ts"], span["ts"] + span["dur"]))
        boxes.append(Span(span["pid"], first, last, "C" if strip else SPANS[span["name"]],
                          str(args.get("microbatch", "")), chunk, strip))
    ranks = {pid: re.sub(r" \(.*| ?predicted p", "", names.get(pid, str(pid))).replace("rank ", "") for pid in
             sorted({box.rank for box in boxes})}
    title = "predicted" if step is None else f"measured, step {step}"
    return timeline_of(title, "ms", ranks, boxes, starts)


def read_lists(path):
    """The computations of each rank of a schedule: (stage, kind, microbatch)."""
    lists = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            cells = [cell.strip() for cell in line.split(",") if cell.strip()]
            found = [re.fullmatch(r"(\d+)([FBIW])(\d+)", cell) for cell in cells]
            for cell, match in zip(cells, found):
                if not match:
                    raise Unusable(f"{path}:{number}: {cell} is no computation")
            lists.append([(int(m[1]), m[2], int(m[3])) for m in found])
    if not any(lists):
        raise Unusable(f"{path} is empty")
    return lists


def read_schedule(path, durations, message):
    """Every rank runs its list in order, each computation as soon as its input is there."""
    lists = read_lists(path)
    rank_of = {stage: rank for rank, items in enumerate(lists) for stage, _, _ in items}
    last, done, clock, place, spans = max(rank_of), {}, [0.0] * len(lists), [0] * len(lists), []
    while any(place[rank] < len(items) for rank, items in enumerate(lists)):
        moved = False
        for rank, items in enumerate(lists):
            while place[rank] < len(items):
                stage, kind, microbatch = items[place[rank]]
                needs = {"F": [("F", stage - 1)] if stage else [],
                         "W": [("I", stage)]}.get(kind, [("F", stage)] + ([("I", stage + 1)] if stage < last else []))
                if any((need, where, microbatch) not in done for need, where in needs):
                    break
                begin = max([clock[rank]] + [done[need, where, microbatch] + (rank_of[where] != rank) * message
                                             for need, where in needs])
                clock[rank] = begin + durations[kind]
                done[{"B": "I"}.get(kind, kind), stage, microbatch] = clock[rank]
                spans.append(Span(rank, begin, clock[rank], kind, str(microbatch), stage // len(lists), False))
                place[rank] += 1
                moved = True
        if not moved:
            raise Unusable(f"{path}: the ranks wait for each other")
    return timeline_of("simulated", "units", {rank: str(rank) for rank in range(len(lists))}, spans, {})


def tick_step(least):
    """The distance of ticks, 1, 2 or 5 times a power of ten, at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= least)


def merged(spans, scale):
    """Those too narrow to be seen, with what touches them of the same kind, as one."""
    boxes = []
    for span in sorted(spans, key=lambda span: (span.begin, -span.end)):
        before = boxes[-1] if boxes else None
        if (before and (span.kind, span.chunk) == (before.kind, before.chunk)
                and (span.begin - before.end) * scale < 0.4 and (span.end - before.begin) * scale < 3):
            boxes[-1] = before._replace(end=max(before.end, span.end), text="")
        else:
            boxes.append(span)
    return boxes


def draw_box(span, x, width, y, height):
    shade = "" if span.chunk % 3 == 0 else f' fill-opacity="{1 - 0.22 * (span.chunk % 3):.2f}"'
    fill = 'class="wait"' if span.kind == "wait" else f'fill="{COLOURS[span.kind]}"'
    gap = 0.6 if width > 2.5 and not span.strip else 0
    out = [f'<rect {fill}{shade} x="{x:.2f}" y="{y:g}" width="{max(width - gap, 0.3):.2f}" height="{height:g}"/>']
    if span.kind in COMPUTATIONS and not span.strip and height >= 14 and width > 7.5 * len(span.text) + 2:
        out.append(f'<text class="number" x="{x + width / 2:.2f}" y="{y + height / 2 + 4:g}">'
                   f'{escape(span.text)}</text>')
    return out


def row_height(timeline):
    return 26 if len(timeline.ranks) <= 16 else 12


def panel_height(timeline):
    strip = 8 if any(span.strip for span in timeline.spans) else 0
    return HEAD + min(len(timeline.ranks), MOST_RANKS) * (row_height(timeline) + strip + 5) + AXIS


def draw_axis(timeline, top, bottom, scale):
    step, out = tick_step(90 / scale), []
    for number in range(int(timeline.end / step + 1e-9) + 1):
        x = LEFT + number * step * scale
        text = f"{number * step:g}" + (f" {timeline.unit}" if number == 0 else "")
        out += [f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{bottom + 4:g}"/>',
                f'<text class="tick" x="{x:.1f}" y="{bottom + 18:g}">{escape(text)}</text>']
    return out


def draw_panel(timeline, title, top, scale):
    rows, row = list(timeline.ranks.items())[:MOST_RANKS], row_height(timeline)
    strip = 8 if any(span.strip for span in timeline.spans) else 0
    figures = f"{timeline.end:.4g} {timeline.unit}, bubble {bubble(timeline):.3f}"
    if len(rows) < len(timeline.ranks):
        figures += f", the first {len(rows)} of {len(timeline.ranks)} ranks"
    out = [f'<text x="{LEFT}" y="{top + 20:g}"><tspan class="title">{escape(title or timeline.title)}</tspan>'
           f'<tspan class="note" dx="10">{escape(figures)}</tspan></text>']
    out += draw_axis(timeline, top + HEAD, top + HEAD + len(rows) * (row + strip + 5), scale)
    by_rank = collections.defaultdict(list)
    for span in timeline.spans:
        by_rank[span.rank].append(span)
    for number, (rank, name) in enumerate(rows):
        y = top + HEAD + number * (row + strip + 5)
        out.append(f'<text class="label" x="8" y="{y + row / 2 + 4:g}">rank {escape(name)}</text>')
        out.append(f'<rect class="idle" x="{LEFT}" y="{y:g}" width="{timeline.end * scale:.2f}" height="{row}"/>')
        for is_strip in (False, True):
            for span in merged([span for span in by_rank[rank] if span.strip == is_strip], scale):
                x, width = LEFT + span.begin * scale, (span.end - span.begin) * scale
                inner = (y + row * 0.72, row * 0.28) if span.kind == "R" else (y, row)
                out += draw_box(span, x, width, *((y + row + 2, 5) if is_strip else inner))
    return out


def draw_legend(kinds, top):
    out, x = [], LEFT
    for kind, name in NAMES.items():
        if kind in kinds:
            fill = f'class="{kind}"' if kind in ("wait", "idle") else f'fill="{COLOURS[kind]}"'
            out.append(f'<rect {fill} x="{x:g}" y="{top:g}" width="13" height="13" rx="2"/>'
                       f'<text class="label" x="{x + 19:g}" y="{top + 11:g}">{name}</text>')
            x += 19 + 6.6 * len(name) + 20
    return out


def draw(timelines, titles=(), inline=False):
    """The SVG text. `inline`: for a page that has STYLE itself, and a background."""
    units = collections.defaultdict(float)
    for timeline in timelines:
        units[timeline.unit] = max(units[timeline.unit], timeline.end)
    body, top = [], 4
    for timeline, title in zip(timelines, list(titles) + [""] * len(timelines)):
        body += draw_panel(timeline, title, top, (WIDTH - LEFT - RIGHT) / units[timeline.unit])
        top += panel_height(timeline) + 8
    body += draw_legend({span.kind for timeline in timelines for span in timeline.spans} | {"idle"}, top)
    height = top + LEGEND - 8
    begin = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" class="timeline" role="img" '
             'aria-label="timeline of the ranks">' if inline else
             f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
             f'viewBox="0 0 {WIDTH} {height}">',
             *([] if inline else [f"<style>{STYLE}{DARK}</style>",
                                  f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>'])]
    return "\n".join(begin + body + ["</svg>"]) + "\n"


def write(text, path):
    if not path.endswith(".png"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return
    converter = shutil.which("rsvg-convert")
    if not converter:
        raise Unusable("a PNG needs rsvg-convert (Debian: librsvg2-bin); SVG needs nothing")
    light = text.replace(DARK, "").encode()
    if subprocess.run([converter, "--zoom", "1.5", "-o", path], input=light).returncode != 0:
        raise Unusable(f"rsvg-convert failed to write {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", nargs="+", help="a trace (.json) or a schedule (.csv); several are compared")
    parser.add_argument("output", help="the SVG or PNG file")
    parser.add_argument("--step", type=int, help="of traces; default: their first")
    parser.add_argument("--title", action="append", default=[], help="of an input; again for the next one")
    for name in ("forward", "input", "weight"):
        parser.add_argument(f"--{name}", dest=f"{name}_time", type=float, default=1.0,
                            help=f"duration of a {name}{'' if name == 'forward' else ' gradient'}")
    parser.add_argument("--message", type=float, default=0.0, help="time of a message between ranks")
    words = parser.parse_args()
    durations = {"F": words.forward_time, "I": words.input_time, "W": words.weight_time,
                 "B": words.input_time + words.weight_time}
    try:
        timelines = [read_trace(path, words.step) if path.endswith(".json") else
                     read_schedule(path, durations, words.message) for path in words.input]
        write(draw(timelines, words.title), words.output)
    except (Unusable, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
