"""Asks a judge, and asks again with the next index if the reply cannot be read.

A greedy judge would only repeat itself, so it is asked again at temperature 0.5.
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
    """One reply of a judge and the value read from it, None if unreadable. `failed`: there is no text. `refused`: the
    server will not answer this question."""

    text: str
    value: Value | None
    failed: bool = False
    refused: bool = False


@dataclass(slots=True)
class Answered(Generic[Value]):
    """All replies of a judge to one question."""

    attempts: list[Attempt[Value]] = field(default_factory=list)

    @property
    def values(self) -> list[Value]:
        """The values that could be read."""
        return [attempt.value for attempt in self.attempts if attempt.value is not None]

    @property
    def failed(self) -> bool:
        """Whether a request failed. It is not repeated here, because the client has already retried it."""
        return any(attempt.failed for attempt in self.attempts)

    @property
    def refused(self) -> bool:
        """Whether the server will not answer this question."""
        return any(attempt.refused for attempt in self.attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker(Generic[Value]):
    """A judge that is asked for text. `read` returns None for an unreadable reply; `retries` is the maximum number of
    repeats per question. `terminator` ends a reply, if the generator does not remove it."""

    generator: Generator
    read: Callable[[str], Value | None]
    params: SamplingParams
    retries: int = 1
    terminator: str = ""

    def ask(self, questions: Sequence[Prompt], rounds: int = 1) -> list[Answered[Value]]:
        """Returns the judge's replies to each question: `rounds` readable ones, unless retries run out or a request
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
