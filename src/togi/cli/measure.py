"""`togi evaluate MODEL BENCHMARK...`: measures models on benchmarks, outside any recipe."""

import importlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from togi.cli.benchmarks import benchmark_json, say_benchmark
from togi.cli.common import bad_rows_option, compute_option, json_option, print_json
from togi.cli.models import declared, only_speaks
from togi.core.errors import Interrupted, RecipeError
from togi.core.terminal import say
from togi.recipe.display import Human, Silent, Watched
from togi.recipe.graph import Graph
from togi.recipe.options import Options
from togi.recipe.run import Run
from togi.report.collect import collect
from togi.report.view import BenchmarkView

MODEL = "MODEL"


class OrModel(click.Group):
    """A group whose first word is a command or a model to measure."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = not args or args[0] in self.commands or args[0] in ctx.help_option_names
        return super().parse_args(ctx, args if known else [MODEL, *args])


class _Measure(click.Command):
    """Leaves its own name out of the usage line: the first word is the model."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [piece for piece in super().collect_usage_pieces(ctx) if piece != MODEL]


@click.command(MODEL, cls=_Measure)
@click.argument("model")
@click.argument("benchmarks", nargs=-1, required=True, metavar="BENCHMARK...")
@click.option("--judge", metavar="MODEL", help="The judge model, for benchmarks that need one.")
@click.option("--baseline", metavar="MODEL", help="The model that MODEL is compared with.  [default: none]")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="A trial on N rows of each data set.")
@click.option("--reward", is_flag=True, help="MODEL is a reward model; detected for a folder or a stage.")
@click.option("--template", metavar="NAME", help="Chat template of MODEL by name.  [default: the model's own]")
@click.option("--revision", help="Revision of a hub's or a server's MODEL.  [default: main]")
@click.option("--key-env", metavar="NAME", help="Environment variable with the key of servers.  [default: no key]")
@bad_rows_option
@compute_option("is the one that a short test finds fastest on this machine")
@json_option
def measure(model: str, benchmarks: tuple[str, ...], as_json: bool, **more: Any) -> None:
    """Measure MODEL on benchmarks, outside any recipe.

    MODEL is a model folder, RECIPE:STAGE, package:NAME, a hub id, or URL#NAME of a server. BENCHMARK is TYPE:DATA,
    where DATA is a file, a folder, a preset or a hub id: answers:questions.jsonl; or '{type: TYPE, ...}' with the
    settings of `togi list evaluate`. Earlier measurements are reused, and a killed command continues where it stopped.
    """
    work = importlib.import_module("togi.commands.measure")
    work.refuse_unknown(benchmarks)  # before the files of models are hashed
    subject = named_as(work, model, more["revision"], more["key_env"], more["template"], more["reward"])
    judge, baseline = (
        None if more[name] is None else named_as(work, more[name], None, more["key_env"])
        for name in ("judge", "baseline")
    )
    wanted = work.Measured(
        models=[subject],
        benchmarks=benchmarks,
        judge=judge,
        baseline=baseline,
        limit=more["limit"],
        on_bad_row=more["on_bad_row"],
    )
    run = run_made(work.graph_of(wanted), as_json, more["compute"])
    found, bad = tables_of(run), work.bad_rows(run.graph, run.store)
    if as_json:
        told = [benchmark_json(each) | {"run": run.id, "bad_rows": bad} for each in found]
        print_json(told[0] if len(told) == 1 else told)
        return
    for each in found:
        say_benchmark(each)
    say_bad_rows(bad)
    say(f"run {run.id}, report: {run.folder / 'report.html'}")


def tables_of(run: Run) -> list[BenchmarkView]:
    """The benchmark tables of a run."""
    return [found for stage in collect(run.folder).stages for found in stage.benchmarks]


def say_bad_rows(bad: Mapping[str, Mapping[str, int]]) -> None:
    """Prints what `bad_rows` found: one line for each data set."""
    for name, counts in bad.items():
        say(f"left out when {name} was read: {', '.join(f'{reason} {count:,}' for reason, count in counts.items())}")


def named_as(
    work: Any, text: str, revision: str | None, key_env: str | None, template: str | None = None, reward: bool = False
) -> Any:
    """A model of the command line in the form that `togi.commands.measure` expects."""
    name, entry, scores = declared(text, revision, key_env)
    if reward and "path" in entry and only_speaks(Path(entry["path"])):
        raise RecipeError(
            f"command line: {text}: it is a language model, which gives no scores; name a reward model, such as that "
            "of a stage train.reward"
        )
    entry |= {"template": template} if template else {}
    kinds = ("scorer",) if reward or scores else ("model", "scorer") if "url" in entry else ("model",)
    return work.Named(name=name, entry=entry, kinds=kinds)


def run_made(graph: Graph, as_json: bool, compute: str = "auto") -> Run:
    """Runs a recipe that a command made, with progress on standard error unless JSON is wanted. Raises TogiError if it
    fails."""
    display = Watched(Silent() if as_json else Human())
    run = Run(graph, Options(compute=compute), display)
    display.gone = run.stop
    try:
        run.run()
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}. To continue: {shlex.join(['togi', *sys.argv[1:]])}") from None
    return run
