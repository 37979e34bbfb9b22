"""`togi init`."""

import importlib
import shlex
from pathlib import Path

import click

from togi.cli.common import json_option, print_json
from togi.core.tables import say_table
from togi.core.terminal import say

GOALS = ("sft", "dpo", "reward", "grpo")


@click.command()
@click.option("--model", required=True, help="A model folder, a model id on the hub, or a package with weights.")
@click.option("--data", required=True, help="A file or folder of rows, or a data set id on the hub.")
@click.option("--goal", type=click.Choice(GOALS), required=True, help="What to train: the method.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="The recipe to write.  [default: GOAL.yaml]", metavar="FILE"
)
@json_option
def command(model: str, data: str, goal: str, output: Path | None, as_json: bool) -> None:
    """Write a recipe for a model, data and a goal.

    Inspects the first row and the model's files, shows how each column is read, and writes a commented recipe that
    passes `togi check`. Never overwrites an existing file.
    """
    path = output or Path(f"{goal}.yaml")
    beside = path.resolve().parent
    work = importlib.import_module("togi.commands.init")
    found = work.look(data, goal)
    models, longest = work.model_entry(model, beside)
    rows = work.data_entry(data, beside)
    written = work.write_recipe(path, goal, {"model": work.flow(models), "data": work.flow(rows)}, longest, found)
    if as_json:
        columns = [{"column": name, "read": read or None, "example": text} for name, read, text in found.columns]
        print_json({"written": list(map(str, written)), "model": models, "data": rows, "columns": columns})
        return
    more = f" and {len(found.files) - 1} more" if len(found.files) > 1 else ""
    say(f"data: {found.files[0]}{more}")
    say_table(
        ("column", "read as", "first row"), [(name, read or "unused", text) for name, read, text in found.columns]
    )
    say(f"model: {', '.join(f'{key} {value}' for key, value in models.items())}")
    say(f"written: {', '.join(map(str, written))}")
    say(f"next: {shlex.join(['togi', 'check', str(path)])}, then {shlex.join(['togi', 'run', str(path)])}")
