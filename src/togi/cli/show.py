"""`togi show`: shows the output of a stage, or how many records every stage read, wrote and dropped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import TypeAdapter, ValidationError

from togi.cli.benchmarks import say_benchmark
from togi.cli.common import json_option, load_graph, print_json, run_command, run_option, run_place, stage_folder
from togi.core.codec import read_records, to_row
from togi.core.errors import InputError, RecipeError
from togi.core.files import read_cache, read_lines
from togi.core.records import Chat, Document, Figure, Match, Message, Pair, Prompt, Record, Sample, Verdict
from togi.core.settings import MAIN
from togi.core.tables import fits, plain, say_table
from togi.core.terminal import json_text, say
from togi.recipe.display import COLUMNS
from togi.recipe.graph import kinds_of
from togi.recipe.runs import find_run, settings_of, stage_of
from togi.recipe.store import hold_whole, is_done
from togi.report.collect import DAMAGED, SKIPPED, collect
from togi.report.formatting import measured_row, table_row
from togi.report.view import BenchmarkView, RowView, RunView, SourceView
from togi.report.waterfall import Step, in_words, licences, waterfall
from togi.stages.base import output_path

SUMMARY = "summary.json"
HIDDEN = ("answers", "table", "benchmarks", "examples", "sources", "adds_up")  # shown elsewhere, or too long
Value = TypeVar("Value")
TABLE = TypeAdapter(list[RowView])
BENCHMARKS = TypeAdapter(list[BenchmarkView])
SOURCES = TypeAdapter(list[SourceView])


@click.command()
@click.argument("words", nargs=-1, metavar="[RECIPE] [STAGE] [KEY=VALUE]...")
@click.option("-n", "count", type=click.IntRange(0), default=5, show_default=True, help="How many records or steps.")
@run_option
@json_option
def command(words: tuple[str, ...], count: int, run: str | None, as_json: bool) -> None:
    """Show the output of a stage, or how many records every stage read, wrote and dropped.

    STAGE is the name of a stage, or STAGE.OUTPUT for one of its further outputs. Without STAGE, every stage has a line:
    how many records it read, wrote and dropped, why it dropped them, and the licences of their sources.

    The run is the recipe's last one. With KEY=VALUE it is the run that `togi run` starts with the same overrides; with
    --run ID, and without RECIPE, an earlier run.
    """
    if not [word for word in words[run is None :] if "=" not in word]:
        recipe = Path(words[0]) if run is None and words else None
        found = collect(run_place(recipe, words[1:], run))
        _waterfall(found, as_json)
        _tell_damage(found, Path("RECIPE") if recipe is None else recipe, words[1:])
        return
    folder, path, again = _of_run(words, run) if run is not None else _of_recipe(words)
    if is_done(folder):
        for name in (path, SUMMARY):
            hold_whole(folder, again, only=name)
    if as_json:
        print_json(stage_json(folder, path, count))
    else:
        print_stage(folder, path, count)


def _of_run(words: tuple[str, ...], run: str) -> tuple[Path, str, str]:
    """The folder of a stage of an earlier run, the path of an output in it, and the command that redoes the stage."""
    if len(words) != 1:
        raise RecipeError(f"command line: with --run give only one STAGE, found {' '.join(words)}")
    stage, _, output = words[0].partition(".")
    found = stage_of(find_run(run), stage)
    folder = Path(found["folder"])
    if not (folder / "settings.json").exists():
        raise InputError(f"run {run}: stage {stage} has not begun, or its result has been removed")
    path = output_path(_kind(kinds_of(settings_of(found)), f"run {run}: stage {stage}", output), output or MAIN)
    return folder, path, "togi run RECIPE --redo " + stage


def _of_recipe(words: tuple[str, ...]) -> tuple[Path, str, str]:
    """The same for a recipe and overrides."""
    recipe, stage, overrides = Path(words[0]), words[1], words[2:]
    graph = load_graph(recipe, overrides)
    stage, _, output = stage.partition(".")
    if stage not in graph.nodes:
        raise RecipeError(f"{recipe}: there is no stage {stage!r}; there are: {', '.join(graph.nodes)}")
    kind = _kind(kinds_of(graph.nodes[stage].settings), f"{recipe}: stage {stage}", output)
    folder = stage_folder(graph, stage, overrides)
    if not (folder / "settings.json").exists():
        raise InputError(f"{recipe}: stage {stage} has not begun; do it with `{run_command(recipe, overrides, stage)}`")
    return folder, output_path(kind, output or MAIN), run_command(recipe, overrides, redo=stage)


def _waterfall(run: RunView, as_json: bool) -> None:
    """Prints the records in, out and dropped, stage by stage."""
    steps = waterfall(run)
    if as_json:
        print_json([_step_json(step) for step in steps])
        return
    say_table(("stage", "in", "out", "dropped", "why", "made from"), [_step(step) for step in steps], right=(1, 2, 3))
    if not steps:
        say("no stage has counted records yet")


def _tell_damage(run: RunView, recipe: Path, overrides: tuple[str, ...]) -> None:
    """Says which stages are not in the table because their summary is damaged or gone."""
    for stage in run.stages:
        for alarm in stage.alarms:
            if alarm.name == DAMAGED and SUMMARY in alarm.message:
                again = run_command(recipe, overrides, redo=stage.name)
                wrong = alarm.message.removesuffix(SKIPPED)
                say(f"stage {stage.name} has no line: {wrong}; redo it with `{again}`", err=True)


def _step(step: Step) -> tuple[str, ...]:
    why = [f"{reason} {count:,}" for reason, count in step.drops]
    why += [f"held out {step.held_out:,}"] if step.held_out else []
    why += [f"without a reason {step.lost:,}"] if step.lost > 0 else []
    why += [f"{-step.lost:,} more than came"] if step.lost < 0 else []
    came, went = ("" if count is None else f"{count:,}" for count in (step.came, step.went))
    dropped = f"{step.dropped:,}" if step.drops else ""
    return step.stage.name, came, went, dropped, ", ".join(why), licences(step.stage.sources)


def _step_json(step: Step) -> dict[str, Any]:
    counts = {"in": step.came, "out": step.went, "held_out": step.held_out, "drops": dict(step.drops)}
    sources = [asdict(source) for source in step.stage.sources]
    return {"stage": step.stage.name, "type": step.stage.type, **counts, "lost": step.lost, "sources": sources}


def _kind(kinds: Mapping[str, str], where: str, output: str) -> str:
    """The kind of a stage's output; without a name the main one's."""
    name = output or MAIN
    if name not in kinds:
        close = get_close_matches(name, kinds, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise RecipeError(f"{where} has no output {name!r}; {hint}(allowed: {', '.join(kinds)})")
    return kinds[name]


def _records(path: Path) -> list[Any]:
    return read_records(path)[1] if path.is_file() else []


def stage_json(folder: Path, path: str, count: int) -> dict[str, Any]:
    """The output of a stage as a mapping; `path` is relative to its folder."""
    return {
        "folder": str(folder),
        "summary": read_cache(folder / SUMMARY),
        "records": [to_row(record) for record in _records(folder / path)[:count]],
        "metrics": read_lines(folder / "metrics.jsonl")[-count:] if count else [],
    }


def print_stage(folder: Path, path: str, count: int) -> None:
    """Prints the output of a stage; `path` is relative to its folder."""
    say(str(folder))
    summary = read_cache(folder / SUMMARY) or {}
    say_table(("", ""), [(key, plain(value)) for key, value in summary.items() if key not in HIDDEN])
    for source in _validated(SOURCES, folder, summary, "sources"):
        say(f"made from {in_words(source)}" + ("" if source.records is None else f": {source.records:,} records"))
    rows = _validated(TABLE, folder, summary, "table")
    if any(row.base is not None for row in rows):
        say_table(COLUMNS, [table_row(row) for row in rows], right=(1, 2, 3))
    else:
        say_table(("metric", "value", "interval", "n"), [measured_row(row) for row in rows], right=(1, 2, 3))
    for found in _validated(BENCHMARKS, folder, summary, "benchmarks"):
        say_benchmark(found)
    records = _records(folder / path)
    if records == [] and (folder / path).is_file():
        say("no records")
    shown = ("table" in summary or "benchmarks" in summary) and path == output_path("tables")
    for record in [] if shown else records[:count]:
        say(f"\n[{record.id}]\n{READABLE[type(record)](record)}")
    _metrics(read_lines(folder / "metrics.jsonl")[-count:] if count else [])


def _validated(kind: TypeAdapter[list[Value]], folder: Path, summary: dict[str, Any], name: str) -> list[Value]:
    """A list of a summary. Raises InputError if it is damaged."""
    try:
        return kind.validate_python(summary.get(name, []))
    except ValidationError:
        raise InputError(f"{folder / SUMMARY}: the {name} in it is damaged; run the stage again with --redo") from None


def _metrics(lines: list[dict[str, Any]]) -> None:
    """Prints the last steps: one row per metric, one column per step. If they do not all fit, the last ones that do."""
    shown = lines
    while len(shown) > 1 and not fits(*_steps(shown), right=range(1, len(shown) + 1)):
        shown = shown[1:]
    say_table(*_steps(shown), right=range(1, len(shown) + 1))
    if len(shown) < len(lines):
        say(f"{len(shown)} of the last {len(lines)} steps fit into the terminal; --json shows all")


def _steps(lines: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The titles and rows of a table of steps."""
    names = dict.fromkeys(key for line in lines for key, value in line.items() if isinstance(value, int | float))
    names.pop("step", None)
    titles = ["", *(f"step {line.get('step', '?')}" for line in lines)]
    return titles, [[name, *(plain(line[name]) if name in line else "–" for line in lines)] for name in names]


