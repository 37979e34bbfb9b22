"""`togi run`: does everything in a recipe that is not done yet."""

import shlex
from pathlib import Path
from typing import Any

import click

from togi.cli.common import compute_option, load_graph, recipe_arguments
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
@click.option("--until", metavar="STAGE", help="Run only this stage and the stages that it depends on.")
@click.option("--redo", metavar="STAGE", multiple=True, help="Discard the stored work of this stage and do it again.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    help="A trial: read N rows of each data set, and lower counts and training steps to match, except those that "
    "KEY=VALUE sets; stored separately.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="Number of threads; 0: $OMP_NUM_THREADS, or all.")
@click.option(
    "--on",
    metavar="PLACE",
    default="",
    help="A Ray cluster for training ranks and shards of rows: ray://HOST:PORT, auto or local-cluster.",
)
@compute_option("is the recipe's, or the one that a short test finds fastest on this machine")
@click.option("--accept-numerics", is_flag=True, help="Continue a stage that was begun under other numerics.")
@click.option("--json", "as_json", is_flag=True, help="Print the events as JSON Lines, one object a line.")
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Do everything in a recipe that is not done yet.

    Kill it at any moment and run the same command again: it continues, and ends with the same bits. KEY=VALUE changes a
    setting for this run, for example stages.policy.steps=40; only the stages that depend on it run again.
    """
    options["on"] = options["on"] and checked(options["on"])
    graph = load_graph(recipe, overrides, options["limit"])
    display = Watched(JsonLines() if as_json else Human())
    given = Options(recipe=str(recipe), overrides=overrides, joined=own_place(), **options)
    run = Run(graph, given, display)
    if given.joined and given.joined.rank:  # rank 0 reports the progress
        run.run()
        return
    display.gone = run.stop
    if given.limit is not None:
        display.note(
            f"a trial on {given.limit} rows of each data set, stored separately as {graph.recipe.name}, run {run.id}"
        )
    for name, model in graph.recipe.models.items():
        if said := ", ".join(part for part in (model.licence, model.terms) if part):
            display.note(f"model {name}: licence {said}")
    try:
        run.run()
    except Interrupted as stopped:
        if display.lost is not None and not run.signalled:
            raise display.lost from None
        raise Interrupted(f"{stopped}. To continue: {same_command(given, overrides, as_json)}") from None
    except TogiError as error:
        if run.begun and not isinstance(error, Busy) and (run.folder / "report.html").exists():
            display.note(f"report: {run.folder / 'report.html'}")
        raise
    display.closing(_closing(graph, run, given))
    if display.lost is not None:
        raise display.lost


def same_command(given: Options, overrides: tuple[str, ...], as_json: bool) -> str:
    """The shell command that continues this run. --redo is left out: it would discard the work done since."""
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
    """The closing lines of a run; their commands refer to exactly this run."""
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
