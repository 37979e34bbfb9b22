"""`togi status`."""

from pathlib import Path

import click

from togi.cli.common import json_option, load_graph, print_json, recipe_arguments, run_command
from togi.core.errors import InputError
from togi.core.files import read_lines
from togi.core.tables import say_table
from togi.core.terminal import say
from togi.recipe.samples import bytes_of
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
    rows = [(s["name"], s["type"], s["state"], _took(s["seconds"], Path(s["folder"]))) for s in state["stages"]]
    say_table(("stage", "type", "state", "took"), rows, right=(3,))
    for note in older_note():
        say(f"note: {note}")
    say(f"report: {path.parent / 'report.html'}")


def _took(seconds: float | None, folder: Path) -> str:
    """The seconds that a stage took, or how far it came."""
    size = bytes_of(folder)
    kept = f", {size / 1e6:.1f} MB of samples" if size else ""
    if seconds is not None:
        return f"{seconds:.1f} s{kept}"
    steps = len(read_lines(folder / "metrics.jsonl"))
    units = len(read_lines(folder / "journal.jsonl"))
    return f"{steps} steps{kept}" if steps else f"{units} units" if units else ""
