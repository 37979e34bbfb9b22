"""Where the answers stand in a text that a jinja template wrote.

An answer is what follows the prompt that is served for it, up to its terminator. It may carry loss only in a text that
begins with that very prompt and answer. Templates that take thoughts out of the history write an earlier answer
differently once the conversation goes on; such an answer is cut out as a conversation of its own that ends with it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from togi.core.errors import InputError
from togi.core.records import CALLS, TOOLS, Message
from togi.text.jinja import THOUGHTS

ADVICE = "name a template that writes tools, or take such conversations out of the data"
Render = Callable[[Sequence[Message], bool], str]


class Unrendered(InputError):
    """A turn holds what the template leaves out (tool calls, thoughts): a row that does not fit its template."""


class Segment(NamedTuple):
    """A stretch of rendered text. `answer`: assistant content with its terminator; `train`: it carries loss."""

    text: str
    answer: bool = False
    train: bool = False


class Served(NamedTuple):
    """An assistant turn where it is generated: its prompt, what follows up to the terminator, what the template writes
    behind it."""

    head: str
    answer: str
    rest: str

    @property
    def begun(self) -> str:
        return self.head + self.answer

    @property
    def whole(self) -> str:
        return self.begun + self.rest

    def within(self, text: str) -> bool:
        """Whether `text` begins with this very prompt and answer."""
        return text.startswith(self.begun)


@dataclass(frozen=True, slots=True)
class Ends:
    """How a template's generation prompt ends and its answers do: `prefill` is what the prompt has and a turn has not,
    `closing` stands behind the last answer and holds the terminator."""

    generation: str
    terminator: str
    prefill: str
    closing: str


def cut(render: Render, ends: Ends, messages: Sequence[Message], generation: bool) -> list[list[Segment]]:
    """The conversation as one text or several, cut at its answers. Every answer with `train` carries loss in exactly
    one of them, where it stands as it is served; the longest text comes first. A prompt (`generation`) is one text.

    Raises InputError where an answer that carries loss does not follow its prompt in the template's own writing, and
    Unrendered where the template leaves out a part of it.
    """
    check_tools(render, messages, generation)
    whole = render(messages, generation)
    wanted = [] if generation else [k for k, m in enumerate(messages) if m.role == "assistant" and m.train]
    turns = _turns(render, ends, messages, wanted, None if generation else whole)
    found: list[list[Segment]] = []
    while wanted or not found:
        text, stop = whole, len(messages)
        if wanted and not turns[wanted[-1]].within(whole):
            stop = wanted[-1] + 1
            text = turns[wanted[-1]].whole
        here = {k: turn for k, turn in turns.items() if k < stop and turn.within(text)}
        found.append(_segments(text, here, wanted))
        wanted = [k for k in wanted if k not in here]
    return found


def _turns(
    render: Render, ends: Ends, messages: Sequence[Message], wanted: Sequence[int], whole: str | None
) -> dict[int, Served]:
    """Each assistant turn where it is generated. One that carries no loss may be missing."""
    found = {}
    for k, message in enumerate(messages):
        if message.role != "assistant":
            continue
        try:
            last = k + 1 == len(messages)
            turn = whole if last and whole is not None else render(messages[: k + 1], False)
            found[k] = _served(ends, message, _head(render, ends, messages[:k], turn), turn)
        except InputError as error:
            if k in wanted:
                raise type(error)(f"message {k + 1} (assistant): {error}") from error
    for k in wanted:
        _check_thought(messages[k], found[k].answer, k)
    return found


def _head(render: Render, ends: Ends, before: Sequence[Message], turn: str) -> str:
    """The prompt of a turn; of a conversation's first, what stands in front of it."""
    if before:
        return render(before, True)
    opening = ends.generation.removesuffix(ends.prefill)
    head, found, _ = turn.partition(opening) if opening else ("", "", "")
    return head + found + ends.prefill


