"""`togi trace`: shows the history of a record."""

import importlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from togi.cli.common import json_option, load_graph, print_json, run_command, stage_folder
from togi.core.records import KINDS
from togi.core.settings import ingredients, references
from togi.core.sources import ModelSource
from togi.core.tables import say_table
from togi.core.terminal import say
from togi.recipe.graph import Graph, Node, kinds_of
from togi.recipe.store import hold_whole, is_done
from togi.stages.base import output_path

TRACED = tuple(kind for kind in KINDS if kind != "tables")  # no record is made from figures
SHOWN = 8  # records of one stage whose texts are shown
NAMED = 3  # records of one stage that are named in the table


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("record", metavar="RECORD_ID")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
def command(recipe: Path, record: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show the history of a record: what made, changed, scored or dropped it.

    Shows what the record was made from, what each stage did with it, and what was made from it.

    RECORD_ID is an id as `togi show` prints it, or its first digits. It is looked up in the recipe's last run, or with
    KEY=VALUE in the run that `togi run` starts with the same overrides.
    """
    graph = load_graph(recipe, overrides)
    work = importlib.import_module("togi.commands.trace")
    tracer = work.Tracer([_place(work, graph, node, recipe, overrides) for node in graph.nodes.values()])
    life = tracer.life(record)
    if as_json:
        print_json(asdict(life))
    else:
        _print(life, tracer)


def _place(work: Any, graph: Graph, node: Node, recipe: Path, overrides: tuple[str, ...]) -> Any:
    """A stage and its files, checked against their hashes."""
    folder = stage_folder(graph, node.name, overrides)
    kinds = {name: kind for name, kind in kinds_of(node.settings).items() if kind in TRACED}
    records = {name: output_path(kind, name) for name, kind in kinds.items()}
    for path in records.values() if is_done(folder) else ():
        hold_whole(folder, run_command(recipe, overrides, redo=node.name), only=path)
    taken = ingredients(node.settings)
    refs = [ref for _, ref in references(node.settings) if not isinstance(node.inputs[ref], ModelSource)]
    return work.Place(
        stage=node.name,
        type=node.settings.type,
        folder=folder,
        files={name: folder / path for name, path in records.items()},
        reads=[(node.inputs[ref], ref.output) for ref in refs if ref in taken],
        apart=[(node.inputs[ref], ref.output) for ref in refs if ref not in taken],
    )


def _print(life: Any, tracer: Any) -> None:
    say(f"{life.kind or 'record'} {life.id}")
    if life.text:
        say(f"  {life.text}")
    for source in life.sources:
        say(f"  made from {source}")
    _records("made from", life.before, tracer)
    say("\nstages")
    rows = [(each.stage, each.type, each.event, each.what, _some(each.made)) for each in life.events]
    say_table(("stage", "type", "", "", "made"), rows)
    _records("what became of it", life.after, tracer)


def _some(ids: Sequence[str]) -> str:
    """The number of records and the first ids; the full list follows below."""
    more = len(ids) - NAMED
    return f"{len(ids):,}: " + ", ".join(ids[:NAMED]) + (f" and {more:,} more" if more > 0 else "") if ids else ""


def _records(title: str, records: Sequence[Any], tracer: Any) -> None:
    """Prints records by the stage that made them, the first of each with their texts."""
    if not records:
        return
    say(f"\n{title}")
    by_stage: dict[str, list[Any]] = {}
    for known in records:
        by_stage.setdefault(known.stage, []).append(known)
    for stage, found in by_stage.items():
        dropped = sum(known.dropped is not None for known in found)
        were = "was" if dropped == 1 else "were"
        say(f"  {stage}: {len(found):,}" + (f", of which {dropped:,} {were} dropped later" if dropped else ""))
        for known in found[:SHOWN]:
            why = f"  (dropped in {known.dropped[0]}: {known.dropped[1]})" if known.dropped else ""
            say(f"    {known.id}  {tracer.text(known)}{why}")
