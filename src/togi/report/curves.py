"""Learning curves: which metrics of a stage share a panel, in which order, and under which title.

A metric `stem/mean` with `stem/p10` and `stem/p90` is one panel with a band. Unknown metrics get their own panels after
the known ones.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from togi.report.formatting import duration, number, plural
from togi.report.plot import COLOURS, Band, Line, Points, plot
from togi.report.view import StageView

MOST_POINTS = 240
RATE = "tokens_per_second"
SMOOTH_FROM = 24  # minimum steps for a rolling mean on top of the single steps
LEAST = 0.05  # seconds of a phase in all, without which it is not shown
STATISTICS = ("mean", "p10", "p25", "p50", "p75", "p90", "min", "max")

# (pattern of stems, title with the pattern's groups, values that the axis must show); the first match decides.
KNOWN: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    (r"reward/total|reward", "Reward", ()),
    (r"gate/.+", "Gate pass rate", (0.0, 1.0)),
    (r"reward/(.+)", r"Reward: \1", ()),
    (r"accuracy", "Accuracy on training pairs", (0.0, 1.0)),
    (r"(?:held_out|validation)/accuracy", "Accuracy on held-out pairs", (0.0, 1.0)),
    (r"(?:validation/)?margin", "Reward margin", (0.0,)),
    (r"reward_(?:chosen|rejected)", "Rewards of both answers", (0.0,)),
    (r"(?:validation/)?chosen_change", "Chosen answers: change since the start (nats per token)", (0.0,)),
    (r"score_(?:chosen|rejected)", "Scores of both answers", (0.0,)),
    (r"logp_(?:chosen|rejected)", "Log-probability of both answers (nats per token)", ()),
    (r"(?:validation/)?target_margin", "Target margin (nats per token)", (0.0,)),
    (r"length", "Length (tokens)", (0.0,)),
    (r"kl", "KL from the initial model (nats per token)", (0.0,)),
    (r"entropy", "Entropy (nats)", (0.0,)),
    (r"groups/no_spread", "Groups without reward spread", (0.0, 1.0)),
    (r"groups/teaching", "Groups with a training signal", (0.0, 1.0)),
    (r"groups/refill(?:ed|_rounds)", "Groups replaced, and replacement rounds", (0.0,)),
    (r"truncated", "Answers without a terminator", (0.0, 1.0)),
    (r"sampler_mismatch", "Mismatch with the sampler (nats per token)", (0.0,)),
    (r"(?:validation/)?loss", "Loss", ()),
    (r"grad_norm", "Gradient norm", (0.0,)),
    (r"learning_rate", "Learning rate", (0.0,)),
    (r"tokens/.+", "Tokens seen, by source", (0.0,)),
    (r"epochs/.+", "Epochs seen, by source", (0.0,)),
    (r"tokens_per_second", "Tokens per second", (0.0,)),
    (r"largest_micro_batch", "Largest micro-batch (tokens)", (0.0,)),
    (r"memory/most_gb", "Peak memory (GB)", (0.0,)),
    (r"time/.+", "Time by phase", (0.0,)),
    (r"validation/reward_(?:chosen|rejected)", "Validation: rewards of both answers", (0.0,)),
    (r"validation/logp_(?:chosen|rejected)", "Validation: log-probability of both answers", ()),
    (r"validation/score_(?:chosen|rejected)", "Validation: scores of both answers", (0.0,)),
    (r"validation/(?!nll)(.+)", r"Validation: \1", ()),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot with its heading. `legend` holds (colour, label, latest value)."""

    title: str
    latest: str
    legend: Sequence[tuple[int, str, str]]
    note: str
    svg: Markup
    known: bool


def panels(stage: StageView) -> list[Panel]:
    """The panels of a stage: known ones first, in the table's order. Empty without metrics."""
    groups: dict[tuple[int, str], list[str]] = {}
    keys = {key: None for line in stage.metrics for key, value in line.items() if isinstance(value, (int, float))}
    for key in keys:
        if key == "step":
            continue
        place, title = _place(_stem(key))
        groups.setdefault((place, title), []).append(key)
    marks = [alarm.step for alarm in stage.alarms if alarm.step is not None]
    made = [_panel(stage.metrics, place, title, groups[place, title], marks) for place, title in sorted(groups)]
    return [panel for panel in made if panel is not None and panel.svg]


def _stem(key: str) -> str:
    stem, _, last = key.rpartition("/")
    return stem if last in STATISTICS else key


def _place(stem: str) -> tuple[int, str]:
    """The position and the title of a stem's panel."""
    for place, (pattern, title, _) in enumerate(KNOWN):
        found = re.fullmatch(pattern, stem)
        if found:
            return place, found.expand(title).replace("_", " ")
    return len(KNOWN), stem.replace("_", " ").replace("/", " / ")


def _panel(
    metrics: Sequence[Mapping[str, Any]], place: int, title: str, keys: list[str], marks: Sequence[float]
) -> Panel | None:
    """A panel; None if none of its curves has two points."""
    floor = KNOWN[place][2] if place < len(KNOWN) else ()
    curves = {key: _points(metrics, key) for key in keys}
    if max(sum(value is not None for _, value in points) for points in curves.values()) < 2:
        return None
    broken = sum(value is None for points in curves.values() for _, value in points)
    draw = _stacked if title.startswith("Time by phase") else _banded if len(_stems(keys)) == 1 else _together
    lines, bands, legend, note = draw(curves)
    notes = [note] if note else []
    if broken:
        notes.append(f"{plural(broken, 'value')} not finite")
    return Panel(
        title=title,
        latest="" if len(legend) > 1 else legend[0][2],
        legend=legend if len(legend) > 1 else (),
        note=", ".join(notes),
        svg=plot(title, lines, bands, floor, marks),
        known=place < len(KNOWN),
    )


