"""`togi status`."""

from pathlib import Path

import click

from togi.cli.common import json_option, load_graph, print_json, recipe_arguments, run_command
from togi.core.errors import InputError
from togi.core.files import read_lines
from togi.core.terminal import say
from togi.recipe.state import STATE, read_state
from togi.recipe.store import run_folder
from togi.recipe.sweep import older_note


@click.command()
@recipe_arguments
@json_option
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show how far a recipe's last run came.

    With name=OTHER it is the run that was started so.
    """
    name = load_graph(recipe, overrides).recipe.name
    path = run_folder(name) / STATE
    if not path.exists():
        raise InputError(
            f"{recipe}: has not been run here ({path.parent} is not there); start it with "
            f"`{run_command(recipe, overrides)}`"
        )
    state = read_state(path.parent)
    if as_json:
        print_json(state)
        return
    say(f"{state['name']}: {state['state']}" + (f" ({state['error']})" if state["error"] else ""))
    for stage in state["stages"]:
        took = f"{stage['seconds']:.1f} s" if stage["seconds"] is not None else _progress(Path(stage["folder"]))
        say(f"  {stage['name']:<16} {stage['state']:<11} {took}")
    for note in older_note():
        say(f"note: {note}")
    say(f"report: {path.parent / 'report.html'}")


def _progress(folder: Path) -> str:
    steps = len(read_lines(folder / "metrics.jsonl"))
    units = len(read_lines(folder / "journal.jsonl"))
    return f"{steps} steps" if steps else f"{units} units" if units else ""
