#!/usr/bin/env python3
"""jobs/report.py: the page of a run, of broken and missing files, and how a browser shows it. TAP.

The browser is Chromium, found as `chromium` or by $CHROMIUM; without it these checks are skipped.
"""
import html.parser
import json
import os
import re
import shutil
import sys
import zlib

import tap
import tiny

np = tap.need("numpy")

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "jobs", "report.py")
OPTIONS = ("grid.pipeline=2", "run.steps=12", "trace.first_step=3", "trace.last_step=4", "run.evaluate_every=4",
           "data.validation=corpus.h5", "run.evaluate_batches=1", "optimizer.skip_outliers=4")
SECTIONS = ["learning", "speed-and-learning-rate", "timeline", "against-the-prediction", "diagnosis", "configuration"]
EVIL = "<script>document.title = 'evil'</script><b>&amp;\"'"
VOID = {"meta", "br"}

# Tells by the page's title what the browser made of it.
PROBE = """<script>document.title = JSON.stringify({
    width: document.documentElement.scrollWidth, window: innerWidth,
    sections: [...document.querySelectorAll("section")].map(one => [one.id, one.getBoundingClientRect().height]),
    outside: [...document.querySelectorAll(".chart polyline, .chart circle")].filter(one => {
        const box = one.getBoundingClientRect(), all = one.closest("svg").getBoundingClientRect();
        return box.left < all.left || box.right > all.right || box.top < all.top || box.bottom > all.bottom }).length,
    external: performance.getEntriesByType("resource").length, evil: document.querySelectorAll("b b").length
})</script></body>"""


