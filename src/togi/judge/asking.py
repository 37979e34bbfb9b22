"""Asks a judge: once, and again with the next index where what it said cannot be read.

A greedy judge would only say the same again, so it is asked again at temperature 0.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from togi.core.protocols import Generator
from togi.core.records import Completion, Prompt, SamplingParams

Value = TypeVar("Value")
WARM = 0.5


@dataclass(frozen=True, slots=True)
class Attempt(Generic[Value]):
    """One text of a judge and what was read from it: None where nothing was. `failed`: there is no text; `refused`:
    because the server will not answer this question."""

    text: str
    value: Value | None
    failed: bool = False
    refused: bool = False


@dataclass(slots=True)
class Answered(Generic[Value]):
    """All that a judge said to one question."""

    attempts: list[Attempt[Value]] = field(default_factory=list)

    @property
    def values(self) -> list[Value]:
        """What was read."""
        return [attempt.value for attempt in self.attempts if attempt.value is not None]

    @property
    def failed(self) -> bool:
        """Whether a request failed: it is not asked again here, because the client has done so."""
        return any(attempt.failed for attempt in self.attempts)

    @property
    def refused(self) -> bool:
        """Whether the server will not answer this question."""
        return any(attempt.refused for attempt in self.attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker(Generic[Value]):
    """A judge that is asked for text. `read` gives None for what cannot be read; `retries` bounds how often a question
    is asked again. `terminator` closes what the judge says, where the generator leaves it there."""

    generator: Generator
    read: Callable[[str], Value | None]
    params: SamplingParams
    retries: int = 1
    terminator: str = ""

    def ask(self, questions: Sequence[Prompt], rounds: int = 1) -> list[Answered[Value]]:
        """What the judge says to each question: `rounds` readable answers, unless retries run out or a request
        fails."""
        answered: list[Answered[Value]] = [Answered() for _ in questions]
        self._ask(questions, answered, list(range(len(questions))), (0, rounds), self.params)
        warm = self.params.temperature or WARM
        for _ in range(self.retries):
            wanted: dict[tuple[int, int], list[int]] = {}
            for place, each in enumerate(answered):
                missing = 0 if each.failed else rounds - len(each.values)
                if missing:
                    wanted.setdefault((len(each.attempts), missing), []).append(place)
            for window, places in wanted.items():
                self._ask(questions, answered, places, window, replace(self.params, temperature=warm))
        return answered

    def _ask(
        self,
        questions: Sequence[Prompt],
        answered: list[Answered[Value]],
        places: Sequence[int],
        window: tuple[int, int],
        params: SamplingParams,
    ) -> None:
        """Adds answers `first` to `first + count` of each question at `places`."""
        first, count = window
        asked = [questions[place] for place in places]
        found = self.generator.generate(asked, replace(params, n=first + count)) if asked else []
        for place, completions in zip(places, found, strict=True):
            answered[place].attempts += [self._attempt(each) for each in completions[first:]]

    def _attempt(self, completion: Completion) -> Attempt[Value]:
        if completion.stop == "error":
            return Attempt("", None, failed=True, refused=completion.refused)
        text = completion.text.partition(self.terminator)[0] if self.terminator else completion.text
        return Attempt(text.strip(), self.read(text))
