"""`togi chat`: talks to a model that a recipe trained or declares."""

import importlib
from pathlib import Path
from typing import Any

import click

from togi.cli.common import run_option
from togi.cli.models import of_run, of_target, recommended_for
from togi.cli.speaking import safety_option, safety_text, sampling_option
from togi.core.errors import RecipeError
from togi.core.library_log import library_warnings_kept
from togi.core.sampling import NONE
from togi.recipe.store import home, store_folder


@click.command()
@click.argument("target", type=click.Path(path_type=Path), required=False)
@click.argument("words", nargs=-1, metavar="[MODEL] [KEY=VALUE]...")
@run_option
@click.option("--system", help="A system message; '' means none.  [default: that of the model's training]")
@click.option("--message", "-m", help="Send this message, print the answer and exit.")
@safety_option
@sampling_option(
    "Sampling settings of a published card, or the plain defaults.  [default: those recommended for the model, else "
    "of its training]",
    NONE,
)
@click.option("--temperature", type=click.FloatRange(0, 2), help="Randomness; 0 is greedy.  [default: 0.7]")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Sample from the likeliest tokens with this total probability.  [default: 0.95]",
)
@click.option(
    "--top-k", type=click.IntRange(0), help="Sample from this many of the likeliest tokens.  [default: 0, all]"
)
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1, max_open=True),
    help="Leave out tokens below this share of the likeliest one's probability.  [default: 0]",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(0.1),
    help="Above 1: tokens that already occurred become less likely.  [default: 1]",
)
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer, in tokens.  [default: 256]")
@click.option("--stop", multiple=True, help="A text that ends an answer, in addition to the terminator; repeatable.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random answers.")
@click.option("--json", "as_json", is_flag=True, help="With --message: print the answer as JSON.")
def command(
    target: Path | None,
    words: tuple[str, ...],
    run: str | None,
    system: str | None,
    message: str | None,
    as_json: bool,
    **more: Any,
) -> None:
    """Talk to a model that a recipe trained or declares.

    TARGET is a recipe, and MODEL is the name of one of its stages or declared models. Or TARGET alone names the model:
    a model folder, RECIPE:STAGE, package:NAME, or a hub id. The chat uses the model's own template and terminator. It
    also uses the system prompt and sampling of the model's training if they are known, and prints them. The model comes
    from the recipe's last run. With KEY=VALUE it comes from the run that `togi run` starts with the same overrides;
    with --run ID and only the name of a stage, from an earlier run. The safety prompt follows the system prompt of
    training. /quit or Ctrl-D ends the chat.
    """
    if as_json and message is None:
        raise RecipeError("command line: --json goes with --message")
    if message is not None and not message.strip():
        raise RecipeError("command line: --message is empty; ask something")
    language, preset = more.pop("safety_prompt"), more.pop("sampling")
    if language is not None and system:
        raise RecipeError("command line: --safety-prompt: --system is given; write all of it there, or leave one out")
    source = of_run(target, words, run) if run is not None else of_target(target, words)
    given = {name: value for name, value in more.items() if value not in (None, ())}
    work = importlib.import_module("togi.commands.chat")  # imports torch: errors above must not wait for it
    recommended = None if run is not None else recommended_for(target, words)
    wanted = work.Wanted(
        system=system, message=message, given=given, preset=preset, safety=safety_text(language), as_json=as_json,
        recommended=recommended,
    )  # fmt: skip
    with library_warnings_kept(home()):
        work.chat(source, store_folder(), wanted)
