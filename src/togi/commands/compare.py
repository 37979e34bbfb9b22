"""Compares two models, or two runs, question by question, and finds what was measured differently."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from togi.core.codec import read_records
from togi.core.errors import DamagedFile, InputError
from togi.core.files import read_object
from togi.core.records import Figure
from togi.evaluate.benchmarks.table import Cell
from togi.evaluate.comparison import Answers, Difference, compare, unlike
from togi.evaluate.statistics import Bootstrap
from togi.evaluate.table import Metric
from togi.recipe.runs import KnownRun
from togi.report.cells import bounds, change, words
from togi.report.formatting import number
from togi.report.view import BenchmarkView, CellView, ColumnView
from togi.stages.table import STAGES

VIEWS = TypeAdapter(list[BenchmarkView])
ITEMS = "output/items.parquet"
RESAMPLES = 10_000
MEASURING = [name for name, stage in STAGES.items() if stage.measures is not None]
"""The types of stages that measure models."""
APART = ("benchmark", "level")
"""Parts of a manifest that do not affect the measurement: the name, and the level of intervals."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A benchmark of a run with the numbers of each question, by subject and metric."""

    view: BenchmarkView
    items: Mapping[tuple[str, str], Answers]

    @property
    def subjects(self) -> list[str]:
        return list(dict.fromkeys(subject for subject, _ in self.items))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Two models on one benchmark. `unlike` are the parts of the manifests that differ."""

    benchmark: str
    base: str
    other: str
    level: float
    differences: Sequence[Difference]
    unlike: Sequence[str]

    @property
    def worse(self) -> list[str]:
        """Metrics whose interval shows that the second model is worse."""
        return [each.metric.name for each in self.differences if each.verdict == "worse"]

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON: shares in percent, null for undefined numbers."""
        return {
            "benchmark": self.benchmark,
            "a": self.base,
            "b": self.other,
            "level": self.level,
            "unlike": list(self.unlike),
            "worse": self.worse,
            "metrics": {each.metric.name: _json(each) for each in self.differences},
        }


def compare_runs(base: KnownRun, other: KnownRun, force: bool) -> list[Found]:
    """Compares the runs on each benchmark that both measured, for their only models or those with the same name.

    Raises InputError if there is no such benchmark or model, no common question, or if manifests differ, unless
    `force`.
    """
    one, two = _measured(base), _measured(other)
    found = [pair for name in one if name in two for pair in _pairs(name, one[name], two[name], base.id, other.id)]
    if not found:
        raise InputError(_nothing_shared(((base, one), (other, two))))
    return _held(found, force)


def _nothing_shared(runs: Sequence[tuple[KnownRun, Mapping[str, Measured]]]) -> str:
    """What is missing for a comparison, and what to write."""
    without = [run.id for run, own in runs if not own]
    if without:
        return (
            f"compare: {' and '.join(without)} measured no benchmark; runs are compared by the benchmarks of their "
            "evaluate stages, question by question, and an evaluate stage with only base and policy has none. Add a "
            "stage to the recipe of each, and run both again:\n  measured: {type: evaluate, models: [$policy], "
            "benchmarks: [{type: answers, prompts: $tests}]}\n"
            "where $policy is the model and $tests the questions; `togi list evaluate` shows the benchmarks"
        )
    names = " and ".join(f"{run.id} has {', '.join(map(_named, own.items()))}" for run, own in runs)
    return f"compare: the runs share no benchmark with models of the same name, or with a single model; {names}"


def _named(item: tuple[str, Measured]) -> str:
    return f"{item[0]} (of {', '.join(item[1].subjects)})"


def compare_models(run: KnownRun, base: str, other: str) -> list[Found]:
    """Compares two models of one run on each of its benchmarks."""
    return _held([_found(name, each, each, base, other) for name, each in _measured(run).items()], force=True)


def _held(found: Sequence[Found], force: bool) -> list[Found]:
    for each in found:
        if each.unlike and not force:
            told = "\n  ".join(each.unlike)
            raise InputError(
                f"compare: {each.benchmark} was measured differently, which may explain a difference:\n  {told}\n"
                "measure both in the same way, or compare them anyway with --force"
            )
        if all(not row.difference.n for row in each.differences):
            raise InputError(f"compare: {each.benchmark}: {each.base} and {each.other} have no question in common")
    return list(found)


def _pairs(name: str, one: Measured, two: Measured, base: str, other: str) -> Iterator[Found]:
    if len(one.subjects) == len(two.subjects) == 1:
        first, second = one.subjects[0], two.subjects[0]
        yield _found(name, one, two, first, second, (base, other) if first == second else ())
        return
    for subject in one.subjects:
        if subject in two.subjects:
            yield _found(name, one, two, subject, subject, (base, other))