def _served(ends: Ends, message: Message, head: str, turn: str) -> Served:
    base = head.removesuffix(ends.prefill)
    if turn.startswith(head):
        text = turn[len(head) :]
    elif base != head and turn.startswith(base):
        text = _behind(ends.prefill, message, turn[len(base) :])
    else:
        raise InputError(
            "the chat template writes it differently from what its own generation prompt begins, so that it would be "
            "trained on text that is never served: name another template for the model"
        )
    stop = _stop(ends, message, text)
    return Served(head, text[:stop], text[stop:])


def _stop(ends: Ends, message: Message, text: str) -> int:
    """Where the terminator of the answer ends; a call of tools may have one of its own, which ends the text."""
    start = len(text) - len(ends.closing)
    if ends.terminator in ends.closing and text.endswith(ends.closing):
        return text.index(ends.terminator, start) + len(ends.terminator)
    if ends.terminator in text:
        return text.rindex(ends.terminator) + len(ends.terminator)
    if any(message.extra.get(key) for key in CALLS):
        return len(text.rstrip())
    raise InputError(f"the chat template does not close it with the terminator {ends.terminator!r}")


def _segments(text: str, turns: dict[int, Served], trained: Sequence[int]) -> list[Segment]:
    parts, done = [], 0
    for k, turn in turns.items():
        if done <= len(turn.head):
            parts += [Segment(text[done : len(turn.head)]), Segment(turn.answer, True, k in trained)]
            done = len(turn.begun)
    return [*parts, Segment(text[done:])]


# --- thoughts ---------------------------------------------------------------------------------------------------------


def _behind(prefill: str, message: Message, rest: str) -> str:
    """What is generated behind a prompt that ends with `prefill`, which the turn itself, `rest`, is written without.

    Behind the beginning of a thought stand the turn's thought, or an empty one, and its end.
    """
    tag = re.search(r"<(\w+)>\s*$|\[([A-Z]+)\]\s*$", prefill)
    if tag is None:
        return rest
    end = f"</{tag[1]}>" if tag[1] else f"[/{tag[2]}]"
    begun, closed, said = message.content.lstrip().rpartition(end)
    if closed:
        thought = begun.removeprefix(prefill).removeprefix(prefill.strip())
        gap = said[: len(said) - len(said.lstrip())]
    else:
        thought = ("" if prefill.endswith("\n") else "\n") + _own_thought(message).strip("\n") + "\n"
        gap = "\n\n"
    return thought + end + gap + rest.lstrip()


def _own_thought(message: Message) -> str:
    """The thought that a turn holds beside its content."""
    found = next((message.extra[key] for key in THOUGHTS if message.extra.get(key) is not None), "")
    return found if isinstance(found, str) else ""


def _check_thought(message: Message, answer: str, k: int) -> None:
    """Raises Unrendered for a thought that is to be learnt and that the template leaves out."""
    inside = message.content.rpartition("</think>")[0].rpartition("<think>")[2]
    for thought in (inside.strip(), _own_thought(message).strip()):
        if thought not in answer:
            raise Unrendered(
                f"message {k + 1} (assistant): the chat template leaves out the thought {thought[:40]!r}, which would "
                "not be learnt: take it out of the data, or name a template that writes thoughts"
            )


# --- tools ------------------------------------------------------------------------------------------------------------


def check_tools(render: Render, messages: Sequence[Message], generation: bool) -> None:
    """Raises Unrendered where taking tools or calls of tools away changes nothing."""
    first = messages[0]
    if first.extra.get(TOOLS) and _same(render, messages, (without(first, TOOLS), *messages[1:]), generation):
        raise Unrendered(f"the chat template does not render {TOOLS}: {ADVICE}")
    for k, message in enumerate(messages):
        for key in CALLS:
            bare = (*messages[:k], without(message, key))
            if message.extra.get(key) and _same(render, messages[: k + 1], bare, False):
                raise Unrendered(f"message {k + 1} ({message.role}): the chat template does not render {key}: {ADVICE}")


def without(message: Message, key: str) -> Message:
    """The turn without one of the keys that it carries along."""
    return replace(message, extra={k: v for k, v in message.extra.items() if k != key})


def _same(render: Render, messages: Sequence[Message], others: Sequence[Message], generation: bool) -> bool:
    try:
        return render(messages, generation) == render(others, generation)
    except InputError:  # what the template refuses is told where it is rendered
        return False
