"""`togi chat`."""

import importlib
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from togi.cli.common import load_graph, run_command, run_option, stage_folder
from togi.core.errors import RecipeError
from togi.core.library_log import library_warnings_kept
from togi.core.settings import MAIN
from togi.core.sources import ModelSource
from togi.recipe.graph import Graph, kinds_of, made_by, model_source
from togi.recipe.runs import find_run, settings_of, stage_of
from togi.recipe.schema import ModelSpec
from togi.recipe.store import hold_whole, home, is_done, is_older, store_folder
from togi.stages.base import MODEL_FOLDER

log = logging.getLogger(__name__)


@click.command()
@click.argument("target", type=click.Path(path_type=Path), required=False)
@click.argument("words", nargs=-1, metavar="[MODEL] [KEY=VALUE]...")
@run_option
@click.option("--system", help="A system message; that of the model's training otherwise, and with '' none.")
@click.option("--message", "-m", help="Say this, print the answer and leave.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="Randomness; 0 is greedy.  [default: 0.7]")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample from the likeliest tokens of this mass.  [default: 0.95]",
)
@click.option("--top-k", type=click.IntRange(0), help="Sample from this many likeliest tokens.  [default: 0, all]")
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1, max_open=True),
    help="Leave out tokens below this share of the likeliest one's probability.  [default: 0]",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(0.1),
    help="Above 1: tokens that were used become less likely.  [default: 1]",
)
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer.  [default: 256]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed, another answer.")
@click.option("--json", "as_json", is_flag=True, help="With --message: print the answer as JSON.")
def command(
    target: Path | None,
    words: tuple[str, ...],
    run: str | None,
    system: str | None,
    message: str | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Talk to a model that a recipe trained or declares.

    TARGET is a recipe, then MODEL is the name of a stage or of a model it declares; or TARGET is a model folder. The
    model's own template and terminator are used, and the system prompt and the sampling of its training, where it had
    such; they are told. With KEY=VALUE it is the model that `togi run` makes with the same words, without it that of
    the recipe's last run; with --run ID and the name of a stage alone, that of an earlier run. An empty line or Ctrl-D
    leaves.
    """
    if as_json and message is None:
        raise RecipeError("command line: --json goes with --message")
    source = _of_run(target, words, run) if run is not None else _source(target, words)
    given = {name: value for name, value in sampling.items() if value is not None}
    work = importlib.import_module("togi.commands.chat")  # brings torch: a mistake above must not wait for it
    with library_warnings_kept(home()):
        work.chat(source, store_folder(), system, message, given, as_json)


def _of_run(target: Path | None, words: tuple[str, ...], given: str) -> ModelSource:
    """The model that a stage of an earlier run made; of the only one that made any, where none is named."""
    run = find_run(given)
    models = [stage["name"] for stage in run.state["stages"] if _gives_model(stage)]
    names = [*([str(target)] if target is not None else []), *words] or models
    if len(names) != 1 or names[0] not in models:
        raise RecipeError(f"run {run.id}: say which model: {', '.join(models) or 'it made none'}")
    folder = Path(stage_of(run, names[0])["folder"])
    if not is_done(folder):
        raise RecipeError(f"run {run.id}: stage {names[0]} is not finished, or its result was removed since")
    hold_whole(folder, f"togi run RECIPE --redo {names[0]}", only=MODEL_FOLDER)
    return ModelSource(kind="path", name=str((folder / MODEL_FOLDER).resolve()))


def _gives_model(stage: Mapping[str, Any]) -> bool:
    begun = (Path(stage["folder"]) / "settings.json").exists()
    return begun and kinds_of(settings_of(stage)).get(MAIN) == "model"


def _source(target: Path | None, words: tuple[str, ...]) -> ModelSource:
    if target is None:
        raise RecipeError("command line: give a recipe, a model folder, or --run ID")
    overrides = tuple(word for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    if os.path.isdir(target):  # Path.is_dir raises for names that the system refuses
        if words:
            raise RecipeError(f"command line: {target} is a model folder, so {words[0]!r} says nothing; leave it out")
        return ModelSource(kind="path", name=str(target.resolve()))
    if len(names) > 1:
        raise RecipeError(f"command line: one model at a time, found {' and '.join(names)}")
    graph = load_graph(target, overrides)
    model = names[0] if names else _only_model(graph, target)
    if model in graph.recipe.models:
        spec = graph.recipe.models[model]
        if (made := made_by(spec)) is None:
            return _declared(spec, model, target)
        model = made.name
    if model not in graph.nodes:
        known = [*graph.recipe.models, *_trained(graph)]
        raise RecipeError(f"{target}: there is no model {model!r}; there are: {', '.join(known)}")
    node = graph.nodes[model]
    if kinds_of(node.settings).get(MAIN) != "model":
        raise RecipeError(
            f"{target}: stage {model} gives {', '.join(kinds_of(node.settings).values())}, not a model to talk to"
        )
    folder = stage_folder(graph, model, overrides)
    if is_older(folder):
        raise RecipeError(
            f"{target}: an older togi made stage {model}; do it anew with `{run_command(target, overrides, model)}`, "
            f"or talk to what is there with `togi chat {shlex.quote(str((folder / MODEL_FOLDER).resolve()))}`"
        )
    if not is_done(folder):
        again = run_command(target, overrides, model)
        raise RecipeError(f"{target}: stage {model} is not finished; do it with `{again}`")
    log.info("holding the files of %s to their hashes", model)
    hold_whole(folder, run_command(target, overrides, redo=model), only=MODEL_FOLDER)
    return ModelSource(kind="path", name=str((folder / MODEL_FOLDER).resolve()))


def _declared(spec: ModelSpec, name: str, target: Path) -> ModelSource:
    if spec.kind != "causal":
        raise RecipeError(f"{target}: models.{name} is of kind {spec.kind}, not a model to talk to (kind: causal)")
    if spec.url is not None:
        raise RecipeError(f"{target}: models.{name}: endpoints cannot be talked to yet by this version of togi")
    return model_source(spec)


def _trained(graph: Graph) -> list[str]:
    return [name for name, node in graph.nodes.items() if kinds_of(node.settings).get(MAIN) == "model"]


def _only_model(graph: Graph, target: Path) -> str:
    trained = _trained(graph)
    if len(trained) != 1:
        raise RecipeError(f"{target}: say which model: {', '.join([*graph.recipe.models, *trained])}")
    return trained[0]
