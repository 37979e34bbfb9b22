"""Loads a model for a chat, settles its system prompt and sampling, and answers one message or a whole dialogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from togi.commands.conversation import Conversation, line_editing, lines
from togi.commands.stored import Stored, StoredSampling, read_stored
from togi.core.records import SamplingParams
from togi.core.sampling import PresetName, Recommended
from togi.core.sources import ModelSource
from togi.core.terminal import json_text, say
from togi.model.load import load
from togi.rollout.generator import ModelGenerator
from togi.rollout.sampling_model import context_limit
from togi.text.safety import check_system, joined

SHOWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the user wants. `system` is the user's own system prompt ("" for none), `message` a single message to answer
    in place of a dialogue. Sampling settings are `given` one by one, by the name of a `preset`, or `recommended` by the
    model's recipe. `safety` is the text of a safety prompt."""

    system: str | None = None
    message: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    preset: PresetName | Literal["none"] | None = None
    recommended: Recommended | None = None
    safety: str = ""
    as_json: bool = False


def chat(source: ModelSource, cache: Path, wanted: Wanted) -> None:
    """Answers the message, or line after line from the terminal; the history grows with each turn.

    The system prompt is the user's, else that of the model's training, followed by the safety prompt. Sampling is as
    given, else that of the preset, else as recommended for the model, else as in its training, else the defaults.
    Raises InputError for a conversation that does not fit the model's template or context.
    """
    model = load(source, cache)
    generator = ModelGenerator(model.net, model.tokenizer, model.template, batch_rows=1)
    if wanted.safety:
        check_system(model.template, wanted.safety)
    stored = read_stored(source, wanted.recommended)
    own = stored.system if wanted.system is None else wanted.system
    system = joined(own, wanted.safety)
    known, origin = _known(stored, wanted, context_limit(model.net))
    params = _params(known, wanted.given)
    if not wanted.as_json:
        _tell(own if own == stored.system else None, wanted.safety, _used(known, params), origin)
    _warn(stored, wanted, params)
    talk = Conversation(generator, params, system)
    if wanted.message is not None:
        answer = talk.ask(wanted.message, show=not wanted.as_json)
        if wanted.as_json:
            used = {"system": system or None, "sampling": {name: getattr(params, name) for name in SHOWN}}
            say(json_text({"question": wanted.message, "answer": answer, **used}))
        return
    say(f"{model.name}, template {model.template.name}. /quit ends the chat, /help shows all commands.", err=True)
    with line_editing(cache.parent):
        for line in lines():
            talk.turn(line)


def _known(stored: Stored, wanted: Wanted, context: int | None) -> tuple[StoredSampling | None, str]:
    """The sampling settings to begin with, if any, and where they come from, in words. A recommended length leaves
    half of the model's context, in tokens, to the conversation."""
    chosen = stored.chosen(wanted.preset)
    if chosen is not None:
        named = f" ({chosen.preset})" if chosen.preset else ""
        origin = f"sampling {chosen.preset}" if wanted.preset else f"recommended sampling{named}"
        room = chosen.max_tokens if context is None else min(chosen.max_tokens, context // 2)
        return StoredSampling.model_validate(chosen.values() | {"max_tokens": max(room, 1)}), origin
    return (stored.sampling if wanted.preset is None else None), "sampling of training"


def _params(known: StoredSampling | None, given: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters; the longest answer is the default, or that of the known settings if it is longer."""
    known = known or StoredSampling()
    room = max(known.max_tokens, StoredSampling().max_tokens)
    return known.model_copy(update={"max_tokens": room, **given}).params()


def _warn(stored: Stored, wanted: Wanted, params: SamplingParams) -> None:
    chosen = stored.chosen(wanted.preset)
    if chosen is not None and (warning := chosen.warning(params.temperature)):
        say(f"warning: {warning}", err=True)


def _used(known: StoredSampling | None, params: SamplingParams) -> list[str]:
    """The known settings that are used and have an effect."""
    values = {} if known is None else known.model_dump(include=set(SHOWN))
    off = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "max_tokens": params.max_tokens}
    return [f"{name} {value:g}" for name, value in values.items() if getattr(params, name) == value != off.get(name)]


def _tell(trained: str | None, safety: str, used: Sequence[str], origin: str) -> None:
    """Prints the system prompt of training, the safety prompt, and the sampling settings that are used."""
    if trained:
        say(f"system prompt of training: {trained}", err=True)
    if safety:
        say(f"safety prompt: {safety}", err=True)
    if used:
        say(f"{origin}: {', '.join(used)}", err=True)
