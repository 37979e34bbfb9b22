"""Scatter plots with intervals, such as reward against KL or a calibration curve. Colours are CSS classes of the page;
numbers are in SVG user units, about one pixel each."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from togi.report.plot import COLOURS, nice_ticks, tick_labels

WIDTH, HEIGHT = 340, 240
LEFT, RIGHT, TOP, BOTTOM, LETTER = 46, 14, 14, 42, 6.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measured point: `low` and `high` are the interval of y, if there is one; `label` is drawn next to it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one kind, in order. `joined` draws a line through them; `dashed` makes it dashed, as for a baseline."""

    name: str
    points: Sequence[Point]
    joined: bool = True
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class _Axes:
    x: Sequence[float]
    y: Sequence[float]
    left: float

    def across(self, value: float) -> float:
        return self.left + (value - self.x[0]) / (self.x[-1] - self.x[0]) * (WIDTH - self.left - RIGHT)

    def up(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y[0]) / (self.y[-1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)


def scatter(
    title: str, series: Sequence[Series], *, across: str, up: str, floor: Sequence[float] = (), diagonal: bool = False
) -> Markup:
    """The plot as SVG. Series i has colour i of the page, so that a legend can name it. `across` and `up` are the
    titles of the axes; the vertical axis also covers the values in `floor`. With `diagonal`, both axes are 0 to 1 and a
    dashed diagonal shows where they are equal. Empty without points."""
    points = [point for one in series for point in one.points]
    if not points:
        return Markup("")
    ends = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    unit = [0.0, 0.25, 0.5, 0.75, 1.0]
    x = unit if diagonal else nice_ticks(min(p.x for p in points), max(p.x for p in points), 5)
    y = unit if diagonal else nice_ticks(min([*ends, *floor]), max([*ends, *floor]))
    labels, power = tick_labels(y)
    axes = _Axes(x, y, max(LEFT, 24 + LETTER * max(map(len, labels))))
    parts = [_frame(axes, labels, power, across, up)]
    if diagonal:
        parts.append(
            f'<path class="line dashed neutral" d="M{axes.across(0):.1f} {axes.up(0):.1f}'
            f'L{axes.across(1):.1f} {axes.up(1):.1f}"/>'
        )
    parts += [_series(axes, one, number % COLOURS) for number, one in enumerate(series)]
    head = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _frame(axes: _Axes, labels: Sequence[str], power: str, across: str, up: str) -> str:
    parts = []
    for tick, label in zip(axes.y, labels, strict=True):
        y = axes.up(tick)
        parts.append(f'<path class="grid" d="M{axes.left:.1f} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{axes.left - 6:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    words, factor = tick_labels(axes.x)
    for tick, label in zip(axes.x, words, strict=True):
        x = axes.across(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {HEIGHT - BOTTOM}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{label}</text>')
    middle = (axes.left + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(_with(across, factor))}</text>')
    upright = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="11" y="{upright:.1f}" text-anchor="middle" transform="rotate(-90 11 {upright:.1f})">'
        f"{escape(_with(up, power))}</text>"
    )
    return "".join(parts)


def _with(title: str, factor: str) -> str:
    return f"{title} ({factor})" if factor else title


def _series(axes: _Axes, series: Series, colour: int) -> str:
    places = [(axes.across(point.x), axes.up(point.y)) for point in series.points]
    parts = []
    if series.joined and len(places) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="line{" dashed" if series.dashed else ""} c{colour}" d="M{path}"/>')
    for point, (x, y) in zip(series.points, places, strict=True):
        if point.low is not None and point.high is not None:
            ends = f"M{x:.1f} {axes.up(point.low):.1f}V{axes.up(point.high):.1f}"
            parts.append(f'<path class="line faint c{colour}" d="{ends}"/>')
        parts.append(f'<circle class="dot c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        if point.label:
            side, shift = ("end", -6) if x > WIDTH - 70 else ("start", 6)
            parts.append(f'<text x="{x + shift:.1f}" y="{y - 5:.1f}" text-anchor="{side}">{escape(point.label)}</text>')
    return "".join(parts)
