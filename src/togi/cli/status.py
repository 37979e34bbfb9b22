"""`togi status`: shows the progress of a recipe's last run."""

from pathlib import Path

import click

from togi.cli.common import json_option, optional_recipe, print_json, run_option, run_place
from togi.core.files import read_lines
from togi.core.tables import say_table
from togi.core.terminal import say
from togi.recipe.runs import id_of
from togi.recipe.samples import bytes_of
from togi.recipe.state import read_state
from togi.recipe.store import store_folder
from togi.recipe.sweep import older_note
from togi.stages.spent import stored_answers


@click.command()
@optional_recipe
@run_option
@json_option
def command(recipe: Path | None, overrides: tuple[str, ...], run: str | None, as_json: bool) -> None:
    """Show the progress of a recipe's last run.

    With name=OTHER, show the run that was started with that name; with --run ID, an earlier run.
    """
    folder = run_place(recipe, overrides, run)
    state = read_state(folder)
    if as_json:
        print_json({**state, "id": id_of(state)})
        return
    say(f"{state['name']}: {state['state']}" + (f" ({state['error']})" if state["error"] else ""))
    say(f"run: {id_of(state)}")
    rows = [(s["name"], s["type"], s["state"], _took(s["seconds"], Path(s["folder"]))) for s in state["stages"]]
    say_table(("stage", "type", "state", "took"), rows, right=(3,))
    for words in state.get("spent", []):
        say(f"spent: {words}")
    if answers := sum(count for count, _ in stored_answers(store_folder()).values()):
        say(f"answers of servers in the store: {answers:,}; `togi clean --answers` removes them")
    for note in older_note():
        say(f"note: {note}")
    say(f"report: {folder / 'report.html'}")


def _took(seconds: float | None, folder: Path) -> str:
    """The seconds that a stage took, or its progress."""
    size = bytes_of(folder)
    kept = f", {size / 1e6:.1f} MB of samples" if size else ""
    if seconds is not None:
        return f"{seconds:.1f} s{kept}"
    steps = len(read_lines(folder / "metrics.jsonl"))
    units = len(read_lines(folder / "journal.jsonl"))
    return f"{steps} steps{kept}" if steps else f"{units} units" if units else ""