class Page(html.parser.HTMLParser):
    """The page's sections, scripts and addresses, and whether every element is closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.wrong, self.tags, self.sections, self.addresses = [], [], {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.sections += [dict(attrs)["id"]] if tag == "section" else []
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


def make(folder, run, *options):
    """Makes the page; its text and what was read in it, or None and what was said."""
    code, _, errors = tap.run(sys.executable, SCRIPT, run, *options, folder=folder)
    path = os.path.join(folder, run, "report.html")
    if code != 0 or not os.path.exists(path):
        return None, errors
    with open(path, encoding="utf-8") as file:
        text = file.read()
    return text, Page(text)


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def check_whole(folder):
    tiny.prepare(folder)
    code, _, _ = tap.run(tap.program("ppmodel"), "in.nml", "run.mode=plan", "run.output=run", *OPTIONS, folder=folder)
    run = tiny.train(folder, "run", 2, *OPTIONS)
    text, page = make(folder, "run")
    if not tap.ok(code == 0 and run.code == 0 and text, "a run, its plan, and a page of them"):
        tap.note(page)
        return
    tap.is_equal(page.sections, SECTIONS, "all sections are there")
    tap.is_equal((page.wrong, page.open), ([], []), "every element is closed in turn")
    tap.ok("script" not in page.tags and not page.addresses and "@import" not in text and "url(" not in text,
           "it loads nothing and runs nothing")
    tap.ok(f"{run.metrics('loss')[-1]:.4f}" in text and f"{run.metrics('validation_loss')[-1]:.4f}" in text,
           "the last losses, as written")
    tap.is_equal(text.count('class="dot s1"'), len(run.metrics("validation_loss")), "a dot for each validation")
    tap.ok("measured, step 3" in text and "predicted" in text, "the traced step and the predicted one")
    with open(os.path.join(folder, "run", "diagnosis.json"), encoding="ascii") as file:
        diagnosis = json.load(file)
    tap.ok(f"Where the time of step {diagnosis['step']} went" in text and text.count('class="bars"') == 2
           and "Memory of each pipeline rank</th>" in text
           and all(html.escape(found["cause"]) in text for found in diagnosis["findings"]),
           "what the run says of itself: times, memory and findings")
    text, _ = make(folder, "run", "--step", "4")
    tap.ok("measured, step 4" in text, "another step")
    text, _ = make(folder, "run", "--step", "7")
    tap.ok(text and "measured, step" not in text and "step 7" in text, "a step that is not there is left out, and told")


def check_broken(folder):
    """Skipped steps, several resumes, half a line, texts that are HTML, a foreign plan, files that are no JSON."""
    run = os.path.join(folder, "run")
    with open(os.path.join(run, "metrics.jsonl"), encoding="ascii") as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if "loss" in line]
    for line in steps:
        line["skipped"] = (line["step"] >= 5) + (line["step"] >= 9)
    again = [dict(line, loss=123.25) for line in steps]
    broken = "".join(json.dumps(line) + "\n" for line in again + lines)
    broken += '{"step": 13, "loss": NaN, "gradient_norm": null, "seconds": true}\n[1]\n\n{"step": 14, "lo'
    write(os.path.join(run, "metrics.jsonl"), broken)
    write(os.path.join(run, "diagnosis.json"), json.dumps(
        [{"mode": EVIL, "figure": 0.1, "text": EVIL, "change": EVIL}, "no finding", {"what": "traffic", "cause": "c"}]))
    with open(os.path.join(run, "resolved.nml"), encoding="utf-8") as file:
        settings = file.read()
    evil = "'it''s ! " + EVIL.replace("'", "''") + "'"
    write(os.path.join(run, "resolved.nml"), settings.replace("'corpus.h5'", evil))
    text, page = make(folder, "run")
    if not tap.ok(text, "a page of a broken run"):
        tap.note(page)
        return
    tap.is_equal((page.wrong, page.open, page.tags.get("script", 0)), ([], [], 0), "texts of files stay texts")
    tap.ok("&lt;script&gt;" in text and "it&#x27;&#x27;s ! &lt;script" in text, "and are shown")
    tap.is_equal(text.count('class="mark"'), 4, "two skipped steps are marked, in both pictures")
    tap.ok("123.25" not in text, "of a step that was run again the last time counts")
    tap.ok("2 lines of metrics.jsonl could not be read" in text, "what cannot be read is told")
    tap.ok("traffic" in text and page.sections == SECTIONS, "the rest stands")

    write(os.path.join(run, "resolved.nml"), settings.replace("microbatches = 4", "microbatches = 5"))
    text, page = make(folder, "run")
    tap.ok(text and "of another configuration" in text and "against-the-prediction" in page.sections
           and text.count("class=\"title\"") == 1, "a plan of another configuration is left out, and told")
    for name in ("trace.json", "plan.json", "diagnosis.json", "resolved.nml", "predicted-trace.json"):
        write(os.path.join(run, name), '{"traceEvents": [{"ph": "X", "pid')
    text, page = make(folder, "run")
    tap.ok(text and page.sections == SECTIONS[:2] and not page.wrong, "files that break off are left out")
    os.mkdir(os.path.join(folder, "empty"))
    text, page = make(folder, "empty")
    tap.ok(text and "No step has been written yet" in text and not page.wrong, "an empty folder makes a page, too")
    text, said = make(folder, "nowhere")
    tap.ok(text is None and said == "nowhere is no folder\n", "no folder")


def read_png(path):
    """The pixels [height, width, 3] of a PNG of 8 bits and 3 or 4 channels, without interlacing."""
    with open(path, "rb") as file:
        data = file.read()
    place, packed = 8, b""
    while place < len(data):
        length, kind = int.from_bytes(data[place:place + 4], "big"), data[place + 4:place + 8]
        body = data[place + 8:place + 8 + length]
        if kind == b"IHDR":
            width, height, channels = *(int.from_bytes(body[i:i + 4], "big") for i in (0, 4)), {2: 3, 6: 4}[body[9]]
        packed += body if kind == b"IDAT" else b""
        place += 12 + length
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    out, above = [], np.zeros((width, channels), np.int64)
    for line in lines:
        kind, row = line[0], line[1:].reshape(width, channels).astype(np.int64)
        if kind == 2:
            row = row + above
        elif kind == 1:
            row = np.cumsum(row, axis=0)
        elif kind > 2:
            left, corner = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
            for x in range(width):
                if kind == 3:
                    guess = (left + above[x]) // 2
                else:
                    a, b, c = (abs(p) for p in (above[x] - corner, left - corner, left + above[x] - 2 * corner))
                    guess = np.where((a <= b) & (a <= c), left, np.where(b <= c, above[x], corner))
                row[x] = left = (row[x] + guess) % 256
                corner = above[x]
        above = row % 256
        out.append(above[:, :3])
    return np.array(out)


def browse(browser, folder, *options):
    command = (browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={folder}/browser", *options)
    return tap.run(*command, folder=folder, seconds=120)


def check_browser(folder):
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser:
        tap.skip("a browser shows the page", "no chromium here")
        return
    address = f"file://{folder}/run/report.html"
    with open(f"{folder}/run/report.html", encoding="utf-8") as file:
        write(f"{folder}/probe.html", file.read().replace("</body>", PROBE))
    for width in (1280, 500):
        code, out, errors = browse(browser, folder, f"--window-size={width},900", "--dump-dom",
                                   f"file://{folder}/probe.html")
        title = re.search(r"<title>(\{.*?\})</title>", out)
        if not tap.ok(code == 0 and title, f"{width} pixels: the browser reads the page"):
            tap.note(errors[-1000:])
            continue
        seen = json.loads(html.unescape(title[1]))
        tap.is_equal([name for name, _ in seen["sections"]], SECTIONS, f"{width} pixels: all sections")
        tap.ok(all(height > 50 for _, height in seen["sections"]), f"{width} pixels: each with something in it")
        tap.ok(seen["width"] <= seen["window"], f"{width} pixels: the page is no wider than the window")
        tap.is_equal((seen["outside"], seen["external"], seen["evil"]), (0, 0, 0),
                     f"{width} pixels: lines stay in their charts, nothing else is loaded")
        tap.ok("CONSOLE" not in errors, f"{width} pixels: no errors in it")
    code, _, errors = browse(browser, folder, "--window-size=700,640", f"--screenshot={folder}/page.png", address)
    if not tap.ok(code == 0 and os.path.exists(f"{folder}/page.png"), "a picture of the page"):
        tap.note(errors[-1000:])
        return
    pixels = read_png(f"{folder}/page.png")
    blue = (abs(pixels - [0x31, 0x67, 0xc4]).max(axis=2) < 8).sum()
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    tap.ok(blue > 200 and len(colours) > 50 and counts.max() < 0.9 * counts.sum(), "which is not blank")
    tap.note(f"{blue} pixels of the first line's blue, {len(colours)} colours")


def main():
    with tap.scratch_folder() as folder:
        check_whole(folder)
        make(folder, "run")
        check_browser(folder)
        check_broken(folder)
    tap.done()


main()
