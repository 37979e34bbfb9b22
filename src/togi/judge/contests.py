"""Comparisons of two answers: which ones are made, and how several verdicts are combined.

A preference is 1 if the first answer of a comparison is better, 0 if the second is, 0.5 for a tie; or the probability
that the first is better.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from togi.core.records import Prompt, Sample
from togi.judge.reading import Choice


@dataclass(frozen=True, slots=True)
class Contest:
    """Two answers to one prompt. `swapped` states, for each time that the judge is asked, whether the second answer is
    shown first."""

    prompt: Prompt
    first: Sample
    second: Sample
    swapped: tuple[bool, ...] = (False, True)

    def shown(self, swapped: bool) -> tuple[Sample, Sample]:
        """The answers in the order in which the judge reads them."""
        return (self.second, self.first) if swapped else (self.first, self.second)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The combined result of the verdicts on a contest: a winner, or the reason for none. `preference` is their
    mean."""

    winner: Literal["first", "second"] | None
    reason: str = ""
    preference: float | None = None


def by_prompt(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Yields the answers to each prompt, in order of the first occurrence of each prompt. Reads each sample twice;
    memory holds about 200 bytes per prompt and 16 per answer."""
    numbers: dict[str, int] = {}
    prompt_N = np.fromiter((numbers.setdefault(each.prompt.id, len(numbers)) for each in samples), np.int64)
    order_N = np.argsort(prompt_N, kind="stable")
    for _, group in groupby(order_N, key=lambda row: prompt_N[row]):
        yield [samples[row] for row in group]


def rivals(answers: Sequence[Sample], compare: Literal["all", "first"]) -> list[tuple[Sample, Sample]]:
    """The pairs of answers to one prompt to compare: every two, or each with the first."""
    firsts = answers if compare == "all" else answers[:1]
    return [(one, other) for place, one in enumerate(firsts) for other in answers[place + 1 :]]


def preference(choice: Choice, swapped: bool) -> float:
    """The preference for a contest's first answer that a verdict on A and B expresses."""
    if choice == "tie":
        return 0.5
    return 1.0 if (choice == "A") is not swapped else 0.0


@dataclass(frozen=True, slots=True)
class Weighed:
    """The result of a judge's log-probabilities of A and B in both orders. `preference` is the preference for the first
    answer, by the mean of its probabilities in both positions: 1, 0, or 0.5 if they are equal. `agree` says whether
    each order alone names the same winner; None if one names none."""

    preference: float
    agree: bool | None


def weigh(margin: float, swapped: float) -> Weighed:
    """`margin` is log p(A) - log p(B) with the first answer as A, `swapped` with the second as A. The mean probability
    (p1(A) + p2(B)) / 2 is above one half if the first margin is the larger one."""
    agree = (margin > 0) == (swapped < 0) if margin and swapped else None
    return Weighed(0.5 if margin == swapped else float(margin > swapped), agree)


def decide(preferences: Sequence[float | None], keep: Literal["consistent", "averaged"]) -> Outcome:
    """Combines the preferences of all orders to one outcome; None is an unreadable verdict.

    `consistent`: every order prefers the same answer. `averaged`: the mean decides. If a verdict is missing there is no
    winner, since a single order carries the judge's position bias.
    """
    known = [value for value in preferences if value is not None]
    if len(known) < len(preferences) or not known:
        return Outcome(None, "unreadable")
    mean = sum(known) / len(known)
    if keep == "consistent" and len(dict.fromkeys(_side(value) for value in known)) > 1:
        return Outcome(None, "inconsistent", mean)
    side = _side(mean)
    if side == 0:
        return Outcome(None, "tie", mean)
    return Outcome("first" if side > 0 else "second", "", mean)


def _side(value: float) -> int:
    return (value > 0.5) - (value < 0.5)
