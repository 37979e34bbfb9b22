"""`togi check`."""

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from togi.cli.common import json_option, load_graph, print_json, recipe_arguments
from togi.core.sources import ModelSource
from togi.core.terminal import say
from togi.recipe.graph import Graph, unpinned
from togi.recipe.store import store_folder
from togi.stages.imported import Import
from togi.stages.tracking import check_trackers


@click.command()
@recipe_arguments
@json_option
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Preflight: keys, files, models, templates; show samples token by token.

    Reads every row of the data, holds every chat template against its tokenizer, and shows a conversation as the
    trainer sees it: tokens that carry loss stand in brackets. Notes what of a hub is not pinned to a commit. Loads no
    weights.
    """
    graph = load_graph(recipe, overrides)  # a misspelt key ends here, before anything heavy is imported
    check_trackers(graph.recipe.track)
    work = importlib.import_module("togi.stages.check_work")
    data = {name: work.check_data(s) for name, s in _imports(graph)}
    models = {name: work.preview(source, store_folder(), _kind(graph, name)) for name, source in _sources(graph)}
    functions = [term for node in graph.nodes.values() for term in work.check_functions(node.settings)]
    if as_json:
        shown = {"data": data, "models": models}
        found = {k: {name: asdict(value) for name, value in found.items()} for k, found in shown.items()}
        print_json({**found, "notes": unpinned(graph.recipe)})
        return
    for name, found in data.items():
        dropped = f", dropped {found.drops}" if found.drops else ""
        say(f"data {name}: {found.records} {found.kind}{dropped}; the first: {found.first}")
        for note in found.notes:
            say(f"  {note}")
    for name, found in models.items():
        _show(name, found)
    for name in functions:
        say(f"reward function {name}: found")
    for note in unpinned(graph.recipe):
        say(f"note: {note}")
    say(f"{recipe}: {len(graph.nodes)} stages, every key, reference, file and template fits")


def _imports(graph: Graph) -> list[tuple[str, Import]]:
    return [(node.name, node.settings) for node in graph.nodes.values() if isinstance(node.settings, Import)]


def _sources(graph: Graph) -> list[tuple[str, ModelSource]]:
    found = {}
    for node in graph.nodes.values():
        for ref, target in node.inputs.items():
            if isinstance(target, ModelSource):
                found[ref] = target
    return list(found.items())


def _kind(graph: Graph, ref: str) -> str:
    return graph.recipe.models[ref[1:]].kind


def _show(name: str, found: Any) -> None:
    width = len(found.terminator_ids)
    pieces = f"{width} token{'' if width == 1 else 's'}"
    say(f"\nmodel {name[1:]}: template {found.template}, terminator {found.terminator!r} is {pieces}")
    text = "".join(f"[{token.text}]" if token.scored else f"{token.text}·" for token in found.tokens)
    say("\n".join(f"  {line}" for line in text.split("\n")))
    scored = sum(token.scored for token in found.tokens)
    say(f"  {len(found.tokens)} tokens, {scored} carry loss (in brackets)")
