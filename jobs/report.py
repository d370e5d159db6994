#!/usr/bin/env python3
"""Makes a page of a run from what it wrote, to be read in any browser, without a network:

    jobs/report.py RUN-FOLDER [-o report.html] [--plan FOLDER] [--step N]

RUN-FOLDER is the &run output of a training, under way or done; whatever is missing there is left out. What a plan of
the same input predicted (mode = 'plan': plan.json, predicted-trace.json) stands beside what was measured, from --plan
or from the same folder. A traced step (&trace) is drawn: its first, or step N. By default the page is written to
RUN-FOLDER/report.html; it can be made again at any time.
"""
import argparse
import html
import json
import math
import os
import re
import statistics
import sys
import time

import chart
import timeline
from chart import Series

RECENT = 20  # steps that figures of speed are the median of
TIMES = {"busy": "computing", "fill": "filling the pipeline", "drain": "draining it",
         "imbalance": "waiting for slower stages", "communication": "waiting for messages"}
PARTS = ("weights", "gradients", "moments", "activations", "buffers", "workspace")

STYLE = """
:root { color-scheme: light dark; --page: #f6f8fa; --card: #fff; --text: #1f2328; --soft: #59636e; --rule: #d8dee4;
  --s0: #3167c4; --s1: #d9731a; --s2: #2f8f57; --s3: #8062b8; --s4: #1f9bb0; --s5: #c9578c; --bad: #cf222e }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22; --text: #e6edf3; --soft: #9da7b1;
  --rule: #30363d; --s0: #6ea0f5; --s1: #f0954a; --s2: #5fc086; --s3: #a990dc; --s4: #4fc3d4; --s5: #e584b1;
  --bad: #ff7b72 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.45;
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 48px }
h1 { font-size: 26px; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere }
h2 { font-size: 17px; margin: 0 0 10px } h3 { font-size: 14px; margin: 0 0 4px } * + h3 { margin-top: 18px }
p { margin: 4px 0 } .soft { color: var(--soft) } .bad { color: var(--bad) } small { font-size: 12.5px }
.progress { height: 6px; border-radius: 3px; background: var(--rule); margin: 14px 0 18px; overflow: hidden }
.progress div { height: 100%; background: var(--s0) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(max(130px, 22%), 1fr));
  gap: 12px; margin-bottom: 16px }
.figures div, section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px }
.figures div { padding: 12px 16px } .figures b { display: block; font-size: 22px; font-variant-numeric: tabular-nums }
.figures span { color: var(--soft); font-size: 12.5px }
section { padding: 18px 20px; margin-bottom: 16px }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 16px 28px }
.wide { overflow-x: auto } .wide .timeline { min-width: 820px } .wide .bars { min-width: 560px; max-width: 840px }
svg { display: block; width: 100%; height: auto }
svg text { font-family: inherit; fill: var(--text) }
.chart .axis, .bars .axis { font-size: 12px; fill: var(--soft) } .bars .label { font-size: 12px }
.chart .grid, .timeline .grid { stroke: var(--soft); stroke-opacity: 0.22 }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round } .faint { stroke-opacity: 0.3; stroke-width: 1.2 }
.dot { stroke: var(--card); stroke-width: 1.5 }
.mark { stroke: var(--bad); stroke-width: 1.5; stroke-opacity: 0.75 }
.limit { stroke: var(--text); stroke-dasharray: 4 3 }
.timeline .title { font-size: 14px; font-weight: 600 } .timeline .note, .timeline .tick { fill: var(--soft) }
.timeline .note, .timeline .label { font-size: 12px } .timeline .tick { font-size: 11px; text-anchor: middle }
.timeline .number { font-size: 11px; fill: #fff; text-anchor: middle }
.timeline .idle { fill: var(--soft); fill-opacity: 0.13 } .timeline .wait { fill: var(--soft); fill-opacity: 0.5 }
""" + "".join(f".line.s{i} {{ stroke: var(--s{i}) }} .dot.s{i}, .bar.s{i} {{ fill: var(--s{i}) }} "
              f".key.s{i} {{ background: var(--s{i}) }}\n" for i in range(6)) + """
.keys { font-size: 12.5px; color: var(--soft); margin: 2px 0 6px }
.keys span { margin-right: 16px; white-space: nowrap }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; vertical-align: -1px }
.key.markkey { background: var(--bad) } .key.faintkey { opacity: 0.35 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top }
th { font-weight: 600; color: var(--soft); font-size: 12.5px } td.n, th.n { text-align: right }
.finding h3, h2 + h3 { margin-top: 0 }
.finding { border-left: 3px solid var(--s1); padding: 2px 0 2px 12px; margin: 12px 0 }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12.5px; overflow-wrap: anywhere }
pre { overflow-x: auto; white-space: pre-wrap; margin: 4px 0 }
.groups { columns: 3 330px; column-gap: 28px } .groups div { break-inside: avoid; margin-bottom: 16px }
.groups td { padding: 2px 10px 2px 0; font-size: 13px; overflow-wrap: anywhere } .groups td:first-child { width: 45% }
summary { cursor: pointer; color: var(--soft) }
"""


