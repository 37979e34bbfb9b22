"""`togi chat`."""

import importlib
from pathlib import Path
from typing import Any

import click

from togi.cli.common import load_graph
from togi.core.errors import RecipeError
from togi.core.records import SamplingParams
from togi.core.sources import ModelSource
from togi.recipe.graph import Graph, model_source
from togi.recipe.store import is_done, run_folder, store_folder
from togi.stages.base import MODEL_FOLDER
from togi.stages.table import STAGES


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.argument("model", required=False)
@click.option("--system", help="A system message; the template's default otherwise.")
@click.option("--message", "-m", help="Say this, print the answer and leave.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), default=0.7, show_default=True, help="Randomness; 0 is greedy."
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="Sample from the likeliest tokens of this mass.",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(0.1),
    default=1.0,
    show_default=True,
    help="Above 1: tokens that were used become less likely.",
)
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed, another answer.")
@click.option("--json", "as_json", is_flag=True, help="With --message: print the answer as JSON.")
def command(
    target: Path, model: str | None, system: str | None, message: str | None, as_json: bool, **sampling: Any
) -> None:
    """Talk to a model that a recipe trained or declares.

    TARGET is a recipe, then MODEL is the name of a stage or of a model it declares; or TARGET is a model folder. The
    model's own template and terminator are used. An empty line or Ctrl-D leaves.
    """
    if as_json and message is None:
        raise RecipeError("command line: --json goes with --message")
    source = _source(target, model)
    work = importlib.import_module("togi.stages.chat_work")  # brings torch: a mistake above must not wait for it
    work.chat(source, store_folder(), system, message, SamplingParams(**sampling), as_json)


def _source(target: Path, model: str | None) -> ModelSource:
    if target.is_dir():
        return ModelSource(kind="path", name=str(target.resolve()))
    graph = load_graph(target)
    if model is None:
        model = _only_model(graph, target)
    if model in graph.recipe.models:
        return model_source(graph.recipe.models[model])
    if model not in graph.nodes:
        names = [*graph.recipe.models, *_trained(graph)]
        raise RecipeError(f"{target}: there is no model {model!r}; there are: {', '.join(names)}")
    node = graph.nodes[model]
    if STAGES[node.settings.type].yields != "model":
        raise RecipeError(f"{target}: stage {model} gives {STAGES[node.settings.type].yields}, not a model to talk to")
    folder = run_folder(graph.recipe.name) / model  # of the last run, whatever its overrides were
    if not is_done(folder):
        raise RecipeError(f"{target}: stage {model} is not finished; do it with `togi run {target} --until {model}`")
    return ModelSource(kind="path", name=str((folder / MODEL_FOLDER).resolve()))


def _trained(graph: Graph) -> list[str]:
    return [name for name, node in graph.nodes.items() if STAGES[node.settings.type].yields == "model"]


def _only_model(graph: Graph, target: Path) -> str:
    trained = _trained(graph)
    if len(trained) != 1:
        raise RecipeError(f"{target}: say which model: {', '.join([*graph.recipe.models, *trained])}")
    return trained[0]
