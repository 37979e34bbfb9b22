"""Shared by the commands: the arguments that name a recipe, and JSON output."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from togi.core.errors import InputError, RecipeError
from togi.core.terminal import json_text, say
from togi.recipe.graph import Graph, build
from togi.recipe.limit import limited
from togi.recipe.runs import find_run
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.recipe.state import STATE
from togi.recipe.store import run_folder, store_folder

NAME = "name="  # begins the override that gives a run another name

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")

bad_rows_option = click.option(
    "--on-bad-row",
    type=click.Choice(["error", "drop"]),
    default="error",
    help="What to do with a row that does not fit: end with an error, the default, or drop and count it.",
)


def compute_option(auto: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option --compute; `auto` describes the default."""
    return click.option(
        "--compute",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        envvar="TOGI_COMPUTE",
        show_envvar=True,
        help=f"Type of matrix multiplications; auto, the default, {auto}.",
    )


def recipe_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE [KEY=VALUE ...]"""
    function = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(function)
    return click.argument("recipe", type=click.Path(path_type=Path))(function)


run_option = click.option("--run", "run", metavar="ID", help="A run by its id, without RECIPE; see `togi list --runs`.")


def optional_recipe(function: Callable[..., Any]) -> Callable[..., Any]:
    """[RECIPE] [KEY=VALUE ...]"""
    function = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(function)
    return click.argument("recipe", type=click.Path(path_type=Path), required=False)(function)


def run_place(recipe: Path | None, overrides: tuple[str, ...], run: str | None) -> Path:
    """The folder of a run: the one with this id, or a recipe's last one.

    Raises RecipeError if both or neither are given, InputError if the recipe has not been run here.
    """
    if (recipe is None) == (run is None):
        raise RecipeError("command line: give either RECIPE or --run ID; `togi list --runs` shows all runs")
    if run is not None:
        return find_run(run).folder
    assert recipe is not None
    folder = run_folder(load_graph(recipe, overrides).recipe.name)
    if not (folder / STATE).exists():
        raise InputError(
            f"{recipe}: has not been run here ({folder} does not exist); "
            f"start it with `{run_command(recipe, overrides)}`"
        )
    return folder


def load_graph(recipe: Path, overrides: tuple[str, ...] = (), limit: int | None = None) -> Graph:
    """Reads, merges, validates and orders a recipe; `limit` makes it a trial on that many rows. Raises RecipeError and
    InputError."""
    found = validate(read_tree(recipe, overrides))
    return build(found if limit is None else limited(found, limit))


def stage_folder(graph: Graph, stage: str, overrides: tuple[str, ...]) -> Path:
    """The folder of a stage's work: with overrides, that of exactly these settings; otherwise that of the recipe's last
    run, which may have had other overrides. With nothing but a name, it is that of the last run with this name."""
    if any(not word.startswith(NAME) for word in overrides):
        return store_folder() / graph.nodes[stage].folder_name
    return run_folder(graph.recipe.name) / stage


def run_command(recipe: Path, overrides: tuple[str, ...], until: str | None = None, redo: str | None = None) -> str:
    """The shell command that runs a recipe or a part of it, or redoes a stage."""
    more = [*(["--until", until] if until else []), *(["--redo", redo] if redo else [])]
    return shlex.join(["togi", "run", str(recipe), *overrides, *more])


def print_json(value: Any) -> None:
    """Prints one JSON document to standard output."""
    say(json_text(value, indent=1))
