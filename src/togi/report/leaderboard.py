"""A leaderboard plot: a point and an interval for each model, best on top; for a page, or as a separate file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from togi.report.plot import nice_ticks, tick_labels

WIDTH, ROW, TOP, BOTTOM, RIGHT, TITLE = 760, 26, 12, 34, 64, 32
LETTER = 7.2  # maximum width of a letter; Japanese letters are twice as wide
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.small{font-size:11px;fill:#666}.grid{stroke:#ddd}"
    ".reach{stroke:#3465a4;stroke-width:2}.dot{fill:#3465a4}.told .reach{stroke:#888}.told .dot{fill:#fff;stroke:#888}"
    ".base{stroke:#888;stroke-dasharray:4 3}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A model's figure; None if undefined. `told`: the figure is published, not measured here."""

    name: str
    rate: float | None
    low: float | None
    high: float | None
    told: bool = False


def leaderboard(title: str, places: Sequence[Place], baseline: float | None = 50.0) -> Markup:
    """The plot as an SVG file with its own colours. The axis covers all intervals and the `baseline`, a dashed line."""
    height, parts = _drawn(places, baseline)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-TITLE} {WIDTH} {height + TITLE}" width="{WIDTH}" '
        f'height="{height + TITLE}" role="img" aria-label="{escape(title)}"><style>{STYLE}</style>'
        f'<rect y="{-TITLE}" width="100%" height="100%" fill="#fff"/>'
    )
    words = f'<text x="12" y="-8" font-weight="bold">{escape(title)}</text>'
    return Markup(head + words + "".join(parts) + "</svg>\n")


def board(title: str, places: Sequence[Place], baseline: float | None = None) -> Markup:
    """The plot as SVG for a page, in the page's colours; empty if no model has a figure."""
    if all(one.rate is None for one in places):
        return Markup("")
    height, parts = _drawn(places, baseline)
    head = f'<svg class="board" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _drawn(places: Sequence[Place], baseline: float | None) -> tuple[float, list[str]]:
    """(the height, the parts of the plot)."""
    known = [value for one in places for value in (one.rate, one.low, one.high, baseline) if value is not None]
    ticks = nice_ticks(min(known, default=0.0), max(known, default=0.0), 6)
    left = min(WIDTH / 2, 24 + LETTER * max(_columns(one.name) for one in places))
    height = TOP + ROW * len(places) + BOTTOM
    labels, power = tick_labels(ticks)

    def across(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - left - RIGHT)

    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        x = across(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP - 8}V{height - BOTTOM}"/>')
        parts.append(f'<text class="small" x="{x:.1f}" y="{height - 14}" text-anchor="middle">{label}</text>')
    if power:
        parts.append(f'<text class="small" x="{WIDTH - 12}" y="{height - 14}" text-anchor="end">{power}</text>')
    if baseline is not None:
        parts.append(f'<path class="base" d="M{across(baseline):.1f} {TOP - 8}V{height - BOTTOM}"/>')
    for number, one in enumerate(places):
        parts.append(_line(one, TOP + ROW * number + ROW / 2, left, across))
    return height, parts


def _line(one: Place, y: float, left: float, across: Callable[[float], float]) -> str:
    """A model's name, interval, point and figure."""
    parts = [f'<text x="{left - 12:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(one.name)}</text>']
    if one.low is not None and one.high is not None:
        ends = "".join(f"M{across(end):.1f} {y - 4:.1f}v8" for end in (one.low, one.high))
        parts.append(f'<path class="reach" d="M{across(one.low):.1f} {y:.1f}H{across(one.high):.1f}{ends}"/>')
    if one.rate is not None:
        parts.append(f'<circle class="dot" cx="{across(one.rate):.1f}" cy="{y:.1f}" r="4"/>')
    words = "—" if one.rate is None else f"{one.rate:,.1f}" if abs(one.rate) >= 10 else f"{one.rate:.3g}"
    parts.append(f'<text class="small" x="{WIDTH - 12}" y="{y + 4:.1f}" text-anchor="end">{words}</text>')
    return f'<g class="told">{"".join(parts)}</g>' if one.told else "".join(parts)


def _columns(text: str) -> int:
    """The width of a name in columns: letters beyond Latin, Greek and Cyrillic take two."""
    return sum(2 if ord(letter) >= 0x1100 else 1 for letter in text)
