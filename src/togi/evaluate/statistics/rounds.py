"""Means over rounds. The same questions are answered and judged several times. Each round has its own mean, and the
figure is the unweighted mean of these. Rounds add no new questions, so intervals are clustered by question."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from togi.core.errors import InputError
from togi.evaluate.statistics.interval import Floats, Interval
from togi.evaluate.statistics.shares import wilson


def round_means(values_N: ArrayLike, rounds_N: Sequence[Hashable]) -> list[float]:
    """The mean of each round, in the order in which rounds first appear."""
    values_N, own_N, count = _checked(values_N, rounds_N)
    if not count:
        return []
    return (np.bincount(own_N, weights=values_N) / np.bincount(own_N)).tolist()


def mean_of_rounds(
    values_N: ArrayLike, rounds_N: Sequence[Hashable], questions_N: Sequence[Hashable], level: float = 0.95
) -> Interval | None:
    """The unweighted mean of the rounds' means, with Student's t interval by question; `n` is the number of questions.

    The influence of a question on the means of all rounds is summed first (linearised as in `cluster_mean`, with which
    this agrees for one round). None for fewer than two questions, or if nothing varies.
    """
    values_N, round_N, rounds = _checked(values_N, rounds_N)
    _, question_N, count = _checked(values_N, questions_N)
    if count < 2:
        return None
    size_R = np.bincount(round_N)
    mean_R = np.bincount(round_N, weights=values_N) / size_R
    influence_N = (values_N - mean_R[round_N]) / (rounds * size_R[round_N])
    variance = count / (count - 1) * float((np.bincount(question_N, weights=influence_N) ** 2).sum())
    mean = float(mean_R.mean())
    if variance <= (1e-12 * max(1.0, abs(mean))) ** 2:  # below rounding error nothing varies
        return None
    reach = float(stdtrit(count - 1, (1 + level) / 2)) * variance**0.5
    return Interval(mean=mean, low=mean - reach, high=mean + reach, level=level, n=count)


def share_of_rounds(
    hits_N: ArrayLike, rounds_N: Sequence[Hashable], questions_N: Sequence[Hashable], level: float = 0.95
) -> Interval:
    """`mean_of_rounds` of values 0 or 1, with Wilson's interval for the effective number of independent rows (Kish
    1965, Survey Sampling, chapter 8). That number of rows has the same variance; it is at least the number of questions
    and at most that of values. InputError without values.
    """
    means = round_means(hits_N, rounds_N)
    questions = len(dict.fromkeys(questions_N))
    found = mean_of_rounds(hits_N, rounds_N, questions_N, level)
    share, rows = (float(np.mean(means)) if means else 0.0), float(questions)
    if found is not None:
        deviation = (found.high - found.mean) / float(stdtrit(found.n - 1, (1 + level) / 2))
        rows = min(max(share * (1 - share) / deviation**2, rows), float(len(questions_N)))
    return replace(wilson(share * rows, rows, level), mean=share, n=questions)


def _checked(values: ArrayLike, names: Sequence[Hashable]) -> tuple[Floats, np.ndarray, int]:
    """The values, the index of each one's name, and the number of names."""
    values_N = np.asarray(values, dtype=np.float64)
    places: dict[Hashable, int] = {}
    own_N = np.array([places.setdefault(name, len(places)) for name in names], dtype=np.intp)
    if len(own_N) != len(values_N):
        raise InputError(f"rounds: {len(values_N)} values but {len(own_N)} names")
    return values_N, own_N, len(places)
