"""Figures from model cards: rows shown next to ours, marked as published. They enter no paired test.

`tables.json` holds only figures, copied from the cards, each table with its source and licence.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from togi.core.errors import InputError

FILE = Path(__file__).with_name("tables.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A column: its name and unit, and whether a larger value is better (None: neither direction is). `columns` are the
    columns of our benchmark that mean the same, the closest first."""

    name: str
    unit: str
    higher_is_better: bool | None
    columns: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A figure as printed, with its interval if the card has one; None if the card prints no figure."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A model with one value for each metric. `note` is the card's remark on the row."""

    model: str
    values: Sequence[Value]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A table of a model card: its source, its licence, and how its figures were measured. `benchmark` is the type of
    our benchmark that measures the same, `part` the part of its table (empty: the table itself)."""

    name: str
    benchmark: str
    part: str
    title: str
    card: str
    source: str
    licence: str
    how: str
    metrics: Sequence[Metric]
    rows: Sequence[Row]

    def column(self, metric: str) -> dict[str, Value]:
        """The values of one metric by model. KeyError for a metric that the table does not have."""
        place = {each.name: number for number, each in enumerate(self.metrics)}[metric]
        return {row.model: row.values[place] for row in self.rows}

    def to_json(self) -> dict[str, Any]:
        """As JSON-like values."""
        return asdict(self)


@cache
def tables() -> Mapping[str, Published]:
    """All tables by name."""
    return {value["name"]: _table(value) for value in json.loads(FILE.read_text(encoding="utf-8"))}


def published(name: str) -> Published:
    """The table of this name. InputError for an unknown name."""
    if name not in tables():
        raise InputError(f"published: found {name!r}; choose from {', '.join(tables())}")
    return tables()[name]


def of_benchmark(benchmark: str) -> list[str]:
    """The names of the published tables for a type of benchmark."""
    return [name for name, one in tables().items() if one.benchmark == benchmark]


def _table(value: dict[str, Any]) -> Published:
    metrics = [_metric(each) for each in value["metrics"]]
    rows = [_row(each, len(metrics)) for each in value["rows"]]
    words = {key: value[key] for key in ("name", "benchmark", "title", "card", "source", "licence", "how")}
    return Published(**words, part=value.get("part", ""), metrics=metrics, rows=rows)


def _metric(value: dict[str, Any]) -> Metric:
    better = {"higher": True, "lower": False, None: None}[value["better"]]
    columns = value.get("columns", [value["name"]])
    return Metric(name=value["name"], unit=value["unit"], higher_is_better=better, columns=columns)


def _row(value: list[Any], metrics: int) -> Row:
    model, found, note = value[0], value[1 : 1 + metrics], value[1 + metrics :]
    return Row(model=model, values=[_value(each) for each in found], note=note[0] if note else "")


def _value(value: Any) -> Value:
    """A number, or [number, below, above] with the interval relative to the number, as cards print it."""
    if not isinstance(value, list):
        return Value(value=value)
    number, below, above = value
    return Value(value=number, low=round(number + below, 6), high=round(number + above, 6))
