"""Options of the commands in which a model answers: recommended sampling settings, and the safety prompt."""

from collections.abc import Callable
from typing import Any

import click

from togi.core.sampling import PRESETS
from togi.text.safety import SAFETY


def sampling_option(help: str, *more: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option --sampling: the name of a preset, or one of the words in `more`."""
    return click.option("--sampling", type=click.Choice((*PRESETS, *more)), help=help)


def safety_text(language: str | None) -> str:
    """The text of --safety-prompt; "" if it is not given."""
    return "" if language is None else SAFETY[language]


safety_option = click.option(
    "--safety-prompt",
    type=click.Choice(tuple(SAFETY)),
    help="Ask for safe answers, by togi's own short system prompt in this language.",
)