def _found(name: str, one: Measured, two: Measured, base: str, other: str, runs: Sequence[str] = ()) -> Found:
    """The two models on a benchmark; equal names are distinguished by the run."""
    bootstrap = Bootstrap(seed=0, level=one.view.level, resamples=RESAMPLES)
    columns = [each for each in one.view.columns if (base, each.name) in one.items and (other, each.name) in two.items]
    return Found(
        benchmark=name,
        base=f"{base} ({runs[0]})" if runs else base,
        other=f"{other} ({runs[1]})" if runs else other,
        level=one.view.level,
        differences=[
            compare(_metric(each), one.items[base, each.name], two.items[other, each.name], bootstrap)
            for each in columns
        ],
        unlike=unlike(_common(one.view), _common(two.view)),
    )


def _metric(column: ColumnView) -> Metric:
    return Metric(name=column.name, higher_is_better=column.higher_is_better, note=column.note, share=column.share)


def _common(view: BenchmarkView) -> dict[str, Any]:
    """The parts of a manifest that must agree: questions, sampling, seeds, the judge and its prompt."""
    common = view.manifest.get("common", {})
    return {key: value for key, value in common.items() if key not in APART}


def _measured(run: KnownRun) -> dict[str, Measured]:
    """The benchmarks of a run by name; a name that several stages use is prefixed with the stage."""
    found: dict[str, Measured] = {}
    for stage in run.state["stages"]:
        folder = Path(stage["folder"])
        if stage["type"] in MEASURING and (folder / ITEMS).exists():
            rows = [row for row in read_records(folder / ITEMS)[1] if isinstance(row, Figure)]
            for view in _views(folder / "summary.json"):
                name = view.benchmark if view.benchmark not in found else f"{stage['name']}.{view.benchmark}"
                found[name] = Measured(view, _items(rows, view.benchmark))
    return found


def _views(path: Path) -> list[BenchmarkView]:
    try:
        return VIEWS.validate_python(read_object(path).get("benchmarks", []))
    except ValidationError:
        raise DamagedFile(f"{path}: the benchmarks in it are damaged; run the stage again with --redo") from None


def _items(rows: Sequence[Figure], benchmark: str) -> dict[tuple[str, str], Answers]:
    found: dict[tuple[str, str], dict[str, tuple[str, float | None]]] = {}
    for row in rows:
        if row.benchmark == benchmark:
            own = found.setdefault((row.subject, row.metric), {})
            own[row.parents[0]] = (row.parents[-1], row.value)
    return dict(found)


# --- for people -------------------------------------------------------------------------------------------------------

COLUMNS = ("metric", "A", "B", "B - A, paired", "effect", "noise", "McNemar", "B is")


def table_rows(found: Found) -> list[list[str]]:
    """One row per metric: both means with intervals, the difference, Hedges' g, the noise floor, McNemar's test."""
    return [_row(each) for each in found.differences]


def _row(each: Difference) -> list[str]:
    column = ColumnView(name=each.metric.name, share=each.metric.share, higher_is_better=each.metric.higher_is_better)
    title = f"{column.name}, %" if column.share else column.name
    base, other, difference = (_view(cell) for cell in (each.base, each.other, each.difference))
    both = [f"{words(cell, column)}  {bounds(cell, column)}" for cell in (base, other)]
    noise = None if each.noise is None else each.noise * (100 if column.share else 1)
    told = f"{each.test.only_first} : {each.test.only_second}, p {number(each.test.p)}" if each.test else number(None)
    return [
        title,
        *both,
        change(difference, column),
        number(each.effect, signed=True),
        number(noise),
        told,
        each.verdict,
    ]


def _view(cell: Cell) -> CellView:
    return CellView(value=cell.value, low=cell.low, high=cell.high, n=cell.n, note=cell.note)


def _json(each: Difference) -> dict[str, Any]:
    scale = 100 if each.metric.share else 1
    cells = {"a": each.base, "b": each.other, "difference": each.difference}
    told = {name: _scaled(cell, scale) for name, cell in cells.items()}
    test = (
        None
        if each.test is None
        else {"only_a": each.test.only_first, "only_b": each.test.only_second, "p": each.test.p}
    )
    noise = None if each.noise is None else scale * each.noise
    more = {"effect": each.effect, "mcnemar": test, "noise": noise, "alone": each.alone, "verdict": each.verdict}
    return told | more


def _scaled(cell: Cell, scale: int) -> dict[str, Any]:
    value, low, high = (None if each is None else scale * each for each in (cell.value, cell.low, cell.high))
    return {"value": value, "low": low, "high": high, "n": cell.n}
