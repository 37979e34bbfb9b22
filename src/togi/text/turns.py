"""Finds the answers in a text that a Jinja template wrote.

An answer is the text from the end of its served prompt to its terminator. It may carry loss only in a text that begins
with exactly that prompt and answer. Templates that remove thoughts from the history write an earlier answer differently
once the conversation goes on; such an answer becomes the end of a separate, shorter conversation.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from togi.core.errors import InputError
from togi.core.records import CALLS, TOOLS, Message
from togi.text.jinja import THOUGHTS

OTHER = "name another one in a file (template: {file: chat_template.jinja}; no built-in template writes them)"
ADVICE = f"{OTHER}, or remove such conversations from the data"
Render = Callable[[Sequence[Message], bool], str]


class Unrendered(InputError):
    """The template leaves out a part of a turn (tool calls, thoughts), so the row does not fit it."""


class Segment(NamedTuple):
    """A piece of rendered text. `answer`: assistant content with its terminator; `train`: it carries loss."""

    text: str
    answer: bool = False
    train: bool = False


class Served(NamedTuple):
    """An assistant turn as generated: its prompt, the answer with its terminator, and the text that the template writes
    after it."""

    head: str
    answer: str
    rest: str

    @property
    def begun(self) -> str:
        """The prompt and the answer."""
        return self.head + self.answer

    @property
    def whole(self) -> str:
        """The prompt, the answer and what follows it."""
        return self.begun + self.rest

    def within(self, text: str) -> bool:
        """Whether `text` begins with exactly this prompt and answer."""
        return text.startswith(self.begun)


@dataclass(frozen=True, slots=True)
class Ends:
    """The ends of a template's generation prompt and of its answers. `prefill` is the end of the prompt that a written
    turn lacks. `closing` is the text after the last answer; it contains the terminator, unless the template leaves the
    last answer open: then `missing` is what ends it."""

    generation: str
    terminator: str
    prefill: str
    closing: str
    missing: str = ""


def cut(render: Render, ends: Ends, messages: Sequence[Message], generation: bool) -> list[list[Segment]]:
    """The conversation as one or several texts, cut at its answers; the longest text comes first.

    Every answer with `train` carries loss in exactly one text, where it appears exactly as served. A prompt
    (`generation`) is one text. Raises InputError if an answer that carries loss does not follow its prompt in the
    template's output, and Unrendered if the template leaves out a part of it.
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
    """Each assistant turn as generated, by index. Turns without loss may be missing."""
    found = {}
    for k, message in enumerate(messages):
        if message.role != "assistant":
            continue
        try:
            last = k + 1 == len(messages)
            turn = whole if last and whole is not None else render(messages[: k + 1], False)
            own = ends
            if ends.missing and (end := _end_of_call(render, messages[: k + 1], turn)):
                own = replace(ends, missing=end)
            found[k] = _served(own, message, _head(render, ends, messages[:k], turn), turn)
        except InputError as error:
            if k in wanted:
                raise type(error)(f"message {k + 1} (assistant): {error}") from error
    for k in wanted:
        _check_thought(messages[k], found[k].answer, k)
    return found


def _head(render: Render, ends: Ends, before: Sequence[Message], turn: str) -> str:
    """The prompt of a turn; for the first turn of a conversation, the text in front of it."""
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
            "the chat template does not begin it with the template's own generation prompt, so training would use text "
            "that is never served: choose another template for the model"
        )
    if ends.missing:
        return Served(head, text[: len(text) - len(ends.closing)] + ends.missing, "")
    stop = _stop(ends, message, text)
    return Served(head, text[:stop], text[stop:])


def _end_of_call(render: Render, messages: Sequence[Message], turn: str) -> str:
    """The special token that the template writes after a tool call, before the tool's result; "" if there is none."""
    if not any(messages[-1].extra.get(key) for key in CALLS):
        return ""
    try:
        text = render((*messages, Message("tool", "0")), False)
    except InputError:  # a template without results of tools
        return ""
    begun = turn.rstrip()
    mark = re.match(r"\s*<[^<>\s]{1,60}>", text[len(begun) :]) if text.startswith(begun) else None
    return mark[0] if mark else ""


def _stop(ends: Ends, message: Message, text: str) -> int:
    """The position after the answer's terminator. A tool call may have another terminator, at the end of the text."""
    start = len(text) - len(ends.closing)
    if ends.terminator in ends.closing and text.endswith(ends.closing):
        return text.index(ends.terminator, start) + len(ends.terminator)
    if ends.terminator in text:
        return text.rindex(ends.terminator) + len(ends.terminator)
    if any(message.extra.get(key) for key in CALLS):
        return len(_without_next(ends, text.rstrip()))
    raise InputError(f"the chat template does not close it with the terminator {ends.terminator!r}")


def _without_next(ends: Ends, text: str) -> str:
    """A tool call without what the template writes after every answer and at the beginning of the next one."""
    opening = ends.generation.removesuffix(ends.prefill).strip()
    after = ends.closing.partition(ends.terminator)[2].strip()
    return text.removesuffix(opening).rstrip().removesuffix(after).rstrip()


def _segments(text: str, turns: dict[int, Served], trained: Sequence[int]) -> list[Segment]:
    parts, done = [], 0
    for k, turn in turns.items():
        if done <= len(turn.head):
            parts += [Segment(text[done : len(turn.head)]), Segment(turn.answer, True, k in trained)]
            done = len(turn.begun)
    return [*parts, Segment(text[done:])]


# --- thoughts ---------------------------------------------------------------------------------------------------------


def _behind(prefill: str, message: Message, rest: str) -> str:
    """The generated text after a prompt that ends with `prefill`, which the written turn, `rest`, lacks.

    After an opening thought tag come the turn's thought, or an empty one, and the closing tag.
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
    """The thought of a turn that is stored separately from its content."""
    found = next((message.extra[key] for key in THOUGHTS if message.extra.get(key) is not None), "")
    return found if isinstance(found, str) else ""


def _check_thought(message: Message, answer: str, k: int) -> None:
    """Raises Unrendered if the template leaves out a thought that should be trained on."""
    inside = message.content.rpartition("</think>")[0].rpartition("<think>")[2]
    for thought in (inside.strip(), _own_thought(message).strip()):
        if thought not in answer:
            raise Unrendered(
                f"message {k + 1} (assistant): the chat template leaves out the thought {thought[:40]!r}, so it would "
                f"not be trained on: remove it from the data, or {OTHER}"
            )


# --- tools ------------------------------------------------------------------------------------------------------------


def check_tools(render: Render, messages: Sequence[Message], generation: bool) -> None:
    """Raises Unrendered if the text is the same without the tools or the tool calls."""
    first = messages[0]
    if first.extra.get(TOOLS) and _same(render, messages, (without(first, TOOLS), *messages[1:]), generation):
        raise Unrendered(f"the chat template does not render {TOOLS}: {ADVICE}")
    for k, message in enumerate(messages):
        for key in CALLS:
            bare = (*messages[:k], without(message, key))
            if message.extra.get(key) and _same(render, messages[: k + 1], bare, False):
                raise Unrendered(f"message {k + 1} ({message.role}): the chat template does not render {key}: {ADVICE}")


def without(message: Message, key: str) -> Message:
    """The turn without one key of its `extra`."""
    return replace(message, extra={k: v for k, v in message.extra.items() if k != key})


def _same(render: Render, messages: Sequence[Message], others: Sequence[Message], generation: bool) -> bool:
    try:
        return render(messages, generation) == render(others, generation)
    except InputError:  # rendering reports what the template refuses
        return False
