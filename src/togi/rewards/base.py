"""The interfaces of gates and terms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from togi.core.errors import GraderError
from togi.core.records import Completion, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One answer to be graded. `answer` is its text before the first terminator."""

    prompt: Prompt
    completion: Completion
    answer: str


# A check returns None for an answer that passes, else the reason: a short constant, which becomes a counter.
Check = Callable[[Attempt], str | None]

# A grade is a finite number, the error that kept the grader from giving one, or None: the grader does not apply to this
# answer, and adds nothing.
Grade = float | GraderError | None
Grader = Callable[[Sequence[Attempt]], Sequence[Grade]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A cheap check. Passing adds `bonus`; failing ends the grading at `fail_value`."""

    name: str
    check: Check
    bonus: float = 0.0
    fail_value: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A score of the answers that passed every gate; it adds weight x shaped(score)."""

    name: str
    grader: Grader
    weight: float = 1.0
    cap: float | None = None  # upper limit of scores
    negative_scale: float = 1.0  # factor of negative scores

    def contribution(self, score: float) -> float:
        """The contribution of `score` to the reward."""
        return self.weight * self.shaped(score)

    def shaped(self, score: float) -> float:
        """The score, capped above and scaled below zero."""
        if score < 0:
            return self.negative_scale * score
        return score if self.cap is None else min(score, self.cap)
