"""Two models on the same questions: the paired difference with its interval, its effect size, and the noise floor."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from togi.evaluate.benchmarks.table import Cell, difference_cell, mean_cell
from togi.evaluate.statistics import Bootstrap, McNemar, effect_size, mcnemar
from togi.evaluate.table import Metric

Answers = Mapping[str, tuple[str, float | None]]
"""The numbers of single questions: question name to (owner, number). Questions with equal owners are not
independent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of two models, over the questions for which both have a number. `effect` is Hedges' g of the paired
    differences; `test` is McNemar's test for a right-or-wrong metric; `noise` is the difference that asking the same
    questions again can cause, None if nothing was asked several times. `alone` counts questions that only one model
    has."""

    metric: Metric
    base: Cell
    other: Cell
    difference: Cell
    effect: float | None
    test: McNemar | None
    noise: float | None
    alone: int

    @property
    def verdict(self) -> str:
        """The verdict on the second model that the interval supports: better, worse, changed or unclear."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return "unclear"
        if self.metric.higher_is_better is None:
            return "changed"
        return "better" if (low > 0) is self.metric.higher_is_better else "worse"


def compare(metric: Metric, base: Answers, other: Answers, bootstrap: Bootstrap) -> Difference:
    """The second model minus the first, question by question. Without common questions, all numbers are undefined."""
    known = [name for name in base if name in other and base[name][1] is not None and other[name][1] is not None]
    owners = [base[name][0] for name in known]
    one, two = ([float(own[name][1] or 0.0) for name in known] for own in (base, other))
    right = metric.share and all(value in (0, 0.5, 1) for value in (*one, *two)) and bool(known)
    return Difference(
        metric=metric,
        base=mean_cell(metric, one, bootstrap, owners),
        other=mean_cell(metric, two, bootstrap, owners),
        difference=difference_cell(metric, one, two, bootstrap, owners),
        effect=effect_size(*(_by_owner(values, owners) for values in (one, two))) if known else None,
        test=mcnemar([value == 1 for value in one], [value == 1 for value in two]) if right else None,
        noise=noise_floor((one, two), known, owners, bootstrap.level),
        alone=len({**base, **other}) - len(known),
    )


def noise_floor(
    values: Sequence[Sequence[float]], names: Sequence[str], owners: Sequence[str], level: float
) -> float | None:
    """The difference of two means that can arise by chance when the same questions are asked again: the half width of
    its interval at `level`. It comes from the spread among repeats of a question, whose names end with .0, .1, or with
    /1, /2. None without repeats."""
    groups: dict[str, list[int]] = {}
    for place, (name, owner) in enumerate(zip(names, owners, strict=True)):
        if re.match(rf"{re.escape(owner)}[./]", name):
            groups.setdefault(re.split(r"[./][^./]*$", name)[0], []).append(place)
    spread = [_variance_of_mean([own[place] for place in group]) for own in values for group in groups.values()]
    known = [each for each in spread if each is not None]
    if not known:
        return None
    error = math.sqrt(2 * float(np.mean(known)) / len(groups))
    return NormalDist().inv_cdf((1 + level) / 2) * error


def _variance_of_mean(numbers: Sequence[float]) -> float | None:
    return float(np.var(numbers, ddof=1)) / len(numbers) if len(numbers) > 1 else None


def _by_owner(values: Sequence[float], owners: Sequence[str]) -> list[float]:
    groups: dict[str, list[float]] = {}
    for value, owner in zip(values, owners, strict=True):
        groups.setdefault(owner, []).append(value)
    return [sum(group) / len(group) for group in groups.values()]


def unlike(one: Mapping[str, Any], other: Mapping[str, Any], before: str = "") -> list[str]:
    """The parts of two manifests that differ, each as "key: first and second"."""
    found = []
    for key in dict.fromkeys((*one, *other)):
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += unlike(mine, theirs, f"{before}{key}.")
        elif mine != theirs:
            found.append(f"{before}{key}: {_word(mine)} and {_word(theirs)}")
    return found


def _word(value: Any) -> str:
    return "nothing" if value is None else str(value)