def _stems(keys: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(_stem(key) for key in keys))


Drawn = tuple[list[Line], list[Band], list[tuple[int, str, str]], str]


def _banded(curves: Mapping[str, Points]) -> Drawn:
    """One quantity: its mean, or the value itself, over the band of its quantiles."""
    by_statistic = {key.rpartition("/")[2] if _stem(key) != key else "mean": points for key, points in curves.items()}
    main = by_statistic.get("mean", by_statistic.get("p50"))
    if main is None:
        return _together(curves)
    low, high = by_statistic.get("p10"), by_statistic.get("p90")
    if low is not None and high is not None:
        lines, note = [Line(points=_thin(main))], "band: 10 to 90 % of samples"
        bands = [Band(low=_thin(low), high=_thin(high))]
        if "p50" in by_statistic and "mean" in by_statistic:
            lines.append(Line(points=_thin(by_statistic["p50"]), style="dashed"))
            note += ", dashed: median"
    else:
        lines, note = _smoothed(main, 0)
        bands = []
    return lines, bands, [(0, "", _latest(main))], note


def _together(curves: Mapping[str, Points]) -> Drawn:
    """Several quantities on one axis."""
    lines, legend, note = [], [], ""
    for colour, (key, points) in enumerate(curves.items()):
        drawn, note = _smoothed(points, colour)
        lines += drawn
        legend.append((colour, _short(key), _latest(points)))
    return lines, [], legend, note


def _stacked(curves: Mapping[str, Points]) -> Drawn:
    """Seconds per step, with phases stacked. A phase that was not measured counts as zero."""
    curves = _told_apart(curves)
    steps = sorted({step for points in curves.values() for step, _ in points})
    base = [0.0] * len(steps)
    bands, legend = [], []
    for colour, (key, points) in enumerate(curves.items()):
        measured = {step: value or 0.0 for step, value in points}
        top = [under + measured.get(step, 0.0) for step, under in zip(steps, base, strict=True)]
        low, high = (_thin(list(zip(steps, side, strict=True))) for side in (base, top))
        bands.append(Band(low=low, high=high, colour=colour, style="stack"))
        legend.append((colour, _short(key), duration(sum(measured.values()))))
        base = top
    return [], bands, legend, "seconds per step; total next to the name" if len(legend) > 1 else "total on the right"


def _told_apart(curves: Mapping[str, Points]) -> dict[str, Points]:
    """The phases that take time, each with a colour of its own. The shortest of too many are one, "other"."""
    totals = {key: sum(value or 0.0 for _, value in points) for key, points in curves.items()}
    taking = [key for key, total in totals.items() if total >= LEAST] or list(curves)[:1]
    if len(taking) <= COLOURS:
        return {key: curves[key] for key in taking}
    longest = sorted(taking, key=lambda key: -totals[key])[: COLOURS - 1]
    other: dict[float, float] = {}
    for key in (each for each in taking if each not in longest):
        for step, value in curves[key]:
            other[step] = other.get(step, 0.0) + (value or 0.0)
    return {key: curves[key] for key in taking if key in longest} | {"other": sorted(other.items())}


def _short(key: str) -> str:
    """ "gate/terminator/pass" is "terminator", "time/sample" is "sample", "validation/loss" is "validation loss"."""
    known = re.sub(r"^(gate|time|reward|tokens|epochs|groups)/|/(pass|mean)$", "", key)
    return re.sub(r"^validation/", "validation ", known).replace("_", " ")


def _smoothed(points: Points, colour: int) -> tuple[list[Line], str]:
    if len(points) < SMOOTH_FROM:
        return [Line(points=points, colour=colour)], ""
    thin = _thin(points)
    reach = max(1, len(thin) // 30)
    smooth = [(step, _mean(thin[max(0, i - reach) : i + reach + 1])) for i, (step, _) in enumerate(thin)]
    lines = [Line(points=thin, colour=colour, style="faint"), Line(points=smooth, colour=colour)]
    return lines, f"strong line: mean of {(2 * reach + 1) * _thinning(points)} steps"


def _thin(points: Points) -> Points:
    """At most MOST_POINTS points; neighbours in longer curves are averaged."""
    size = _thinning(points)
    if size <= 1:
        return points
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[len(part) // 2][0], _mean(part)) for part in parts]


def _thinning(points: Points) -> int:
    return math.ceil(len(points) / MOST_POINTS)


def _mean(points: Points) -> float | None:
    values = [value for _, value in points if value is not None]
    return sum(values) / len(values) if values else None


def _latest(points: Points) -> str:
    return next((number(value) for _, value in reversed(points) if value is not None), "NaN")


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> Points:
    """A curve. A rate of 0 means that nothing was measured; it is left out."""
    lines = [line for line in metrics if key in line and not (key == RATE and not line[key])]
    return [(line["step"], _finite(line[key])) for line in lines]


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
