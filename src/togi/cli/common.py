"""What the commands share: the arguments that name a recipe, and JSON output."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from togi.core.terminal import json_text, say
from togi.recipe.graph import Graph, build
from togi.recipe.schema import validate
from togi.recipe.source import read_tree

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def compute_option(auto: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--compute, where `auto` says what the default does."""
    return click.option(
        "--compute",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        envvar="TOGI_COMPUTE",
        show_envvar=True,
        help=f"Type of matrix products; auto, the default, {auto}.",
    )


def recipe_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE [KEY=VALUE ...]"""
    function = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(function)
    return click.argument("recipe", type=click.Path(path_type=Path))(function)


def load_graph(recipe: Path, overrides: tuple[str, ...] = ()) -> Graph:
    """Reads, merges, validates and orders a recipe. Raises RecipeError and InputError."""
    return build(validate(read_tree(recipe, overrides)))


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    say(json_text(value, indent=1))
