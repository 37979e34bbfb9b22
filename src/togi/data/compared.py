"""Selects the texts of a record to compare with those of others: everything said, the questions, or the answer."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from togi.core.records import Chat, Document, Message, Pair, Prompt, Record, Sample

Part = Literal["whole", "question", "answer"]


def turns(record: Record, part: Part) -> list[str]:
    """The texts of a record that `part` selects, turn by turn; system turns are never included.

    `question` selects what users say, `answer` the last turn: both sides of a pair, the reference answer of a prompt. A
    document is one text for every `part`.
    """
    return _PARTS[type(record)](record)[part]()


def compared(record: Record, part: Part) -> str:
    """The same as `turns`, joined to one text."""
    return "\n".join(turns(record, part))


def has(record: Record, part: Part) -> bool:
    """Whether a record has what `part` selects: a prompt without a reference answer has no answer."""
    return bool(turns(record, part))


Parts = dict[str, Callable[[], list[str]]]


def _said(messages: Sequence[Message]) -> list[str]:
    return [message.content for message in messages if message.role != "system"]


def _asked(messages: Sequence[Message]) -> list[str]:
    return [message.content for message in messages if message.role == "user"]


def _chat(chat: Chat) -> Parts:
    said = chat.messages
    return {"whole": lambda: _said(said), "question": lambda: _asked(said), "answer": lambda: [said[-1].content]}


def _prompt(prompt: Prompt) -> Parts:
    answer = [] if prompt.answer is None else [prompt.answer]
    return {
        "whole": lambda: [*_said(prompt.messages), *answer],
        "question": lambda: _asked(prompt.messages),
        "answer": lambda: answer,
    }


def _sample(sample: Sample) -> Parts:
    prompt, answer = sample.prompt.messages, [sample.completion.text]
    return {"whole": lambda: [*_said(prompt), *answer], "question": lambda: _asked(prompt), "answer": lambda: answer}


def _pair(pair: Pair) -> Parts:
    sides = [*_said(pair.chosen), *_said(pair.rejected)]
    return {
        "whole": lambda: [*_said(pair.prompt), *sides],
        "question": lambda: _asked(pair.prompt),
        "answer": lambda: sides,
    }


def _document(document: Document) -> Parts:
    return dict.fromkeys(("whole", "question", "answer"), lambda: [document.text])


_PARTS: dict[type[Record], Callable[[Any], Parts]] = {
    Prompt: _prompt,
    Chat: _chat,
    Sample: _sample,
    Pair: _pair,
    Document: _document,
}
