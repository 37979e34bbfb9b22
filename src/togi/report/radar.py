"""A radar plot: one spoke per category, one outline per subject. Colours are CSS classes of the page."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from togi.report.plot import COLOURS, nice_ticks

WIDTH, HEIGHT, RADIUS = 340, 264, 92
MIDDLE = (WIDTH / 2, HEIGHT / 2)
RINGS = 4
ABOVE = 8  # raises the first spoke's name above the outermost ring's number


def radar(
    title: str,
    spokes: Sequence[str],
    outlines: Mapping[str, Sequence[float | None]],
    span: tuple[float, float] | None = None,
) -> Markup:
    """The plot as SVG. `outlines` holds each subject's value on every spoke; None leaves a gap in its outline. `span`
    is the scale from the middle to the rim; without it, the scale covers all values. Empty with fewer than three
    spokes, or without values.

    Subject i has colour i of the page, so that a legend can name it.
    """
    values = [value for outline in outlines.values() for value in outline if value is not None]
    if len(spokes) < 3 or not values:
        return Markup("")
    ticks = nice_ticks(*(span or (min(values), max(values))), RINGS)
    low, high = span or (ticks[0], ticks[-1])
    ends = [_at(number, len(spokes), 1.0) for number in range(len(spokes))]
    parts = [f'<path class="grid" d="M{MIDDLE[0]:.1f} {MIDDLE[1]:.1f}L{x:.1f} {y:.1f}"/>' for x, y in ends]
    for tick in (tick for tick in ticks if low < tick <= high):
        share = (tick - low) / (high - low)
        parts.append(_ring([_at(number, len(spokes), share) for number in range(len(spokes))], "grid"))
        x, y = _at(0, len(spokes), share)
        parts.append(f'<text x="{x + 3:.1f}" y="{y - 2:.1f}">{tick:g}</text>')
    parts += [_name(name, number, len(spokes)) for number, name in enumerate(spokes)]
    for number, outline in enumerate(outlines.values()):
        shares = [None if value is None else min(1.0, max(0.0, (value - low) / (high - low))) for value in outline]
        parts.append(_outline(shares, number % COLOURS))
    head = f'<svg class="plot radar" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _at(number: int, count: int, share: float) -> tuple[float, float]:
    """A position on a spoke; the first spoke points up, the others follow clockwise."""
    angle = 2 * math.pi * number / count
    return MIDDLE[0] + RADIUS * share * math.sin(angle), MIDDLE[1] - RADIUS * share * math.cos(angle)


def _ring(places: Sequence[tuple[float, float]], style: str) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return f'<path class="{style}" d="M{path}Z"/>'


def _name(name: str, number: int, count: int) -> str:
    x, y = _at(number, count, 1.12)
    y -= 0 if number else ABOVE
    side = x - MIDDLE[0]
    anchor = "middle" if abs(side) < 6 else "start" if side > 0 else "end"
    return f'<text class="spoke" x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="{anchor}">{escape(name)}</text>'


def _outline(shares: Sequence[float | None], colour: int) -> str:
    """The outline of a subject: closed and filled if every spoke has a value, else the segments between gaps."""
    count = len(shares)
    known = [(number, share) for number, share in enumerate(shares) if share is not None]
    places = {number: _at(number, count, share) for number, share in known}
    dots = "".join(f'<circle class="dot c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in places.values())
    if len(known) == count:
        ring = list(places.values())
        return _ring(ring, f"band c{colour}") + _ring(ring, f"line c{colour}") + dots
    stretches = [
        f"M{places[one][0]:.1f} {places[one][1]:.1f}L{places[other][0]:.1f} {places[other][1]:.1f}"
        for one in places
        if (other := (one + 1) % count) in places
    ]
    return (f'<path class="line c{colour}" d="{"".join(stretches)}"/>' if stretches else "") + dots
