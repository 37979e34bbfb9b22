"""`togi report`."""

from pathlib import Path

import click

from togi.cli.common import json_option, load_graph, print_json, recipe_arguments, run_command
from togi.core.errors import InputError
from togi.core.terminal import say
from togi.recipe.report import render
from togi.recipe.state import settle
from togi.recipe.store import run_folder


@click.command()
@recipe_arguments
@json_option
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Render a recipe's report again and print where it lies.

    With name=OTHER it is that of the run which was started so.
    """
    folder = run_folder(load_graph(recipe, overrides).recipe.name)
    if not (folder / "state.json").exists():
        raise InputError(f"{recipe}: has not been run here; start it with `{run_command(recipe, overrides)}`")
    settle(folder)
    path = render(folder, lambda wrong: say(f"note: {wrong}", err=True))
    if as_json:
        print_json({"report": str(path)})
    else:
        say(path)
