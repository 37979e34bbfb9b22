"""`togi run`."""

import shlex
from pathlib import Path
from typing import Any

import click

from togi.cli.common import compute_option, json_option, load_graph, recipe_arguments
from togi.core.errors import Interrupted, TogiError
from togi.core.locks import Busy
from togi.recipe.cluster import checked
from togi.recipe.display import Closing, Human, JsonLines, Watched
from togi.recipe.graph import Graph
from togi.recipe.joined import own_place
from togi.recipe.options import Options
from togi.recipe.run import Run, chat_command
from togi.recipe.store import is_done
from togi.report.collect import collect
from togi.report.formatting import compared


@click.command()
@recipe_arguments
@click.option("--until", metavar="STAGE", help="Stop after this stage and what it stands on.")
@click.option("--redo", metavar="STAGE", multiple=True, help="Forget this stage's work first, and do it again.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    help="A trial: read N rows of each data set, lower counts to match; the results stand apart.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="Threads to work with; 0: $OMP_NUM_THREADS, or all.")
@click.option(
    "--on",
    metavar="PLACE",
    default="",
    help="A Ray cluster for ranks that train and for shards of rows: ray://HOST:PORT, auto or local-cluster.",
)
@compute_option("is what the recipe says, or tries once what this machine is fast at")
@click.option("--accept-numerics", is_flag=True, help="Go on with a stage that was begun under other numerics.")
@json_option
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Do everything in a recipe that is not done yet.

    Kill it at any moment and run the same command again: it goes on, and ends with the same bits. KEY=VALUE changes a
    setting for this run, for example stages.policy.steps=40; only what depends on it is done again.
    """
    options["on"] = options["on"] and checked(options["on"])
    graph = load_graph(recipe, overrides, options["limit"])
    display = Watched(JsonLines() if as_json else Human())
    given = Options(recipe=str(recipe), overrides=overrides, joined=own_place(), **options)
    run = Run(graph, given, display)
    if given.joined and given.joined.rank:  # rank 0 tells how it goes
        run.run()
        return
    display.gone = run.stop
    if given.limit is not None:
        display.note(f"a trial on {given.limit} rows of each data set, kept apart as {graph.recipe.name}, run {run.id}")
    for name, model in graph.recipe.models.items():
        if said := ", ".join(part for part in (model.licence, model.terms) if part):
            display.note(f"model {name}: licence {said}")
    try:
        run.run()
    except Interrupted as stopped:
        if display.lost is not None and not run.signalled:
            raise display.lost from None
        raise Interrupted(f"{stopped}. To go on: {same_command(given, overrides, as_json)}") from None
    except TogiError as error:
        if not isinstance(error, Busy) and (run.folder / "report.html").exists():
            display.note(f"report: {run.folder / 'report.html'}")
        raise
    display.closing(_closing(graph, run, given))
    if display.lost is not None:
        raise display.lost


def same_command(given: Options, overrides: tuple[str, ...], as_json: bool) -> str:
    """What to type into a shell to go on as before. --redo is left out: it would forget what was done since."""
    words = ["togi", "run", given.recipe, *overrides]
    words += ["--until", given.until] if given.until else []
    words += ["--limit", str(given.limit)] if given.limit else []
    words += ["--on", given.on] if given.on else []
    words += ["--threads", str(given.threads)] if given.threads else []
    words += ["--compute", given.compute] if given.compute != "auto" else []
    words += ["--accept-numerics"] if given.accept_numerics else []
    words += ["--json"] if as_json else []
    return shlex.join(words)


def _closing(graph: Graph, run: Run, given: Options) -> Closing:
    """What is shown at the end; the commands are those that reach this very run."""
    chats = {}
    for node in graph.nodes.values():
        chat = chat_command(given, node)
        if chat is not None and is_done(run.store / node.folder_name):
            chats[node.name] = chat
    return Closing(
        run=run.id,
        report=str(run.folder / "report.html"),
        chats=chats,
        rows=compared(collect(run.folder)),
        spent=run.spent(),
    )
