"""`togi chat`."""

import importlib
from pathlib import Path
from typing import Any

import click

from togi.cli.common import run_option
from togi.cli.models import of_run, of_target
from togi.core.errors import RecipeError
from togi.core.library_log import library_warnings_kept
from togi.recipe.store import home, store_folder


@click.command()
@click.argument("target", type=click.Path(path_type=Path), required=False)
@click.argument("words", nargs=-1, metavar="[MODEL] [KEY=VALUE]...")
@run_option
@click.option("--system", help="A system message; that of the model's training otherwise, and with '' none.")
@click.option("--message", "-m", help="Say this, print the answer and leave.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="Randomness; 0 is greedy.  [default: 0.7]")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample from the likeliest tokens of this mass.  [default: 0.95]",
)
@click.option("--top-k", type=click.IntRange(0), help="Sample from this many likeliest tokens.  [default: 0, all]")
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1, max_open=True),
    help="Leave out tokens below this share of the likeliest one's probability.  [default: 0]",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(0.1),
    help="Above 1: tokens that were used become less likely.  [default: 1]",
)
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer.  [default: 256]")
@click.option("--stop", multiple=True, help="A text that ends an answer, besides the terminator; can be repeated.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed, another answer.")
@click.option("--json", "as_json", is_flag=True, help="With --message: print the answer as JSON.")
def command(
    target: Path | None,
    words: tuple[str, ...],
    run: str | None,
    system: str | None,
    message: str | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Talk to a model that a recipe trained or declares.

    TARGET is a recipe, then MODEL is the name of a stage or of a model it declares; or TARGET is a model folder. The
    model's own template and terminator are used, and the system prompt and the sampling of its training, where it had
    such; they are told. With KEY=VALUE it is the model that `togi run` makes with the same words, without it that of
    the recipe's last run; with --run ID and the name of a stage alone, that of an earlier run. An empty line or Ctrl-D
    leaves.
    """
    if as_json and message is None:
        raise RecipeError("command line: --json goes with --message")
    source = of_run(target, words, run) if run is not None else of_target(target, words)
    given = {name: value for name, value in sampling.items() if value not in (None, ())}
    work = importlib.import_module("togi.commands.chat")  # brings torch: a mistake above must not wait for it
    with library_warnings_kept(home()):
        work.chat(source, store_folder(), system, message, given, as_json)
