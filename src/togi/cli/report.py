"""`togi report`."""

from pathlib import Path

import click

from togi.cli.common import json_option, load_graph, print_json
from togi.core.errors import InputError
from togi.core.terminal import say
from togi.recipe.report import render
from togi.recipe.state import settle
from togi.recipe.store import run_folder


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@json_option
def command(recipe: Path, as_json: bool) -> None:
    """Render a recipe's report again and print where it lies."""
    folder = run_folder(load_graph(recipe).recipe.name)
    if not (folder / "state.json").exists():
        raise InputError(f"{recipe}: has not been run here; start it with `togi run {recipe}`")
    settle(folder)
    path = render(folder)
    if as_json:
        print_json({"report": str(path)})
    else:
        say(path)
