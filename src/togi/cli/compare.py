"""`togi compare`: compares two models, or two runs, question by question."""

import importlib
from pathlib import Path
from typing import Any

import click

from togi.cli.common import bad_rows_option, compute_option, json_option, print_json, run_place
from togi.cli.measure import named_as, run_made, say_bad_rows
from togi.core.errors import RecipeError
from togi.core.sources import HUB_ID
from togi.core.tables import say_table
from togi.core.terminal import say
from togi.recipe.runs import KnownRun, find_run, id_of
from togi.recipe.state import read_state
from togi.report.formatting import percent

EXIT_WORSE = 6


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.argument("benchmarks", nargs=-1, metavar="[BENCHMARK]...")
@click.option("--fail-if-worse", is_flag=True, help="Exit with code 6 if an interval shows that B is worse.")
@click.option("--force", is_flag=True, help="Compare even if the measurements differ, and report the differences.")
@click.option("--judge", metavar="MODEL", help="The judge model, for benchmarks that need one.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="For two models: use N rows of each data set.")
@click.option("--reward", is_flag=True, help="A and B are reward models; detected for a folder or a stage.")
@click.option("--template", metavar="NAME", help="Chat template of A and B by name.  [default: their own]")
@click.option("--key-env", metavar="NAME", help="Environment variable with the key of servers.  [default: no key]")
@bad_rows_option
@compute_option("is the one that a short test finds fastest on this machine")
@json_option
def command(
    a: str, b: str, benchmarks: tuple[str, ...], fail_if_worse: bool, force: bool, as_json: bool, **more: Any
) -> None:
    """Compare two models, or two runs, question by question.

    A and B are runs: ids of `togi list --runs`, or recipes, which mean their last run. The benchmarks that both
    measured are compared, for models with the same name or for their only models. With a BENCHMARK, A and B are models,
    and both are measured first; models and benchmarks are named as for `togi evaluate`.

    Each difference is B minus A on their common questions. It has a paired bootstrap interval, the effect size in
    deviations (Hedges' g), and McNemar's test for right and wrong answers. If questions were asked several times, it
    also has the noise: the difference that asking the same model twice may produce. Runs that were measured differently
    (other questions, sampling or judge) are compared only with --force.
    """
    work = importlib.import_module("togi.commands.compare")
    bad: dict[str, Any] = {}
    if benchmarks:
        found, bad["bad_rows"] = _models(work, a, b, benchmarks, as_json, more)
    else:
        found = work.compare_runs(_run(a), _run(b), force)
    if as_json:
        told = [each.to_json() | bad for each in found]
        print_json(told[0] if len(told) == 1 else told)
    else:
        _say(work, found)
        say_bad_rows(bad.get("bad_rows", {}))
    if fail_if_worse and any(each.worse for each in found):
        click.get_current_context().exit(EXIT_WORSE)


def _models(work: Any, a: str, b: str, benchmarks: tuple[str, ...], as_json: bool, more: dict[str, Any]) -> Any:
    """Measures both models in one run, and compares them; also returns the counts of bad rows."""
    measure = importlib.import_module("togi.commands.measure")
    measure.refuse_unknown(benchmarks)
    key, template, reward = more["key_env"], more["template"], more["reward"]
    models = [named_as(measure, each, None, key, template, reward) for each in (a, b)]
    judge = more["judge"] and named_as(measure, more["judge"], None, key)
    wanted = measure.Measured(
        models=models, benchmarks=benchmarks, judge=judge, limit=more["limit"], on_bad_row=more["on_bad_row"]
    )
    graph = measure.graph_of(wanted)
    run = run_made(graph, as_json, more["compute"])
    base, other = (ref.name for ref in graph.nodes[measure.STAGE].settings.models)
    return work.compare_models(_run_in(run.folder), base, other), measure.bad_rows(graph, run.store)


def _run(text: str) -> KnownRun:
    """A run by its id, or the last one of a recipe. Raises RecipeError and InputError if there is none."""
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return _run_in(run_place(path, (), None))
    if path.is_dir() or ":" in text or HUB_ID.fullmatch(text):
        what = "a folder" if path.is_dir() else "no run"
        raise RecipeError(f"command line: {text!r} is {what}; to compare models, name a BENCHMARK after A and B")
    return find_run(text, "command line")


def _run_in(folder: Path) -> KnownRun:
    state = read_state(folder)
    return KnownRun(id=id_of(state), folder=folder, state=state, last=True)


def _say(work: Any, found: Any) -> None:
    for each in found:
        say(f"\n{each.benchmark}: A is {each.base}, B is {each.other}; {percent(each.level)} intervals")
        if each.unlike:
            say("measured differently, which may explain a difference: " + "; ".join(each.unlike))
        say_table(work.COLUMNS, work.table_rows(each), right=range(1, 7))
        alone = max((row.alone for row in each.differences), default=0)
        if alone:
            say(f"left out: {alone:,} questions without a number for both")