def text(value):
    return html.escape(str(value), quote=True)


def number(value):
    """Whether it is a number that can be drawn; booleans are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_lines(path):
    """The objects of metrics.jsonl that have a step, and how many lines are no such thing: a run under way may not
    have finished its last one."""
    lines, spoilt = [], 0
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    found = json.loads(line)
                except ValueError:
                    found = None
                if isinstance(found, dict) and number(found.get("step")):
                    lines.append(found)
                elif line.strip():
                    spoilt += 1
    except OSError:
        pass
    return lines, spoilt


def read_json(path):
    """None where there is no such file or it is not whole."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def read_settings(path):
    """{group: {key: (value, comment)}} of a resolved.nml."""
    groups, group = {}, None
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if match := re.match(r"\s*&(\w+)", line):
                    group = groups.setdefault(match[1].lower(), {})
                elif group is not None and (match := re.match(
                        r"\s*([\w()]+)\s*=\s*((?:'(?:[^']|'')*'|[^'!])*)(?:!\s*(.*))?", line)):
                    group[match[1].lower()] = (match[2].strip().rstrip(","), (match[3] or "").strip())
    except OSError:
        pass
    return groups


def setting(settings, group, key, default=""):
    value = settings.get(group, {}).get(key, (default, ""))[0]
    return value[1:-1].replace("''", "'") if value[:1] == "'" and value[-1:] == "'" and len(value) > 1 else value


class Run:
    """What a folder holds."""

    def __init__(self, folder, plan_folder, step):
        lines, self.spoilt = read_lines(os.path.join(folder, "metrics.jsonl"))
        self.folder = folder
        self.settings = read_settings(os.path.join(folder, "resolved.nml"))
        steps, validation = {}, {}  # a step that was run again after a resume counts as it was the last time
        for line in lines:
            (validation if "validation_loss" in line else steps).setdefault(line["step"], {}).update(line)
        self.steps = [steps[key] for key in sorted(steps)]
        self.validation = [(key, validation[key]["validation_loss"]) for key in sorted(validation)
                           if number(validation[key]["validation_loss"])]
        plan = read_json(os.path.join(plan_folder, "plan.json"))
        self.plan = plan if isinstance(plan, dict) else {}
        candidates = self.plan.get("candidates")
        first = candidates[0] if isinstance(candidates, list) and candidates else {}
        self.predicted = first if isinstance(first, dict) and self.is_planned(first) else {}
        self.diagnosis = read_json(os.path.join(folder, "diagnosis.json"))
        self.notes = []
        if first and not self.predicted:
            self.notes.append(f"The plan in {plan_folder} is of another configuration and is left out.")
        if self.spoilt:
            self.notes.append(f"{self.spoilt} line{'s' * (self.spoilt > 1)} of metrics.jsonl could not be read, as the "
                              "last one of a run that is under way or was killed.")
        self.measured_time = self.read_timeline(folder, setting(self.settings, "trace", "file", "trace.json"), step)
        self.predicted_time = self.predicted and self.read_timeline(plan_folder, "predicted-trace.json", None)

    def is_planned(self, candidate):
        """Whether the plan is of this run's configuration."""
        places = {"pipeline": "grid", "data": "grid", "tensor": "grid", "schedule": "pipeline", "chunks": "pipeline",
                  "microbatch_size": "pipeline", "microbatches": "pipeline", "recompute": "pipeline"}
        return all(setting(self.settings, group, key, str(candidate.get(key))) == str(candidate.get(key))
                   for key, group in places.items())

    def read_timeline(self, folder, name, step):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            return None
        try:
            return timeline.read_trace(path, step)
        except timeline.Unusable as error:
            self.notes.append(str(error))
            return None

    def points(self, key):
        return [(line["step"], line[key]) for line in self.steps if number(line.get(key))]

    def recent(self, key):
        """The median of the last steps; None where there are none."""
        values = [value for _, value in self.points(key)][-RECENT:]
        return statistics.median(values) if values else None

    def skips(self):
        """The steps at which the count of skipped ones has grown."""
        found, before = [], 0
        for step, count in self.points("skipped"):
            if count > before:
                found.append((step, 0))
            before = count
        return found


