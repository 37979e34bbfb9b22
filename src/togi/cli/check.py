"""`togi check`: reports every error that a run would hit before it loads weights."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from togi.cli.common import json_option, load_graph, print_json, recipe_arguments
from togi.cli.planned import costs
from togi.core import hub
from togi.core.errors import InputError
from togi.core.library_log import library_warnings_kept
from togi.core.settings import Ref
from togi.core.sources import ModelSource
from togi.core.terminal import say
from togi.data.presets import gated
from togi.model.inspect import located
from togi.recipe.graph import Graph, unpinned
from togi.recipe.model_services import services_of
from togi.recipe.references import used
from togi.recipe.schema import Recipe
from togi.recipe.store import home, is_done, store_folder
from togi.recipe.terms import notes as notes_on
from togi.recipe.terms import refuse_misuse
from togi.tracking.base import check_trackers

BAR = 24  # characters of the longest bar of a histogram


@click.command()
@recipe_arguments
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Check the trial of `togi run --limit N`.")
@click.option("--offline", is_flag=True, help="Ask no server and no hub; list what is not verified.")
@json_option
def command(recipe: Path, overrides: tuple[str, ...], limit: int | None, offline: bool, as_json: bool) -> None:
    """Preflight: keys, files, models, templates; show samples token by token.

    Reads every row of the data and renders each stage's rows with its own model, template, system prompt, limits and
    mask. Shows the first, the longest and a random row, with the tokens that carry loss in brackets (tokens that only
    together make a character are shown together), and the distribution of lengths. Asks each model server for a few
    tokens. Compares the sizes that a recipe states (shape) with the models. Reports every error that a run would hit
    before it loads weights. Loads no weights.
    """
    graph = load_graph(recipe, overrides, limit)  # reports a misspelt key before anything heavy is imported
    check_trackers(graph.recipe.track)
    refuse_misuse(graph)
    services_of(graph, store_folder())
    servers = importlib.import_module("togi.cli.check_servers").check(graph, offline)
    with hub.offline("--offline") if offline else nullcontext():
        away = _fetch(graph)
        work = importlib.import_module("togi.commands.check")
        with library_warnings_kept(home()):
            found = work.check(_stages(graph, work.CheckedStage), store_folder(), _progress, servers.contexts)
        shapes = importlib.import_module("togi.commands.check_shapes").check_shapes(_shaped(graph))
    found.problems += shapes.problems
    more = [each for each in found.unverified if not any(told.startswith(each) for told in away)]
    found.unverified = list(dict.fromkeys([*away, *more]))
    absent = work.absent_devices(graph.recipe.models, graph.recipe.hardware)
    notes = [*_unused(graph.recipe), *unpinned(graph.recipe), *notes_on(graph), *absent, *servers.notes]
    notes += shapes.notes
    notes += [f"not verified: {each}" for each in found.unverified]
    problems = [*found.problems, *servers.problems]
    planned = {} if problems else _planned(graph)
    notes += [f"{name}: {alarm}" for name, cost in planned.items() for alarm in cost.alarms]
    if as_json:
        print_json({**asdict(found), "endpoints": servers.to_json(), "notes": notes})
    else:
        _print(found, notes)
        servers.say()
    if problems := problems or [each for cost in planned.values() for each in cost.problems]:
        raise InputError("\n".join(problems))
    if not as_json:
        say(f"{recipe}: {len(graph.nodes)} stages; all keys, references, files and templates fit")


def _shaped(graph: Graph) -> dict[str, tuple[ModelSource, str]]:
    """The models that stages read and whose shape the recipe states, by name, each with the place of the shape in the
    recipe."""
    found = {Ref(ref).name: at for node in graph.nodes.values() for ref, at in node.inputs.items()}
    where = graph.recipe.tree.where
    return {
        name: (at, where(("models", name, "shape")))
        for name, at in found.items()
        if isinstance(at, ModelSource) and at.shape
    }


def _unused(recipe: Recipe) -> list[str]:
    """A note on each model and data set that no stage refers to: nothing of it is checked."""
    referred, declared = used(recipe), {"models": recipe.models, "data": recipe.data}
    found = [f"{section}.{name}" for section, entries in declared.items() for name in entries if name not in referred]
    return [f"{each}: no stage uses it, so it was not checked" for each in found]


def _planned(graph: Graph) -> dict[str, Any]:
    """The costs of the unfinished stages, by name; finished stages have fitted somewhere."""
    store = store_folder()
    left = [n.name for n in graph.nodes.values() if not is_done(store / n.folder_name)]
    found = costs(graph, store) if left else {}
    return {name: found[name] for name in left}


def _fetch(graph: Graph) -> list[str]:
    """Asks hubs for small files and data before anything heavy is imported, so that a silent hub is reported early.
    Returns messages about everything that was not looked up because hubs are off. Raises InputError with everything
    that cannot be fetched, one on each line."""
    found: list[str] = []
    missing: dict[str, None] = {}
    for fetch, terms in _fetches(graph):
        try:
            found += _not_looked_up(fetch, terms)
        except InputError as error:
            missing[str(error)] = None
    if missing:
        raise InputError("\n".join(missing))
    return found


def _fetches(graph: Graph) -> Iterator[tuple[Callable[[], Any], str]]:
    """For each model and data set on a hub: a function that fetches it, and a note on its terms."""
    for node in graph.nodes.values():
        for target in node.inputs.values():
            if isinstance(target, ModelSource) and target.kind == "hub":
                yield partial(located, target, weights=False), ""
        for name, revision in node.settings.downloads:
            yield partial(_download, name, revision), gated(name)


def _download(name: str, revision: str) -> None:
    importlib.import_module("togi.data.hub").download(name, revision)


def _not_looked_up(fetch: Callable[[], Any], terms: str = "") -> list[str]:
    """The message about a `fetch` that would have asked a hub, with `terms`; an empty list if it succeeded."""
    try:
        fetch()
    except hub.NotLookedUp as error:
        return [f"{error}{terms}"]
    return []


def _stages(graph: Graph, kind: Any) -> list[Any]:
    store = store_folder()
    folders = [(node, store / node.folder_name) for node in graph.nodes.values()]
    return [kind(n.name, n.settings, n.inputs, folder, is_done(folder), n.seed) for n, folder in folders]


def _progress(stage: str) -> None:
    if sys.stderr.isatty():
        say(f"checking {stage}", err=True)


def _print(found: Any, notes: list[str]) -> None:
    for name, data in found.data.items():
        dropped = f", dropped {_counts(data.drops)}" if data.drops else ""
        say(f"data {name}: {data.records:,} {data.kind}{dropped}; the first: {data.first}")
        for note in data.notes:
            say(f"  {note}")
    for name, model in found.models.items():
        width = len(model.terminator_ids)
        pieces = f"{width} token{'' if width == 1 else 's'}"
        said = f"template {model.template}, terminator {model.terminator!r} is {pieces}"
        said = "an encoder, which reads the prompt and the answer as a pair" if model.pairs else said
        say(f"model {name[1:]}: {said}")
        if model.date:
            say(f"  its template asks for the date and always gets {model.date}, here and in saved models")
        if model.demo is not None:
            say("  an example conversation, since no row is rendered for this model; tokens in brackets carry loss:")
            _print_tokens(model.demo)
    for name in found.functions:
        say(f"reward function {name}: found")
    for name, stage in found.stages.items():
        if not stage.waits:
            _print_stage(name, stage)
    waiting = [f"{name} (for {stage.waits})" for name, stage in found.stages.items() if stage.waits]
    if waiting:
        say(f"\nnot checked row by row, because they wait for stages that have not run: {', '.join(waiting)}")
    for note in notes:
        say(f"note: {note}")


def _print_stage(name: str, stage: Any) -> None:
    if not (stage.asks or stage.rows or stage.drops or stage.counts or stage.alarms):  # it renders no rows here
        return
    say()
    if stage.asks:
        say(f"stage {name} ({stage.type}): the server of {stage.asks} renders its rows")
        return
    what = f"{stage.rows:,} rows" if stage.rows or not stage.counts else "no rows for a model"
    what += f", of {stage.of:,} records" if stage.of else ""
    meant = f", taken from {stage.stands_in}, which has not run" if stage.stands_in else ""
    say(f"stage {name} ({stage.type}): {what}{meant}")
    if stage.drops:
        say(f"  dropped: {_counts(stage.drops)}")
    if stage.counts:
        say(f"  {_counts(stage.counts)}")
    for alarm in stage.alarms:
        say(f"  ALARM {alarm}")
    if stage.lengths is not None:
        _print_lengths(stage.lengths)
    tokens = [token for shown in stage.shown for side in shown.sides for token in side if not isinstance(token, int)]
    if any(token.scored for token in tokens):
        say("  tokens in brackets carry loss")
    for shown in stage.shown:
        say(f"  the {shown.which} row, {shown.id}:")
        for side in shown.sides:
            _print_tokens(side)


def _print_tokens(tokens: Any) -> None:
    text = "".join(_token(token) for token in tokens)
    say("\n".join(f"    {line}" for line in text.splitlines()))


def _token(token: Any) -> str:
    if isinstance(token, int):
        return f"\n… {token:,} tokens …\n"
    if not token.text:  # a part of a character, which is with the token before
        return ""
    return f"[{token.text}]" if token.scored else f"{token.text}·"


def _print_lengths(lengths: Any) -> None:
    limit = f", of at most {lengths.limit:,}" if lengths.limit else ""
    say(f"  lengths in tokens: median {lengths.median:,.0f}, longest {lengths.longest:,}{limit}")
    if len(lengths.bins) == 1:
        return
    most = max(count for _, count in lengths.bins)
    width = len(f"{lengths.bins[-1][0]:,}")
    for edge, count in lengths.bins:
        bar = "█" * (-(-BAR * count // most))
        say(f"    to {edge:>{width},} {bar:<{BAR}} {count:,}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
