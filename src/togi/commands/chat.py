"""A conversation in the terminal, outside any recipe."""

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from togi.commands.conversation import LEAVE, Conversation, line_editing
from togi.core.errors import InputError
from togi.core.files import read_json
from togi.core.records import SamplingParams
from togi.core.sampling import Sampling
from togi.core.sources import CARD, ModelSource
from togi.core.terminal import json_text, say
from togi.model.load import load
from togi.rollout.generator import ModelGenerator

SHOWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")


class _Sampling(Sampling):
    """The sampling settings of a conversation, and those in a card; the card of a newer togi may have more."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)


class _Card(BaseModel):
    """The system prompt and sampling of the training, as stored in a model folder (`Spoken`)."""

    system: str | None = None
    sampling: _Sampling | None = None


def chat(
    source: ModelSource, cache: Path, system: str | None, message: str | None, given: dict[str, Any], as_json: bool
) -> None:
    """Answers `message`, or line after line from the terminal; the history grows with each turn.

    The system prompt is `system`, else that of the model's training; sampling is as `given`, else as in training, else
    the defaults. Raises InputError for a conversation that does not fit the model's template or context.
    """
    model = load(source, cache)
    generator = ModelGenerator(model.net, model.tokenizer, model.template, batch_rows=1)
    card = _card(source)
    system = card.system if system is None else system
    params = _params(card, given)
    if not as_json:
        _tell(card, system, params)
    talk = Conversation(generator, params, system)
    if message is not None:
        answer = talk.ask(message, show=not as_json)
        if as_json:
            used = {"system": system or None, "sampling": {name: getattr(params, name) for name in SHOWN}}
            say(json_text({"question": message, "answer": answer, **used}))
        return
    say(f"{model.name}, template {model.template.name}. /quit ends the chat, /help shows all commands.", err=True)
    with line_editing(cache.parent):
        while (line := _read()) not in LEAVE:
            talk.turn(line)


def _card(source: ModelSource) -> _Card:
    """The card of a folder that togi saved; an empty one for any other model. Raises InputError for a damaged one."""
    path = Path(source.name) / CARD
    if source.kind != "path" or not path.exists():
        return _Card()
    try:
        return _Card.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key}: {first['msg']}; set it to null, or save the model again") from None


def _params(card: _Card, given: dict[str, Any]) -> SamplingParams:
    """Sampling parameters; the longest answer is the default, or that of the training if it is longer."""
    known = card.sampling or _Sampling()
    room = max(known.max_tokens, _Sampling().max_tokens)
    return known.model_copy(update={"max_tokens": room, **given}).params()


def _tell(card: _Card, system: str | None, params: SamplingParams) -> None:
    """Prints the settings of the model's training that are used."""
    if system and system == card.system:
        say(f"system prompt of training: {system}", err=True)
    known = {} if card.sampling is None else card.sampling.model_dump(include=set(SHOWN))
    off = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "max_tokens": params.max_tokens}
    used = [f"{name} {value:g}" for name, value in known.items() if getattr(params, name) == value != off.get(name)]
    if used:
        say(f"sampling of training: {', '.join(used)}", err=True)


def _read() -> str:
    """The next line, asked for with a prompt if a person types it; empty at the end of the input."""
    typed = sys.stdin.isatty()
    if typed:
        say()
    try:
        return input("> " if typed else "").strip()
    except EOFError:
        return ""
