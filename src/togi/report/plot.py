"""Small inline SVG plots. Colours are CSS classes of the page. Numbers are in SVG user units, about one pixel each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from togi.report.formatting import MINUS
from togi.report.view import RowView

WIDTH, HEIGHT = 340, 176
RIGHT, TOP, BOTTOM = 10, 20, 24
NARROWEST, LETTER = 46, 6.1  # minimum width of the left margin, and width of a letter in it
COLOURS = 6
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Points = Sequence[tuple[float, float | None]]  # (step, value); None breaks the line


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve; `style` is "" or one of the page's classes: faint, dashed."""

    points: Points
    colour: int = 0
    style: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The area between two curves over the same steps."""

    low: Points
    high: Points
    colour: int = 0
    style: str = "band"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """Maps steps and values to picture coordinates; `left` is the margin for the value labels."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float = NARROWEST

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Picture coordinates of (step, value)."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        return self.left + across * (WIDTH - self.left - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def plot(
    title: str, lines: Sequence[Line], bands: Sequence[Band], floor: tuple[float, ...], marks: Sequence[float]
) -> Markup:
    """One panel. The value axis covers all finite values and the values in `floor`; `marks` are steps with an alarm."""
    shown = [points for line in lines for points in line.points] + [
        point for band in bands for side in (band.low, band.high) for point in side
    ]
    values = [value for _, value in shown if value is not None] + list(floor)
    steps = [step for step, _ in shown]
    if not values or not steps:
        return Markup("")
    ticks = nice_ticks(min(values), max(values))
    labels, power = tick_labels(ticks)
    left = max(NARROWEST, 10 + LETTER * max(map(len, labels)))
    axes = Axes(x=(min(steps), max(steps)), y=(min(ticks[0], *values), max(ticks[-1], *values)), left=left)
    parts = [_frame(axes, ticks, labels)]
    if power:
        parts.append(f'<text x="{left - 6:.0f}" y="{TOP - 10}" text-anchor="end">{power}</text>')
    parts += [_area(axes, band) for band in bands]
    parts += [_mark(axes, step) for step in marks if axes.x[0] <= step <= axes.x[1]]
    parts += [_curve(axes, line) for line in lines]
    head = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return Markup(head + "".join(parts) + "</svg>")


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round values that cover low..high."""
    if high - low <= 1e-12 * max(1.0, abs(high), abs(low)):
        pad = abs(high) * 0.1
        low, high = (low - pad, high + pad) if pad else (0.0, 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(12, 3 - math.floor(math.log10(step)))  # also for values as small as 1e-16
    return [round(i * step, digits) for i in range(first, last + 1)]


def whisker(row: RowView) -> Markup:
    """A difference and its interval around zero. Each row has its own scale."""
    if row.difference is None:
        return Markup("")
    half, middle = 56.0, 60.0
    reach = max(abs(row.difference.low), abs(row.difference.high)) or 1.0
    low, mean, high = (
        middle + half * v / reach for v in (row.difference.low, row.difference.mean, row.difference.high)
    )
    return Markup(
        f'<svg class="whisker {row.verdict}" viewBox="0 0 120 18" aria-hidden="true">'
        f'<path class="zero" d="M60 1V17"/><path class="reach" d="M{low:.1f} 9H{high:.1f}"/>'
        f'<circle cx="{mean:.1f}" cy="9" r="4"/></svg>'
    )


def reach(row: RowView) -> Markup:
    """A share and its interval on an axis from 0 to 1, or from -1 to 1 if it is negative; empty for other values."""
    low, mean, high = row.policy.low, row.policy.mean, row.policy.high
    if not -1 <= low <= high <= 1:
        return Markup("")
    least = -1.0 if low < 0 else 0.0

    def at(value: float) -> float:
        return 4 + 112 * (value - least) / (1 - least)

    ticks = "".join(
        f'<path class="zero" d="M{at(value):.1f} 3V15"/>' for value in dict.fromkeys((least, 0.0, 0.5, 1.0))
    )
    return Markup(
        f'<svg class="whisker changed" viewBox="0 0 120 18" aria-hidden="true">{ticks}'
        f'<path class="reach" d="M{at(low):.1f} 9H{at(high):.1f}"/><circle cx="{at(mean):.1f}" cy="9" r="4"/></svg>'
    )


def _frame(axes: Axes, ticks: Sequence[float], labels: Sequence[str]) -> str:
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        x, y = axes.at(axes.x[0], tick)
        parts.append(f'<path class="grid" d="M{x:.0f} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{x - 6:.0f}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    for step, anchor in ((axes.x[0], "start"), (axes.x[1], "end")):
        x, _ = axes.at(step, axes.y[0])
        words = f"step {step:,.0f}" if anchor == "start" else f"{step:,.0f}"
        if anchor == "start" or axes.x[0] != axes.x[1]:
            parts.append(f'<text x="{x:.0f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{words}</text>')
    return "".join(parts)


def tick_labels(ticks: Sequence[float]) -> tuple[list[str], str]:
    """Distinct labels for ticks, and their common factor, such as ×10⁻⁵; the factor is empty if the labels are the
    values themselves."""
    step, largest = ticks[1] - ticks[0], max(abs(tick) for tick in ticks)
    exponent = math.floor(math.log10(largest)) if largest >= 1e5 or largest < 1e-2 else 0
    scale = 10.0**exponent
    digits = max(0, -math.floor(math.log10(step / scale) + 1e-9))
    if abs(step / scale * 10**digits - round(step / scale * 10**digits)) > 1e-6:  # steps of 2.5
        digits += 1
    labels = [f"{tick / scale:,.{digits}f}" if tick else "0" for tick in ticks]
    return [label.replace("-", MINUS) for label in labels], f"×10{str(exponent).translate(RAISED)}" if exponent else ""


def _curve(axes: Axes, line: Line) -> str:
    colour = f"c{line.colour % COLOURS}"
    parts = []
    for run in _runs(line.points):
        places = [axes.at(x, y) for x, y in run]
        if len(places) == 1:
            parts.append(f'<circle class="dot {colour}" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="2.5"/>')
        else:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(f'<path class="line {line.style} {colour}" d="M{path}"/>')
    return "".join(parts)


def _area(axes: Axes, band: Band) -> str:
    both = [(x, low, high) for (x, low), (_, high) in zip(band.low, band.high, strict=True)]
    upper = [(x, high if low is not None else None) for x, low, high in both]
    lower = [(x, low if high is not None else None) for x, low, high in both]
    parts = []
    for over, under in zip(_runs(upper), _runs(lower), strict=True):
        outline = [axes.at(*point) for point in over] + [axes.at(*point) for point in reversed(under)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in outline)
        parts.append(f'<path class="{band.style} c{band.colour % COLOURS}" d="M{path}Z"/>')
    return "".join(parts)


def _mark(axes: Axes, step: float) -> str:
    x, _ = axes.at(step, axes.y[0])
    return f'<path class="alarm-mark" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'


def _runs(points: Points) -> list[list[tuple[float, float]]]:
    """The segments of a curve between its gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]
