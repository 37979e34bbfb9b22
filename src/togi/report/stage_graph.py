"""The stage graph, drawn to the left of the list of stages, with one row per stage.

An edge to the next row is straight. Longer edges get their own lane and branch off to every stage that reads them. The
graph stays readable on a phone and for any number of stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from togi.report.view import StageView

ROW = 54  # height of a row; report.css sets the same height for the list
LANE = 13  # distance between lanes
DOT = 6
COLOURS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Rail:
    """The picture and its width in pixels."""

    svg: Markup
    width: int


def rail(stages: Sequence[StageView]) -> Rail:
    """Draws the graph of stages, which must be sorted with inputs first."""
    row = {stage.name: i for i, stage in enumerate(stages)}
    readers: dict[int, list[int]] = {}
    for i, stage in enumerate(stages):
        for name in stage.inputs:
            if row.get(name, i) < i:
                readers.setdefault(row[name], []).append(i)
    far = {i: [j for j in sorted(found) if j > i + 1] for i, found in readers.items()}
    lanes = _lanes({i: found[-1] for i, found in far.items() if found})
    width = 2 * DOT + 12 + LANE * (max(lanes.values(), default=-1) + 1)
    column = width - DOT - 5
    parts = []
    for i, lane in lanes.items():
        parts.append(_bus(column, column - LANE * (lane + 1), i, far[i]))
    for i, found in readers.items():
        if i + 1 in found:
            parts.append(f'<path class="edge" d="M{column} {_y(i) + DOT}V{_y(i + 1) - DOT - 1}"/>')
    for i, stage in enumerate(stages):
        state = "cached" if stage.cached else stage.state
        parts.append(f'<circle class="stop {state}" cx="{column}" cy="{_y(i)}" r="{DOT}"/>')
    height = ROW * len(stages)
    head = f'<svg class="rail" width="{width}" height="{height}" viewBox="0 0 {width} {height}" aria-hidden="true">'
    return Rail(svg=Markup(head + "".join(parts) + "</svg>"), width=width)


def _y(row: int) -> int:
    return row * ROW + ROW // 2


def _lanes(reach: dict[int, int]) -> dict[int, int]:
    """A lane for every stage with far readers, without overlaps; short edges get the inner lanes."""
    taken: list[list[tuple[int, int]]] = []
    lanes: dict[int, int] = {}
    for start, end in sorted(reach.items(), key=lambda item: (item[1] - item[0], item[0])):
        free = (i for i, spans in enumerate(taken) if all(end <= first or start >= last for first, last in spans))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((start, end))
        lanes[start] = lane
    return lanes


def _bus(column: int, x: int, start: int, ends: Sequence[int]) -> str:
    bend = 8
    top = _y(start)
    path = f"M{column - DOT} {top}H{x + bend}Q{x} {top} {x} {top + bend}V{_y(ends[-1]) - bend}"
    path += "".join(f"M{x} {_y(end) - bend}Q{x} {_y(end)} {x + bend} {_y(end)}H{column - DOT - 1}" for end in ends)
    return f'<path class="edge c{start % COLOURS}" d="{path}"/>'
