"""Separates prompts from answers that repeat them, so that the prompt is stored once.

Two turns are equal if their roles, texts (without surrounding white space) and tool calls are.
"""

from collections.abc import Sequence
from typing import Any

from togi.core.records import CALLS, Message
from togi.data.values import BadRow

Turns = tuple[Message, ...]


def split_answer(messages: Turns) -> tuple[Turns, Turns]:
    """(prompt, answer): the assistant's last turns are the answer, everything before them the prompt."""
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    return messages[:end], messages[end:]


def after_prompt(prompt: Turns, side: Turns, column: str, named: str) -> tuple[Turns, Turns]:
    """(prompt, the turns of `side` after it). The side may be the answer alone, or repeat the prompt, a part of it, or
    more of it: the turns before the question, a system turn.

    Raises BadRow if the side holds a whole conversation that differs from the prompt (column `named`).
    """
    ours, asked = _led(prompt)
    theirs, body = _led(side)
    if ours and theirs and _keys(ours) != _keys(theirs):
        raise BadRow("prompts_disagree", f"columns {named!r} and {column!r} have different system turns: keep one")
    system = theirs or ours
    if not prompt:
        return (), side
    if asked and same(body[: len(asked)], asked):
        return system + body[: len(asked)], body[len(asked) :]
    if body and body[0].role == "assistant":
        return system + asked, body
    for end in range(len(body) - 1, len(asked) - 1, -1):
        if asked and same(body[end - len(asked) : end], asked):
            return system + body[:end], body[end:]
    for size in range(min(len(asked), len(body)), 0, -1):
        if same(asked[-size:], body[:size]):
            return system + asked[:-size] + body[:size], body[size:]
    if not asked or not body:  # the prompt is only a system turn
        return system + asked, body
    raise BadRow(
        "prompts_disagree",
        f"column {column!r} holds a conversation that does not contain the turn of column {named!r}: remove one of "
        f"them, or name the prompt's column with `columns`",
    )


def common_prompt(chosen: tuple[Turns, Turns], rejected: tuple[Turns, Turns]) -> tuple[Turns, Turns, Turns]:
    """(prompt, chosen, rejected) from two sides, each (prompt, rest). Turns that both rests begin with move to the
    prompt; each side keeps its last turn.

    Raises BadRow if the sides answer different conversations, or have no prompt.
    """
    (first, left), (second, right) = chosen, rejected
    if not same(first, second):
        raise BadRow(
            "prompts_disagree", "chosen and rejected answer different conversations: they must share one prompt"
        )
    shared = 0
    while shared < min(len(left), len(right)) - 1 and _key(left[shared]) == _key(right[shared]):
        shared += 1
    prompt, left, right = first + left[:shared], left[shared:], right[shared:]
    if not prompt:
        raise BadRow("no_prompt", "chosen and rejected share no first turn, and there is no column prompt: add one")
    if any(side and side[0].role in ("user", "system") for side in (left, right)):
        raise BadRow(
            "prompts_disagree",
            f"chosen and rejected have different user turns after {shared or len(prompt)} shared turns: they must "
            "answer one prompt",
        )
    return prompt, left, right


def ended(side: Turns, column: str) -> Turns:
    """Returns `side`. Raises BadRow unless it ends with the assistant's answer."""
    if not side or side[-1].role != "assistant":
        found = f"ends with a turn of {side[-1].role!r}" if side else "has no turn after the prompt"
        raise BadRow("no_answer", f"column {column!r} {found}; it must end with the assistant's answer")
    return side


def occurs(part: Sequence[Message], whole: Sequence[Message]) -> bool:
    """Whether every turn of `part`, without system turns, is in `whole`."""
    known = [_key(m) for m in whole]
    return all(_key(m) in known for m in part if m.role != "system")


def _led(messages: Turns) -> tuple[Turns, Turns]:
    """(leading system turns, the rest)."""
    start = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer")), len(messages))
    return messages[:start], messages[start:]


def _key(message: Message) -> tuple[str, str, Any]:
    calls = [message.extra.get(key) for key in CALLS]
    return message.role, message.content.strip(), calls


def _keys(messages: Turns) -> list[tuple[str, str, Any]]:
    return [_key(m) for m in messages]


def same(first: Turns, second: Turns) -> bool:
    """Whether two lists of turns are equal."""
    return _keys(first) == _keys(second)
