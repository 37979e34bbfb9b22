"""`togi report`: renders a recipe's report again."""

from pathlib import Path

import click

from togi.cli.common import json_option, optional_recipe, print_json, run_option, run_place
from togi.core.terminal import say
from togi.recipe.report import render
from togi.recipe.state import settle


@click.command()
@optional_recipe
@run_option
@json_option
def command(recipe: Path | None, overrides: tuple[str, ...], run: str | None, as_json: bool) -> None:
    """Render a recipe's report again and print its path.

    By default it is the report of the recipe's last run; with name=OTHER, of the run that was started with that name;
    with --run ID, of an earlier run.
    """
    folder = run_place(recipe, overrides, run)
    settle(folder)
    path = render(folder, lambda wrong: say(f"note: {wrong}", err=True))
    if as_json:
        print_json({"report": str(path)})
    else:
        say(path)
