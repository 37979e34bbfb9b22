"""The result of a benchmark: a table with one row per subject, each number with its interval and count.

It also has the numbers of single questions (`values`), so that two tables can be compared question by question.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from togi.core.records import Figure
from togi.core.seeds import digest
from togi.evaluate.statistics import Bootstrap, Interval, by_cluster, cluster_mean, wilson
from togi.evaluate.table import Metric

Values = Mapping[str, Mapping[str, Sequence[float | None]]]
"""By subject and column: one number per question; None if missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number of a subject: its value, the bounds of its interval, and the number of questions behind it. None means
    undefined. `note` is for readers, such as "3 failed"."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        wrong = [each for each in (self.value, self.low, self.high) if each is not None and not math.isfinite(each)]
        if wrong:
            raise ValueError(f"a cell holds {wrong[0]}; use None for an undefined number")

    def to_json(self) -> dict[str, Any]:
        """The cell as JSON-like values."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "note": self.note}


Cells = Mapping[str, Mapping[str, Cell]]
"""By subject, then by column."""


def cell_of(interval: Interval | None, *, value: float | None = None, n: int | None = None, note: str = "") -> Cell:
    """A cell from an interval; without one, from `value` only. `n` replaces the interval's count."""
    if interval is None:
        return Cell(value=value, n=n or 0, note=note)
    count = interval.n if n is None else n
    return Cell(value=interval.mean, low=interval.low, high=interval.high, n=count, note=note)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A sub-table, such as the accuracy by category: the same subjects, other columns."""

    title: str
    columns: Sequence[Metric]
    cells: Cells
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot of a table in the report. `scatter`: each subject's second column against the first, with the rows of the
    part `part` as a dashed line. `leaderboard`: one column with intervals, best on top. `radar`: the columns of `part`,
    one outline per subject."""

    kind: Literal["scatter", "leaderboard", "radar"]
    columns: Sequence[str] = ()
    part: str = ""

    def to_json(self) -> dict[str, Any]:
        """The plot as JSON-like values."""
        return {"kind": self.kind, "columns": list(self.columns), "part": self.part}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Published rows next to ours: their origin (`title`, `card`, `source`, `licence`), how they were measured, and
    their figures by model and our column. `part` is the part of our table that they belong to; empty for the table
    itself. `notes` are the card's remarks on single models."""

    title: str
    card: str
    source: str
    licence: str
    how: str
    cells: Cells
    part: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The rows as JSON-like values."""
        words = {name: getattr(self, name) for name in ("title", "card", "source", "licence", "how", "part")}
        return {**words, "cells": _cells(self.cells), "notes": dict(self.notes)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The result of a benchmark.

    `rows` is the number of questions (or pairs, or battles) used; `dropped` counts unusable ones by reason. `leaks`
    counts, for each model, the questions that it was trained on; None if nothing is known of its training.
    `decontaminated` says by model which of its training data was compared with these questions, and how many records
    were left out. `differences` are paired differences from `baseline`.
    `items` name the questions of `values`; those with equal `owners` are not independent.

    `manifest` describes how the numbers were obtained: what must agree before two tables are compared (`common`), and
    the identity of each subject (`subjects`). `published` are rows of model cards, which enter no comparison.
    """

    benchmark: str
    columns: Sequence[Metric]
    cells: Cells
    rows: int
    baseline: str | None = None
    differences: Cells = field(default_factory=dict)
    parts: Sequence[Part] = ()
    plots: Sequence[Plot] = ()
    items: Sequence[str] = ()
    owners: Sequence[str] = ()
    values: Values = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    leaks: Mapping[str, int | None] = field(default_factory=dict)
    decontaminated: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    level: float = 0.95
    published: Sequence[Told] = ()

    @property
    def mark(self) -> str:
        """The hash of the manifest, 12 digits."""
        return digest(self.manifest)[:12]

    def figures(self) -> list[Figure]:
        """Every number as a record of the kind `tables`; for a number in a part, the metric starts with its title."""
        found = self._figures(self.columns, self.cells, None, "")
        found += self._figures(self.columns, self.differences, self.baseline, "")
        for part in self.parts:
            found += self._figures(part.columns, part.cells, None, f"{part.title}: ")
        return found

    def _figures(self, columns: Sequence[Metric], cells: Cells, against: str | None, before: str) -> list[Figure]:
        return [
            self._figure(column, f"{before}{column.name}", subject, against, row[column.name])
            for subject, row in cells.items()
            for column in columns
            if column.name in row
        ]

    def _figure(self, column: Metric, metric: str, subject: str, against: str | None, cell: Cell) -> Figure:
        return Figure(
            id=digest([self.benchmark, metric, subject, against])[:16],
            benchmark=self.benchmark,
            metric=metric,
            subject=subject,
            against=against,
            value=cell.value,
            low=cell.low,
            high=cell.high,
            count=cell.n,
            higher_is_better=column.higher_is_better,
            note="; ".join(filter(None, (column.note, cell.note))),
            extra={"manifest": self.manifest},
        )

    def item_figures(self) -> list[Figure]:
        """The numbers of single questions as records: the parents are the question and its owner."""
        better = {column.name: column.higher_is_better for column in self.columns}
        owners = self.owners or self.items
        return [
            Figure(
                id=digest([self.benchmark, metric, subject, item])[:16],
                parents=tuple(dict.fromkeys((item, owner))),
                benchmark=self.benchmark,
                metric=metric,
                subject=subject,
                value=value,
                higher_is_better=better.get(metric),
            )
            for subject, columns in self.values.items()
            for metric, values in columns.items()
            for item, owner, value in zip(self.items, owners, values, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """The table for the report: everything except the numbers of single questions."""
        return {
            "benchmark": self.benchmark,
            "rows": self.rows,
            "columns": [_column(column) for column in self.columns],
            "cells": _cells(self.cells),
            "baseline": self.baseline,
            "differences": _cells(self.differences),
            "parts": [
                {
                    "title": part.title,
                    "columns": [_column(column) for column in part.columns],
                    "cells": _cells(part.cells),
                    "note": part.note,
                }
                for part in self.parts
            ],
            "plots": [plot.to_json() for plot in self.plots],
            "dropped": dict(self.dropped),
            "leaks": dict(self.leaks),
            "decontaminated": dict(self.decontaminated),
            "notes": list(self.notes),
            "manifest": dict(self.manifest),
            "mark": self.mark,
            "level": self.level,
            "published": [each.to_json() for each in self.published],
        }


def _column(column: Metric) -> dict[str, Any]:
    return {
        "name": column.name,
        "higher_is_better": column.higher_is_better,
        "note": column.note,
        "share": column.share,
    }


def _cells(cells: Cells) -> dict[str, dict[str, Any]]:
    return {subject: {name: cell.to_json() for name, cell in row.items()} for subject, row in cells.items()}


# --- from the numbers of single questions -----------------------------------------------------------------------------


def measured(columns: Sequence[Metric], values: Values, bootstrap: Bootstrap, owners: Sequence[str] = ()) -> Cells:
    """The mean of each subject and column over the questions that have a number, with its interval."""
    return {
        subject: {column.name: mean_cell(column, own[column.name], bootstrap, owners) for column in columns}
        for subject, own in values.items()
    }


def paired(
    columns: Sequence[Metric], values: Values, baseline: str, bootstrap: Bootstrap, owners: Sequence[str] = ()
) -> Cells:
    """The difference of each subject from `baseline`, over the questions for which both have a number."""
    return {
        subject: {
            column.name: difference_cell(column, values[baseline][column.name], own[column.name], bootstrap, owners)
            for column in columns
        }
        for subject, own in values.items()
        if subject != baseline
    }


def mean_cell(column: Metric, values: Sequence[float | None], bootstrap: Bootstrap, owners: Sequence[str] = ()) -> Cell:
    """A mean with Student's t interval by owner. A share has Wilson's interval, or a bootstrap interval if owners
    repeat or a question is partly right.

    Missing numbers are left out: `n` counts the others. Numbers of one owner have no interval, nor have equal numbers
    that are no shares.
    """
    places = [place for place, value in enumerate(values) if value is not None]
    known = [value for value in values if value is not None]
    names = [owners[place] if owners else str(place) for place in places]
    if not known:
        return Cell()
    repeated = len(dict.fromkeys(names)) < len(names)
    if column.share and not repeated and all(value in (0, 0.5, 1) for value in known):
        return cell_of(wilson(sum(known), len(known), bootstrap.level))
    if column.share and len(dict.fromkeys(names)) > 1:
        found = cell_of(bootstrap.share(by_cluster(known, names)), n=len(known))
        return Cell(value=found.value, low=max(0.0, found.low or 0.0), high=min(1.0, found.high or 0.0), n=found.n)
    mean = sum(known) / len(known)
    found = cell_of(cluster_mean(known, names, bootstrap.level), value=mean, n=len(known))
    if found.low is None or found.high is None:
        return found
    low, high = column.within(found.low, found.high)
    return replace(found, low=low, high=high)


def difference_cell(
    column: Metric,
    base: Sequence[float | None],
    other: Sequence[float | None],
    bootstrap: Bootstrap,
    owners: Sequence[str] = (),
) -> Cell:
    """The mean of other minus base over the questions that have both, with a bootstrap interval by owner; for shares,
    `Bootstrap.share_difference`."""
    pairs = [(place, one, two) for place, (one, two) in enumerate(zip(base, other, strict=True))]
    known = [(place, one, two) for place, one, two in pairs if one is not None and two is not None]
    names = [owners[place] if owners else str(place) for place, _, _ in known]
    if not known:
        return Cell()
    mean = sum(two - one for _, one, two in known) / len(known)
    if len(dict.fromkeys(names)) < 2:
        return Cell(value=mean, n=len(known))
    first, second = ([row[side] for row in known] for side in (1, 2))
    if column.share:
        found = bootstrap.share_difference(first, second, names)
    else:
        found = bootstrap.difference(by_cluster(first, names), by_cluster(second, names))
    if found.low == found.high:  # nothing varies
        return Cell(value=mean, n=len(known))
    low, high = column.within_difference(found.low, found.high)
    return Cell(value=mean, low=low, high=high, n=len(known))
