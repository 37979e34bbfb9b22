"""A leaderboard as a picture: a point and an interval for each model, best on top. One file that needs no other."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from togi.report.plot import nice_ticks

WIDTH, ROW, TOP, BOTTOM, RIGHT = 760, 26, 44, 34, 64
LETTER = 7.2  # of a name, at most; letters of Japanese are twice as wide
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.small{font-size:11px;fill:#666}.grid{stroke:#ddd}"
    ".reach{stroke:#3465a4;stroke-width:2}.dot{fill:#3465a4}.base{stroke:#888;stroke-dasharray:4 3}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A model's rate in percent; None where it has none."""

    name: str
    rate: float | None
    low: float | None
    high: float | None


def leaderboard(title: str, places: Sequence[Place], baseline: float = 50.0) -> Markup:
    """The picture as SVG; the axis covers all intervals and the `baseline`, which is a dashed line."""
    known = [value for one in places for value in (one.rate, one.low, one.high) if value is not None]
    ticks = nice_ticks(min([*known, baseline]), max([*known, baseline]), 6)
    left = 24 + LETTER * max(_columns(one.name) for one in places)
    height = TOP + ROW * len(places) + BOTTOM

    def across(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - left - RIGHT)

    parts = [f'<text x="12" y="22" font-weight="bold">{escape(title)}</text>']
    for tick in ticks:
        x = across(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP - 8}V{height - BOTTOM}"/>')
        parts.append(f'<text class="small" x="{x:.1f}" y="{height - 14}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path class="base" d="M{across(baseline):.1f} {TOP - 8}V{height - BOTTOM}"/>')
    for number, one in enumerate(places):
        y = TOP + ROW * number + ROW / 2
        parts.append(f'<text x="{left - 12:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(one.name)}</text>')
        if one.low is not None and one.high is not None:
            ends = "".join(f"M{across(end):.1f} {y - 4:.1f}v8" for end in (one.low, one.high))
            parts.append(f'<path class="reach" d="M{across(one.low):.1f} {y:.1f}H{across(one.high):.1f}{ends}"/>')
        if one.rate is not None:
            parts.append(f'<circle class="dot" cx="{across(one.rate):.1f}" cy="{y:.1f}" r="4"/>')
        words = "—" if one.rate is None else f"{one.rate:.1f}"
        parts.append(f'<text class="small" x="{WIDTH - 12}" y="{y + 4:.1f}" text-anchor="end">{words}</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}"><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
    )
    return Markup(head + "".join(parts) + "</svg>\n")


def _columns(text: str) -> int:
    """How many columns a name takes: letters beyond Latin, Greek and Cyrillic take two."""
    return sum(2 if ord(letter) >= 0x1100 else 1 for letter in text)
