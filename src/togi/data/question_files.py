"""Multi-turn questions and their reference answers, in the layout of FastChat's MT-Bench.

A question has `question_id`, `category`, `turns`; a turn is text, or an object with `content` as in arena-hard's files.
As a prompt, a question is its first turn. If it has more turns, the column stays in `extra`, and benchmarks read it
there. A reference answer has `question_id` and `choices`, whose first item holds an answer to each turn; it is read as
a document.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from togi.core.errors import InputError
from togi.core.records import Message, Prompt, Record
from togi.data.turns import text_of
from togi.data.values import BadRow, kind_of

NAME, TURNS, CHOICES = "question_id", "turns", "choices"


def user_turns(value: Any) -> list[str]:
    """The user's turns as texts. Raises BadRow for anything but a list of texts."""
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind_of(value)
        raise BadRow("wrong_type", f"column {TURNS!r}: found {found}, wanted a list of texts, one for each turn")
    bare = [each.get("content") if isinstance(each, Mapping) else each for each in value]
    return [text_of(each, f"{TURNS}[{place}]") for place, each in enumerate(bare)]


def first_turn(value: Any, take: Callable[[str], Any]) -> tuple[Message, ...]:
    """A question as a prompt: its first turn. Calls `take` to mark the column as read if there are no more turns."""
    first, *later = user_turns(value)
    if not later:
        take(TURNS)
    return (Message("user", first),)


def answer_turns(value: Any) -> list[str]:
    """The answers to the turns of one question; an answer may be empty. Raises BadRow for choices without answers."""
    first = value[0] if isinstance(value, list) and value else None
    found = first.get(TURNS) if isinstance(first, Mapping) else None
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise BadRow("wrong_type", f"column {CHOICES!r}: wanted a list whose first object has {TURNS}, a list of texts")
    return found


def turns_of(prompt: Prompt) -> tuple[str, ...]:
    """All user turns of a question: the prompt's last message, and the turns that follow the model's own answers.
    Raises InputError if the column `turns` of its row is not a list of texts."""
    if TURNS not in prompt.extra:
        return (prompt.text,)
    try:
        return tuple(user_turns(prompt.extra[TURNS]))
    except BadRow as bad:
        raise InputError(f"question {question_name(prompt)}: {bad}") from None


def question_name(record: Record) -> str:
    """The name of a question in its file, by which its reference answer is found: `question_id`, else the record's
    id."""
    return str(record.extra.get(NAME, record.id))


def reference_answers(documents: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """The reference answers to each turn, by question name. Raises InputError for a document that is not a reference
    answer, and for a question with two of them."""
    found: dict[str, tuple[str, ...]] = {}
    for document in documents:
        name = question_name(document)
        if NAME not in document.extra or CHOICES not in document.extra:
            raise InputError(
                f"references: document {document.id} is not a reference answer: a row needs {NAME} and {CHOICES}, as "
                "in FastChat's reference_answer files"
            )
        if name in found:
            raise InputError(f"references: question {name} has two reference answers; keep one row for each question")
        found[name] = tuple(answer_turns(document.extra[CHOICES]))
    return found