def _turns(messages: Sequence[Message], mark: str = " ") -> str:
    """The turns of a conversation, at least a line each; their other keys are on the lines below."""
    lines = []
    for turn in messages:
        lines.append(f"{mark} {turn.role}: {turn.content}")
        lines += [f"    ({key}: {json_text(value)})" for key, value in turn.extra.items()]
    return "\n".join(lines)


def _prompt(record: Prompt) -> str:
    return _turns(record.messages) + ("" if record.answer is None else f"\n  (answer: {record.answer})")


def _verdict(record: Verdict) -> str:
    read = {"winner": record.winner, "score": record.score, "probability": record.probability}
    known = ", ".join(f"{name} {plain(value)}" for name, value in read.items() if value is not None) or record.outcome
    return f"  {record.judge} on {', '.join(record.answers)}: {known}\n  {record.text}"


def _match(match: Match) -> str:
    alike = f"{match.how}, {match.similarity:.3g}"
    return f"  {match.record} is like {match.other} of {match.where} ({alike})\n  {match.text}"


READABLE: dict[type[Record], Callable[[Any], str]] = {
    Prompt: _prompt,
    Pair: lambda pair: f"{_turns(pair.prompt)}\n{_turns(pair.chosen, '+')}\n{_turns(pair.rejected, '-')}",
    Sample: lambda each: f"{_turns(each.prompt.messages)}\n  -> {each.completion.text}\n  ({plain(each.scores)})",
    Chat: lambda chat: _turns(chat.messages),
    Document: lambda document: f"  {document.text[:400]}",
    Verdict: _verdict,
    Figure: lambda figure: f"  {figure.benchmark}: {figure.text}",
    Match: _match,
}
"""Functions that show a record, by kind."""
