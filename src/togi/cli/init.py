"""`togi init`: writes a recipe for a model, data and a goal."""

import importlib
import shlex
from pathlib import Path

import click

from togi.cli.common import json_option, print_json
from togi.core.errors import RecipeError
from togi.core.tables import say_table
from togi.core.terminal import say

GOALS = ("sft", "dpo", "smpo", "reward", "grpo")
OTHERS = "For other stages, begin with a recipe of recipes/examples; `togi list` shows all stage types."


class Goal(click.Choice[str]):
    """A goal; the error for another word says where recipes for other stages are."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as wrong:
            self.fail(f"{wrong.message} {OTHERS}", param, ctx)


@click.command()
@click.option("--model", required=True, help="A model folder, a model id on the hub, or package:NAME.")
@click.option("--data", required=True, help="A file or folder of rows, or a data set id on the hub.")
@click.option("--goal", type=Goal(GOALS), required=True, help="What to train: the method.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="The recipe to write.  [default: GOAL.yaml]", metavar="FILE"
)
@click.option(
    "--column",
    "names",
    multiple=True,
    metavar="OURS=YOURS",
    help="A column of togi and its name in the data, as in prompt=my_question; repeatable.",
)
@json_option
def command(model: str, data: str, goal: str, output: Path | None, names: tuple[str, ...], as_json: bool) -> None:
    """Write a recipe for a model, data and a goal.

    Inspects the first row and the model's files, shows which columns are used, and writes a commented recipe for
    `togi check`. Never overwrites an existing file.
    """
    path = output or Path(f"{goal}.yaml")
    beside = path.resolve().parent
    work, made = (importlib.import_module(f"togi.commands.{name}") for name in ("init", "init_model"))
    columns_by_name = _named(names)
    found = work.look(data, goal, columns_by_name)
    models, longest = made.model_entry(model, beside)
    rows = work.data_entry(data, beside, columns_by_name)
    written = work.write_recipe(path, goal, {"model": work.flow(models), "data": work.flow(rows)}, longest, found)
    notes = [note for note in (made.template_note(models, beside, found.special), found.unfit) if note]
    if as_json:
        columns = [{"column": name, "read": read or None, "example": text} for name, read, text in found.columns]
        told = {"written": list(map(str, written)), "model": models, "data": rows, "columns": columns}
        print_json(told | ({"notes": notes} if notes else {}))
        return
    more = f" and {len(found.files) - 1} more" if len(found.files) > 1 else ""
    say(f"data: {found.files[0]}{more}")
    say_table(
        ("column", "used for", "first row"), [(name, read or "unused", text) for name, read, text in found.columns]
    )
    say(f"model: {', '.join(f'{key} {value}' for key, value in models.items())}")
    say(f"written: {', '.join(map(str, written))}")
    for note in notes:
        say(f"note: {note}")
    say(f"next: {shlex.join(['togi', 'check', str(path)])}, then {shlex.join(['togi', 'run', str(path)])}")


def _named(names: tuple[str, ...]) -> dict[str, str]:
    """The data's names of columns, by togi's. Raises RecipeError for a word without `=`."""
    for word in names:
        if not all(word.partition("=")):
            raise RecipeError(f"--column: found {word!r}; write OURS=YOURS, as in prompt=my_question")
    return dict(word.split("=", 1) for word in names)
