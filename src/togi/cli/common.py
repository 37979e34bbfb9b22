"""What the commands share: the arguments that name a recipe, and JSON output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from togi.recipe.graph import Graph, build
from togi.recipe.schema import validate
from togi.recipe.source import read_tree

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def recipe_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE [KEY=VALUE ...]"""
    function = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(function)
    return click.argument("recipe", type=click.Path(path_type=Path))(function)


def load_graph(recipe: Path, overrides: tuple[str, ...] = ()) -> Graph:
    """Reads, merges, validates and orders a recipe. Raises RecipeError and InputError."""
    return build(validate(read_tree(recipe, overrides)))


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=1))