def in_bytes(value):
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1000 or unit == "TiB":
            return f"{value:.3g} {unit}" if value < 99.95 or unit == "B" else f"{value:.0f} {unit}"
        value /= 1024
    return ""


def in_seconds(value):
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 100:
        return f"{value:.3g} s"
    minutes, hours = int(value // 60), int(value // 3600)
    return f"{minutes} min {int(value % 60):02} s" if hours == 0 else f"{hours} h {minutes % 60:02} min"


def section(name, *content):
    body = "".join(part for part in content if part)
    return f'<section id="{name.lower().replace(" ", "-")}"><h2>{text(name)}</h2>{body}</section>' if body else ""


def keys(*items):
    """A legend: (class, name)."""
    return '<div class="keys">' + "".join(f'<span><i class="key {css}"></i>{text(name)}</span>'
                                          for css, name in items) + "</div>"


def table(head, rows):
    cells = [f"<th{' class=n' if i else ''}>{text(name)}</th>" for i, name in enumerate(head)]
    body = ["<tr>" + "".join(f"<td{' class=n' if i else ''}>{text(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
            for row in rows]
    return f'<div class="wide"><table><tr>{"".join(cells)}</tr>{"".join(body)}</table></div>'


def head(run):
    total, done = setting(run.settings, "run", "steps"), run.steps[-1]["step"] if run.steps else 0
    total = int(total) if total.isdigit() else 0
    model = {key: setting(run.settings, "model", key, "?") for key in ("family", "layers", "hidden", "heads")}
    grid = " x ".join(f"{name} {setting(run.settings, 'grid', name, '?')}" for name in ("pipeline", "data", "tensor"))
    schedule = setting(run.settings, "pipeline", "schedule", "?")
    what = (f"{model['family']}, {model['layers']} layers, hidden {model['hidden']}, {model['heads']} heads; {grid}; "
            f"{schedule}; {setting(run.settings, 'run', 'precision', '?')}") if run.settings else "no resolved.nml yet"
    try:
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(
            os.path.getmtime(os.path.join(run.folder, "metrics.jsonl"))))
    except OSError:
        written = "never"
    return (f"<h1>{text(os.path.basename(os.path.abspath(run.folder)))}</h1><p class=soft>{text(what)}</p>"
            f"<p class=soft>Step {done}{f' of {total}' if total else ''}, written {written}</p>"
            f'<div class="progress"><div style="width:{min(100, 100 * done / (total or done or 1)):.1f}%"></div></div>')


def figures(run):
    items = []
    if points := run.points("loss"):
        items.append((f"{points[-1][1]:.4f}", "loss, nats per token"))
    if run.validation:
        items.append((f"{run.validation[-1][1]:.4f}", f"validation loss at step {run.validation[-1][0]}"))
    for key, name, show in (("tokens_per_second", "tokens/s", lambda value: f"{value:,.0f}"),
                            ("seconds", "per step", in_seconds), ("bubble", "bubble", lambda value: f"{value:.3f}"),
                            ("mfu", "of the peak (mfu)", lambda value: f"{value:.1%}")):
        if (value := run.recent(key)) is not None:
            items.append((show(value), name))
    if points := run.points("peak_memory_bytes"):
        items.append((in_bytes(points[-1][1]), "peak memory of a rank"))
    if points := run.points("tokens"):
        items.append((chart.short(points[-1][1]), "tokens seen"))
    return '<div class="figures">' + "".join(f"<div><b>{text(value)}</b><span>{text(name)}</span></div>"
                                             for value, name in items) + "</div>" if items else ""


def loss_section(run):
    losses, skips = run.points("loss"), Series("skipped: step", run.skips(), "mark", "mark")
    many = len(losses) > 60
    series = [Series("loss", losses, "line", "s0 faint" if many else "s0"),
              Series("smoothed", chart.smoothed(losses) if many else [], "line", "s0"),
              Series("validation", run.validation, "dots", "s1"), skips]
    legend = [("s0 faintkey", "each step"), ("s0", "smoothed")] if many else [("s0", "training")]
    legend += [("s1", "validation")] if run.validation else []
    mark = [("markkey", "skipped step")] if skips.points else []
    left = chart.line_chart(series, "loss")
    right = chart.line_chart([Series("norm", run.points("gradient_norm"), "line", "s3"), skips], "gradient norm", True)
    if not left and not right:
        return section("Learning", "<p class=soft>No step has been written yet.</p>")
    return section("Learning", '<div class="pair">',
                   left and f"<div><h3>Loss</h3>{keys(*legend, *mark)}{left}</div>",
                   right and f"<div><h3>Gradient norm</h3>{keys(('s3', 'before clipping'), *mark)}{right}</div>",
                   "</div>")


def speed_section(run):
    parts = []
    for key, name, css, zero in (("tokens_per_second", "Tokens per second", "s2", True),
                                 ("seconds", "Seconds per step", "s4", True), ("bubble", "Bubble", "s5", True),
                                 ("learning_rate", "Learning rate", "s1", True)):
        drawn = chart.line_chart([Series(name, run.points(key), "line", css)], name, from_zero=zero)
        parts.append(drawn and f"<div><h3>{name}</h3>{drawn}</div>")
    return section("Speed and learning rate", '<div class="pair">', *parts, "</div>") if any(parts) else ""


def timeline_section(run):
    drawn = [one for one in (run.measured_time, run.predicted_time) if one]
    if not drawn:
        return ""
    return section("Timeline", f'<div class="wide">{timeline.draw(drawn, inline=True)}</div>',
                   "<p class=soft><small>Numbers are microbatches, lighter shades later chunks of the model. The strip "
                   "below a rank shows messages on their way and sums over ranks.</small></p>")


def prediction_section(run):
    rows = []
    shows = (("step_seconds", "seconds", "Step", in_seconds), ("bubble", "bubble", "Bubble", "{:.3f}".format),
             ("tokens_per_second", "tokens_per_second", "Tokens per second", "{:,.0f}".format),
             ("mfu", "mfu", "Part of the peak (mfu)", "{:.1%}".format),
             ("peak_memory_bytes", "peak_memory_bytes", "Memory of the rank that holds most", in_bytes))
    for planned, measured, name, show in shows:
        expected, found = run.predicted.get(planned), run.recent(measured)
        if number(expected) and found is not None:
            rows.append((name, show(expected), show(found), f"{found / expected - 1:+.0%}" if expected else ""))
    ranks = run.predicted.get("memory_bytes")
    bars = [(f"rank {p}", [memory.get(part, 0) if number(memory.get(part)) else 0 for part in PARTS])
            for p, memory in enumerate(ranks if isinstance(ranks, list) else []) if isinstance(memory, dict)]
    peak, told = run.recent("peak_memory_bytes"), [
        (f"rank {rank.get('pipeline', '?')}", in_bytes(rank["predicted_bytes"]), in_bytes(rank["measured_bytes"]))
        for rank in ranks_of(run.diagnosis, "predicted_bytes", "measured_bytes")]
    held = table(("Memory of each pipeline rank", "predicted", "measured"), told) if told else ""
    memory = bars and (f"<h3>Memory of each pipeline rank, predicted</h3>"
                       f"{keys(*((f's{i}', part) for i, part in enumerate(PARTS)))}<div class=wide>"
                       + chart.bar_chart(bars, PARTS, in_bytes, ("measured on the fullest", peak) if peak else None)
                       + "</div><p class=soft><small>Measured is all that the process holds, libraries, too."
                         "</small></p>")
    figures_table = table(("", "predicted", "measured", "difference"), rows) if rows else ""
    return section("Against the prediction", figures_table, idle_table(run), memory or "", held)


def idle_table(run):
    """How much of the traced step each rank computes, by measure and by prediction."""
    if not run.measured_time:
        return ""

    def shares(one):
        busy = dict.fromkeys(one.ranks, 0.0)
        for span in one.spans:
            if span.kind in timeline.COMPUTATIONS and not span.strip:
                busy[span.rank] += span.end - span.begin
        return [(name, 1 - busy[rank] / one.busy_end) for rank, name in one.ranks.items()]

    predicted = dict(shares(run.predicted_time)) if run.predicted_time else {}
    rows = [(f"rank {name}", f"{predicted[name]:.3f}" if name in predicted else "", f"{share:.3f}")
            for name, share in shares(run.measured_time)[:timeline.MOST_RANKS]]
    return "<h3>Idle part of the traced step</h3>" + table(("", "predicted", "measured"), rows)


def ranks_of(diagnosis, *keys):
    """The pipeline ranks of a run's diagnosis, where each has these figures."""
    ranks = diagnosis.get("ranks") if isinstance(diagnosis, dict) else None
    whole = isinstance(ranks, list) and all(isinstance(rank, dict) and all(number(rank.get(key)) for key in keys)
                                            for rank in ranks)
    return ranks if whole else []


def times_chart(run):
    """Where the time of the step went that the run has diagnosed, up to the last backward."""
    rows = [(f"rank {rank.get('pipeline', '?')}", [max(rank[key], 0) for key in TIMES])
            for rank in ranks_of(run.diagnosis, *TIMES)]
    return rows and (f"<h3>Where the time of step {text(run.diagnosis.get('step', '?'))} went</h3>"
                     f"{keys(*((f's{i}', name) for i, name in enumerate(TIMES.values())))}"
                     f"<div class=wide>{chart.bar_chart(rows, list(TIMES.values()), in_seconds)}</div>")


def finding(found):
    """One finding of a run or a plan: what it is about, the cause, and what would mend it."""
    name = found.get("mode") or found.get("what") or "finding"
    cause, change = found.get("text") or found.get("cause") or "", found.get("change") or ""
    gain = found.get("gain")
    saves = f" It would save {gain:.1%} of the step." if number(gain) and gain > 0 else ""
    return (f'<div class="finding"><h3>{text(name)}</h3><p>{text(cause)}</p>'
            + (f"<pre>{text(change)}</pre>" if change else "") + (f"<p class=soft>{text(saves)}</p>" if saves else "")
            + "</div>")


def findings_of(source):
    if isinstance(source, dict):
        source = next((source[key] for key in ("diagnosis", "findings") if key in source), [])
    return [found for found in source if isinstance(found, dict)] if isinstance(source, list) else []


def diagnosis_section(run):
    measured, planned = findings_of(run.diagnosis), findings_of(run.plan) if run.predicted else []
    parts = []
    if isinstance(run.diagnosis, (list, dict)):
        parts.append(times_chart(run) or "")
        parts.append("<h3>Measured</h3>" + ("".join(map(finding, measured)) or "<p>Nothing is wrong.</p>"))
    if run.predicted:
        parts.append("<h3>Predicted</h3>" + ("".join(map(finding, planned)) or "<p>Nothing is wrong.</p>"))
    return section("Diagnosis", *parts)


def settings_section(run):
    groups = "".join(
        f"<div><h3>&amp;{text(group)}</h3><table>" + "".join(
            f'<tr><td title="{text(comment)}">{text(key)}</td><td><code>{text(value)}</code></td></tr>'
            for key, (value, comment) in values.items()) + "</table></div>"
        for group, values in run.settings.items() if values)
    return section("Configuration", groups and f"<details><summary>The whole input, with all defaults</summary>"
                                               f'<div class="groups" style="margin-top:14px">{groups}</div></details>')


def page(run):
    notes = "".join(f"<p class=soft><small>{text(note)}</small></p>" for note in run.notes)
    return ("<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8>"
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{text(os.path.basename(os.path.abspath(run.folder)))} - ppmodel</title><style>{STYLE}</style>"
            f"</head><body><main>{head(run)}{figures(run)}{loss_section(run)}{speed_section(run)}"
            f"{timeline_section(run)}{prediction_section(run)}{diagnosis_section(run)}{settings_section(run)}"
            f"{notes}</main></body></html>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="&run output of the run")
    parser.add_argument("-o", "--output", help="the page; default: report.html in the folder")
    parser.add_argument("--plan", help="folder of a plan of the same input; default: the run's")
    parser.add_argument("--step", type=int, help="of the trace; default: its first")
    words = parser.parse_args()
    if not os.path.isdir(words.folder):
        sys.exit(f"{words.folder} is no folder")
    run = Run(words.folder, words.plan or words.folder, words.step)
    output = words.output or os.path.join(words.folder, "report.html")
    try:
        with open(output + ".partial", "w", encoding="utf-8") as file:
            file.write(page(run))
        os.replace(output + ".partial", output)  # one who has it open never loads half a page
    except OSError as error:
        sys.exit(f"cannot write {output}: {error.strerror}")
    print(output)


if __name__ == "__main__":
    main()
