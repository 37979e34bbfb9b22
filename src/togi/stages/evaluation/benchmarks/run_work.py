"""Runs the benchmarks of an evaluation one after another."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from togi.core.errors import InputError
from togi.core.settings import Ref
from togi.evaluate.benchmarks.published_rows import with_published
from togi.evaluate.benchmarks.table import Table
from togi.stages.context import Context
from togi.stages.evaluation.benchmarks.base import BenchmarkSettings
from togi.stages.evaluation.benchmarks.room_work import Room
from togi.stages.evaluation.benchmarks.table import BENCHMARKS
from togi.stages.evaluation.evaluate import Evaluate
from togi.stages.kinship import kin, relation, same_model
from togi.stages.rehearsal_work import Rehearsed


def run_benchmarks(settings: Evaluate, context: Context) -> None:
    """Writes the figures, the values of single questions, and the summary for the report."""
    related = _related(settings, context) if any(map(_judged, settings.benchmarks)) else []
    tables = [_run(settings, context, each, related if _judged(each) else []) for each in settings.benchmarks]
    context.write("tables", [figure for table in tables for figure in table.figures()])
    context.write("tables", [figure for table in tables for figure in table.item_figures()], "items")
    context.counts = {"in": context.counts.get("in", 0)}
    context.counts["out"] = context.counts["in"] - len(dict.fromkeys(drop.id for drop in context.drops))
    context.summary["benchmarks"] = [table.to_json() for table in tables]


def preflight_benchmarks(settings: Evaluate) -> None:
    """Reads the files that the benchmarks need besides their questions. Raises InputError as a run does."""
    for each in settings.benchmarks:
        preflight: Any = getattr(importlib.import_module(BENCHMARKS[each.type].work), "preflight", None)
        if preflight is not None:
            preflight(each)


def rehearse_benchmarks(settings: Evaluate, context: Context) -> Iterator[Rehearsed]:
    """Yields the prompts of all benchmarks, as far as they are known. Raises InputError with the problems of all."""
    wrong: list[InputError] = []
    for each in settings.benchmarks:
        before = context.counts.get("in", 0)
        try:
            yield from importlib.import_module(BENCHMARKS[each.type].work).rehearse(
                each, room_of(settings, context, each)
            )
        except InputError as error:
            wrong.append(error if str(error).startswith("stage ") else InputError(f"stage {context.name}: {error}"))
        context.counts[f"records of {each.title}"] = context.counts.get("in", 0) - before
    if wrong:
        raise wrong[0] if len(wrong) == 1 else InputError("\n".join(map(str, wrong)))


def _judged(benchmark: BenchmarkSettings) -> bool:
    """Whether the evaluation's judge is asked."""
    return BENCHMARKS[benchmark.type].judged(benchmark)


def _related(settings: Evaluate, context: Context) -> list[str]:
    """Sentences about the models that are the judge itself or its relatives, with an alarm for each kind."""
    assert settings.judge is not None
    judge = kin(context, settings.judge)
    refs: dict[str, Ref] = {ref.name: ref for ref in (*settings.models, *filter(None, [settings.baseline]))}
    models = {name: kin(context, ref) for name, ref in refs.items()}
    own = [f"{name} is the judge of its own answers" for name, model in models.items() if same_model(model, judge)]
    others = [relation(name, model, judge) for name, model in models.items() if not same_model(model, judge)]
    near = [told for told in others if told]
    for alarm, found, advice in (
        ("judges_itself", own, "judges favour their own answers; use another model as judge"),
        ("judges_its_family", near, "judges favour answers of their family; use a judge of another one"),
    ):
        if found:
            context.alarm(alarm, f"{'; '.join(found)}: {advice}", value=len(found), threshold=0.0)
    return [*own, *near]


def room_of(settings: Evaluate, context: Context, benchmark: BenchmarkSettings) -> Room:
    """The room of a benchmark."""
    return Room(
        context=context,
        name=benchmark.title,
        subjects={ref.name: ref for ref in settings.models},
        judge=settings.judge,
        baseline=(settings.baseline or settings.models[0]).name,
        baseline_ref=settings.baseline or settings.models[0],
        level=settings.level,
        resamples=settings.bootstrap,
        reasons=BENCHMARKS[benchmark.type].reasons,
        max_failed_share=settings.max_failed_share,
    )


def _run(settings: Evaluate, context: Context, benchmark: BenchmarkSettings, related: Sequence[str]) -> Table:
    kind, room = BENCHMARKS[benchmark.type], room_of(settings, context, benchmark)
    found: Table = importlib.import_module(kind.work).run(benchmark, room)
    room.hold_any_legible()
    context.log(f"{benchmark.title}: {_told(found)}")
    found = replace(found, decontaminated=room.decontaminated(kind.measures(benchmark)), notes=[*found.notes, *related])
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
