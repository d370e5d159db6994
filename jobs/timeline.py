#!/usr/bin/env python3
"""Draws what pipeline ranks do over time, as SVG:

    jobs/timeline.py run/trace.json timeline.svg [--step N]
    jobs/timeline.py run/schedule.csv timeline.svg [--forward 1] [--input 1] [--weight 1] [--message 0]

A trace (&trace of a run) is drawn as it was measured, all its ranks, one step of it. A schedule (mode = 'plan' writes
one, schedule = 'csv' reads one) is timed with the given durations, in any unit. Forwards are blue, full backwards and
input gradients green, weight gradients orange; what stays grey is waiting.
"""
import argparse
import collections
import json
import re
import sys
from xml.sax.saxutils import escape

COLOURS = {"F": "#4878cf", "B": "#3a9a5b", "I": "#6acc65", "W": "#ee854a"}
NAMES = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}
SPANS = {"FORWARD": "F", "BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
WAIT = "#dddddd"
WIDTH, ROW, GAP, LEFT, TOP = 1400, 26, 6, 70, 40

Span = collections.namedtuple("Span", "rank begin end kind text chunk")


def read_trace(path, step):
    """The computations of one step of a trace, from its start; the first step there is unless one is named."""
    with open(path, encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    events = [e for e in events if e.get("ph") == "X" and e["name"] in SPANS]
    steps = sorted({e["args"]["step"] for e in events if "step" in e["args"]})
    if not steps or (step is not None and step not in steps):
        sys.exit(f"{path} has no computations{'' if step is None else f' of step {step}'}; steps: {steps}")
    step = steps[0] if step is None else step
    events = [e for e in events if e["args"].get("step") == step]
    start = min(e["ts"] for e in events)
    stages = collections.defaultdict(set)
    for event in events:
        stages[event["pid"]].add(event["args"]["stage"])
    spans = [Span(e["pid"], e["ts"] - start, e["ts"] - start + e["dur"], SPANS[e["name"]],
                  str(e["args"]["microbatch"]), sorted(stages[e["pid"]]).index(e["args"]["stage"])) for e in events]
    return spans, f"step {step}, {max(s.end for s in spans) / 1e3:.3f} ms"


def read_lists(path):
    """The computations of each rank of a schedule: (stage, kind, microbatch)."""
    lists = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            cells = [cell.strip() for cell in line.split(",") if cell.strip()]
            found = [re.fullmatch(r"(\d+)([FBIW])(\d+)", cell) for cell in cells]
            for cell, match in zip(cells, found):
                if not match:
                    sys.exit(f"{path}:{number}: {cell} is no computation")
            lists.append([(int(m[1]), m[2], int(m[3])) for m in found])
    return lists


def time_schedule(path, durations, message):
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
                spans.append(Span(rank, begin, clock[rank], kind, str(microbatch), stage // len(lists)))
                place[rank] += 1
                moved = True
        if not moved:
            sys.exit(f"{path}: the ranks wait for each other")
    return spans, f"{max(clock):g} units"


def draw(spans, title):
    """The SVG text."""
    ranks = sorted({span.rank for span in spans})
    end = max(span.end for span in spans)
    scale = (WIDTH - LEFT - 20) / end
    busy = sum(span.end - span.begin for span in spans) / (len(ranks) * end)
    height = TOP + len(ranks) * (ROW + GAP) + 40
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
           'font-size="11">', f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
           f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}, bubble {1 - busy:.3f}</text>']
    for row, rank in enumerate(ranks):
        y = TOP + row * (ROW + GAP)
        out.append(f'<text x="8" y="{y + 17}">rank {rank}</text>')
        out.append(f'<rect x="{LEFT}" y="{y}" width="{end * scale:.2f}" height="{ROW}" fill="{WAIT}"/>')
        for span in (span for span in spans if span.rank == rank):
            x, width = LEFT + span.begin * scale, (span.end - span.begin) * scale
            shade = 1 - 0.25 * (span.chunk % 3)
            out.append(f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW}" fill="{COLOURS[span.kind]}" '
                       f'fill-opacity="{shade:.2f}" stroke="white" stroke-width="0.5"/>')
            if width > 7 * len(span.text):
                out.append(f'<text x="{x + width / 2:.2f}" y="{y + 17}" text-anchor="middle" fill="white">'
                           f'{escape(span.text)}</text>')
    x, y = LEFT, TOP + len(ranks) * (ROW + GAP) + 10
    for kind, name in list(NAMES.items()) + [("", "wait")]:
        out.append(f'<rect x="{x}" y="{y}" width="14" height="14" fill="{COLOURS.get(kind, WAIT)}"/>'
                   f'<text x="{x + 20}" y="{y + 11}">{name}</text>')
        x += 130
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="a trace (.json) or a schedule (.csv)")
    parser.add_argument("output", help="the SVG file")
    parser.add_argument("--step", type=int, help="of a trace; default: its first")
    for name in ("forward", "input", "weight"):
        parser.add_argument(f"--{name}", dest=f"{name}_time", type=float, default=1.0,
                            help=f"duration of a {name}{'' if name == 'forward' else ' gradient'}")
    parser.add_argument("--message", type=float, default=0.0, help="time of a message between ranks")
    words = parser.parse_args()
    if words.input.endswith(".json"):
        spans, title = read_trace(words.input, words.step)
    else:
        durations = {"F": words.forward_time, "I": words.input_time, "W": words.weight_time,
                     "B": words.input_time + words.weight_time}
        spans, title = time_schedule(words.input, durations, words.message)
    with open(words.output, "w", encoding="utf-8") as file:
        file.write(draw(spans, title))


if __name__ == "__main__":
    main()
