"""Runs the benchmarks of an evaluation one after another."""

import importlib
from collections.abc import Sequence

from togi.evaluate.benchmarks.table import Table
from togi.evaluate.benchmarks.told import with_published
from togi.stages.context import Context
from togi.stages.evaluation.benchmarks.base import BenchmarkSettings
from togi.stages.evaluation.benchmarks.room_work import Room
from togi.stages.evaluation.benchmarks.table import BENCHMARKS
from togi.stages.evaluation.evaluate import Evaluate


def run_benchmarks(settings: Evaluate, context: Context) -> None:
    """Writes the figures, the values of single questions, and the summary for the report."""
    tables = [_run(settings, context, each) for each in settings.benchmarks]
    context.write("tables", [figure for table in tables for figure in table.figures()])
    context.write("tables", [figure for table in tables for figure in table.item_figures()], "items")
    context.counts = {"in": context.counts.get("in", 0)}
    context.counts["out"] = context.counts["in"] - len(dict.fromkeys(drop.id for drop in context.drops))
    context.summary["benchmarks"] = [table.to_json() for table in tables]


def _run(settings: Evaluate, context: Context, benchmark: BenchmarkSettings) -> Table:
    kind = BENCHMARKS[benchmark.type]
    room = Room(
        context=context,
        name=benchmark.title,
        subjects={ref.name: ref for ref in settings.models},
        judge=settings.judge,
        baseline=(settings.baseline or settings.models[0]).name,
        baseline_ref=settings.baseline or settings.models[0],
        level=settings.level,
        resamples=settings.bootstrap,
        reasons=kind.reasons,
        max_failed_share=settings.max_failed_share,
    )
    found: Table = importlib.import_module(kind.work).run(benchmark, room)
    context.log(f"{benchmark.title}: {_told(found)}")
    return with_published(found, benchmark.published)


def _told(table: Table) -> str:
    """The first column as text."""
    first = table.columns[0]
    told = [f"{name} {_number(row[first.name].value)}" for name, row in table.cells.items() if first.name in row]
    return f"{first.name} of {_listed(told)}, {table.rows:,} rows"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")


def _number(value: float | None) -> str:
    return "\N{EM DASH}" if value is None else f"{value:.4g}"
