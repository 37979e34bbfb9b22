"""Follow-ups: further turns of a prompt, which are asked after a model has answered it once."""

from collections.abc import Iterable
from dataclasses import replace

from togi.core.errors import InputError, RecordError
from togi.core.records import Message, Prompt, Record
from togi.data.turns import said
from togi.data.values import BadRow, blank

Turns = tuple[Message, ...]


def follow_up(record: Record, column: str | None) -> Turns:
    """The turns in a column of a record: a list of turns, or text, which is one user turn. Empty if the record has none
    there. Raises RecordError unless they begin and end with a user turn."""
    value = None if column is None else record.extra.get(column)
    if column is None or blank(value) or value == []:
        return ()
    try:
        turns = said(value, column, "user")
    except BadRow as bad:
        raise RecordError(f"prompt {record.id}: {bad}", record.id) from None
    if (turns[0].role, turns[-1].role) != ("user", "user"):
        roles = ", ".join(turn.role for turn in turns)
        raise RecordError(
            f"prompt {record.id}: column {column!r} has turns of {roles}, but a follow-up begins and ends with a user "
            "turn: it follows an answer, and is answered",
            record.id,
        )
    return turns


def check_follow_ups(prompts: Iterable[Prompt], column: str, stage: str) -> None:
    """Raises InputError if no prompt has the column, and RecordError for a follow-up that is wrong."""
    columns: dict[str, None] = {}
    for prompt in prompts:
        columns |= dict.fromkeys(prompt.extra)
        try:
            follow_up(prompt, column)
        except RecordError as error:
            raise RecordError(f"stage {stage}: {error}", error.record) from None
    if column not in columns:
        others = ", ".join(columns) or "no other columns"
        raise InputError(f"stage {stage}: follow_up: no prompt has a column {column!r}; the prompts have {others}")


def followed(prompt: Prompt, answer: str, turns: Turns) -> Prompt:
    """The prompt, continued with an answer to it, which nobody has judged and which carries no loss, and the
    follow-up."""
    return replace(prompt, messages=(*prompt.messages, Message("assistant", answer, train=False), *turns))
