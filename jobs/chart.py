"""Charts as inline SVG for a page, by nothing but Python: lines over steps, and bars. Colours are the page's: the
classes s0, s1, ... of series, `grid`, `axis`, `mark`; all texts are escaped here."""
import collections
import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 250, 58, 20, 12, 30
MOST_POINTS = 900  # of a line; more would not be seen

# points: [(x, y)] in order of x; style: "line", "dots" (with a line through them) or "mark" (a vertical line at each x)
Series = collections.namedtuple("Series", "name points style css")


def short(value):
    """A number for people, with three digits or so."""
    if value == 0:
        return "0"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:.4g}{unit}"
    return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:.4g}"


def linear_ticks(low, high, most):
    """Round numbers from low to high, at most `most` and one."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low, high):
    """Powers of ten, with their doubles and fivefolds where there are few; round numbers within less than one."""
    if high / low < 10:
        return linear_ticks(low, high, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    return [10.0 ** power * factor for power in powers for factor in factors if low <= 10.0 ** power * factor <= high]


def thinned(points):
    """The line's outline: of each stretch its lowest and its highest point."""
    if len(points) <= MOST_POINTS:
        return points
    stretch, kept = math.ceil(2 * len(points) / MOST_POINTS), []
    for first in range(0, len(points), stretch):
        part = points[first:first + stretch]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def smoothed(points):
    """At each place the mean of a window around it, which is narrower towards the ends so that it stays centred."""
    reach, out = max(2, len(points) // 50), []
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    for place, (x, _) in enumerate(points):
        own = min(reach, place, len(points) - 1 - place)
        out.append((x, (sums[place + own + 1] - sums[place - own]) / (2 * own + 1)))
    return out


class Scale:
    """From the values of a chart to its places."""

    def __init__(self, series, log, from_zero):
        points = [point for one in series if one.style != "mark" for point in one.points]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        self.log = log and min(ys) > 0
        self.left, self.right = min(xs), max(xs)
        if self.left == self.right:
            self.left, self.right = self.left - 1, self.right + 1
        low, high = min(ys), max(ys)
        if from_zero:
            low = min(low, 0)
        if self.log:
            self.low, self.high = low / 1.08, high * 1.08
        else:
            room = 0.06 * (high - low) or 0.5 * abs(high) or 1
            self.low, self.high = low if from_zero and low == 0 else low - room, high + room

    def x(self, value):
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)


def draw_axes(scale):
    ticks = log_ticks(scale.low, scale.high) if scale.log else linear_ticks(scale.low, scale.high, 5)
    out = []
    for value in ticks or [scale.low, scale.high]:
        y = scale.y(value)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                   f'<text class="axis" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value in linear_ticks(scale.left, scale.right, 6):
        if value == int(value):
            out.append(f'<text class="axis" x="{scale.x(value):.1f}" y="{HEIGHT - 10}" text-anchor="middle">'
                       f'{short(value)}</text>')
    return out


def draw_series(scale, series):
    if series.style == "mark":
        return [f'<line class="mark" x1="{scale.x(x):.1f}" x2="{scale.x(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
                f'<title>{escape(series.name)} {short(x)}</title></line>'
                for x, _ in series.points if scale.left <= x <= scale.right]
    points = thinned(series.points)
    path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in points)
    out = [f'<polyline class="line {series.css}" points="{path}"/>'] if len(points) > 1 else []
    if series.style == "dots" or len(points) == 1:
        out += [f'<circle class="dot {series.css}" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="3.5">'
                f'<title>step {short(x)}: {short(y)}</title></circle>' for x, y in points]
    return out


def line_chart(series, label, log=False, from_zero=False):
    """Lines over steps; '' where there is nothing to draw."""
    series = [one for one in series if one.points]
    if not any(one.style != "mark" for one in series):
        return ""
    scale, body = Scale(series, log, from_zero), []
    for one in sorted(series, key=lambda one: one.style != "mark"):
        body += draw_series(scale, one)
    return (f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, {chr(34): ""})}">'
            + "".join(draw_axes(scale) + body) + "</svg>")


def bar_chart(rows, names, unit, line=None):
    """Bars to the right, one for each row (label, [values]), stacked; `line`: (label, value) across all of them."""
    height, left, right = 24, 70, 90
    most = max([sum(values) for _, values in rows] + ([line[1]] if line else [])) or 1
    room, out = WIDTH * 1.5 - left - right, []
    total = len(rows) * (height + 8) + (22 if line else 4)
    for number, (label, values) in enumerate(rows):
        x, y = left, number * (height + 8)
        out.append(f'<text class="label" x="{left - 10}" y="{y + 16}" text-anchor="end">{escape(label)}</text>')
        for index, value in enumerate(values):
            width = value / most * room
            out.append(f'<rect class="bar s{index}" x="{x:.1f}" y="{y}" width="{max(width - 0.8, 0):.1f}" '
                       f'height="{height}"><title>{escape(names[index])}: {escape(unit(value))}</title></rect>')
            x += width
        out.append(f'<text class="axis" x="{x + 8:.1f}" y="{y + 16}">{escape(unit(sum(values)))}</text>')
    if line:
        x = left + line[1] / most * room
        out.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{total - 20}"/>'
                   f'<text class="axis" x="{min(x, left + room - 60):.1f}" y="{total - 5}" text-anchor="middle">'
                   f'{escape(line[0])} {escape(unit(line[1]))}</text>')
    return (f'<svg class="bars" viewBox="0 0 {WIDTH * 1.5:g} {total}" role="img" aria-label="bars">'
            + "".join(out) + "</svg>")
