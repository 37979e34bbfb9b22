"""A conversation in the terminal, outside any recipe."""

from pathlib import Path

from togi.core.errors import InputError
from togi.core.records import Message, Prompt, SamplingParams
from togi.core.sources import ModelSource
from togi.core.terminal import json_text, say
from togi.model.load import load
from togi.rollout.generator import ModelGenerator


def chat(
    source: ModelSource, cache: Path, system: str | None, message: str | None, params: SamplingParams, as_json: bool
) -> None:
    """Answers `message`, or line after line from the terminal; the history grows with each turn.

    Raises InputError where the conversation no longer fits the model's context.
    """
    model = load(source, cache)
    generator = ModelGenerator(model.net, model.tokenizer, model.template, batch_rows=1)
    history = [Message("system", system)] if system else []
    if message is not None:
        answer = _answer(generator, history, message, params, show=not as_json)
        if as_json:
            say(json_text({"question": message, "answer": answer}))
        return
    say(f"{model.name}, template {model.template.name}. An empty line leaves.", err=True)
    while question := _read():
        try:
            answer = _answer(generator, history, question, params, show=True)
        except InputError as error:
            raise InputError(f"the conversation is too long to go on ({error}); start a new one") from None
        history += [Message("user", question), Message("assistant", answer)]


def _read() -> str:
    try:
        return input("\n> ").strip()
    except EOFError:
        return ""


def _answer(
    generator: ModelGenerator, history: list[Message], question: str, params: SamplingParams, show: bool
) -> str:
    prompt = Prompt(id=f"turn-{len(history)}", messages=(*history, Message("user", question)))
    pieces = []
    for piece in generator.stream(prompt, params):
        pieces.append(piece)
        if show:
            say(piece, nl=False)
    if show:
        say()
    return "".join(pieces).strip()
