"""Answers and verdicts in the format of a benchmark's journal, from which a restart reads them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from togi.core.errors import GraderError
from togi.core.records import Completion, Prompt
from togi.judge.asking import Answered, Attempt
from togi.rewards.base import Attempt as Answer
from togi.rewards.terminator import TerminatorCheck
from togi.stages.endpoints import ChatGenerator

Value = TypeVar("Value")
TOO_LONG, REFUSED = "too_long", "refused"


@dataclass(frozen=True, slots=True)
class Said:
    """An answer of a subject: the text without terminator, why it stopped, its number of tokens (0 if a server does not
    report it), and whether it ended properly. `stop` is `error` if the request failed, REFUSED if the server will not
    answer this prompt, TOO_LONG if the prompt leaves no room for an answer."""

    text: str
    stop: str
    tokens: int
    closed: bool

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return self.stop in ("error", REFUSED, TOO_LONG)


def answer_rows(speaker: ChatGenerator, prompt: Prompt, group: Sequence[Completion]) -> list[dict[str, Any]]:
    """The answers to a prompt, in the journal's format."""
    check = TerminatorCheck(terminator=speaker.terminator, turn_starts=speaker.turn_starts)
    rows = []
    for one in group:
        text = one.text.partition(speaker.terminator)[0].strip()
        closed = one.stop != "error" and check(Answer(prompt=prompt, completion=one, answer=text)) is None
        stop = REFUSED if one.refused else one.stop
        rows.append({"text": text, "stop": stop, "tokens": len(one.token_ids), "closed": closed})
    return rows


def number_rows(numbers: Sequence[float | GraderError]) -> list[Any]:
    """Numbers and errors, in the journal's format."""
    return [{"error": str(one)} if isinstance(one, GraderError) else one for one in numbers]


def numbers_of(units: Sequence[Sequence[Any]]) -> list[float | GraderError]:
    """The inverse of `number_rows`."""
    return [GraderError(one["error"]) if isinstance(one, dict) else one for unit in units for one in unit]


def reply_rows(answered: Answered[Any]) -> list[tuple[str, bool]]:
    """All replies of a judge to a question, in the journal's format."""
    return [(REFUSED if attempt.refused else attempt.text, attempt.failed) for attempt in answered.attempts]


def replies_of(attempts: Sequence[Sequence[Any]], read: Callable[[str], Value | None]) -> Answered[Value]:
    """The inverse of `reply_rows`."""
    return Answered(
        [Attempt(text, None if failed else read(text), failed, failed and text == REFUSED) for text, failed in attempts]
    )


def stopped(answered: Answered[Any]) -> str:
    """How a question to a judge ended: REFUSED, TOO_LONG, `error`, or empty if there is a text."""
    if answered.values or not answered.failed:
        return ""
    if answered.refused:
        return REFUSED
    return TOO_LONG if answered.attempts[0].text == TOO_LONG else "error"
