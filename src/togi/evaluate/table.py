"""The before/after table: one row per metric, each number with its interval."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from togi.core.errors import InputError
from togi.evaluate.statistics import Bootstrap, Floats, Interval, Jackknife, by_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of the base and of the policy on the same prompts, and their paired difference (policy - base).

    `base` and `difference` are None for a value without a counterpart, such as a scorer's accuracy.
    `higher_is_better` is None if neither direction is better, as for length.
    """

    metric: str
    policy: Interval
    base: Interval | None = None
    difference: Interval | None = None
    higher_is_better: bool | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row as JSON-like values."""
        return {
            "metric": self.metric,
            "base": self.base.to_json() if self.base else None,
            "policy": self.policy.to_json(),
            "difference": self.difference.to_json() if self.difference else None,
            "higher_is_better": self.higher_is_better,
            "note": self.note,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; InputError names a missing field."""
        try:
            return cls(
                metric=value["metric"],
                base=Interval.from_json(value["base"]) if value["base"] else None,
                policy=Interval.from_json(value["policy"]),
                difference=Interval.from_json(value["difference"]) if value["difference"] else None,
                higher_is_better=value["higher_is_better"],
                note=value["note"],
            )
        except KeyError as error:
            raise InputError(f"evaluation table: a row has no {error}; found {sorted(value)}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A row's metric: its name, its better direction, and a note for readers. `share`: a share of answers, from 0 to 1.
    `least` and `most`: the values range between these (None: without a bound; a metric with `most` alone begins at 0),
    and intervals are clipped to that range."""

    name: str
    higher_is_better: bool | None = None
    note: str = ""
    share: bool = False
    least: float | None = None
    most: float | None = None

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value that are possible."""
        none = -math.inf if self.most is None else 0.0
        return none if self.least is None else self.least, math.inf if self.most is None else self.most

    def within(self, low: float, high: float) -> tuple[float, float]:
        """The bounds of a mean, clipped to the range of the values."""
        least, most = self.range
        return least if low < least else low, most if high > most else high

    def within_difference(self, low: float, high: float) -> tuple[float, float]:
        """The bounds of a difference of two means, clipped to what is possible."""
        least, most = self.range
        span = most - least
        return -span if low < -span else low, span if high > span else high


def compare(
    metric: Metric,
    base_N: Sequence[float] | Floats,
    policy_N: Sequence[float] | Floats,
    bootstrap: Bootstrap,
    prompts: Sequence[Hashable] = (),
) -> Row:
    """A row from the values of each model's answers, in the same order. `prompts` names the prompt of each answer, the
    same number for each; without it, every answer has its own prompt."""
    names = prompts or range(len(base_N))
    base_P, policy_P = by_prompt(base_N, names), by_prompt(policy_N, names)
    interval = bootstrap.share if metric.share else bootstrap.mean
    if metric.share:
        difference = bootstrap.share_difference(base_N, policy_N, names)
    else:
        difference = bootstrap.difference(base_P, policy_P)
    return Row(
        metric=metric.name,
        base=_clipped(interval(base_P), metric.within),
        policy=_clipped(interval(policy_P), metric.within),
        difference=_clipped(difference, metric.within_difference),
        higher_is_better=metric.higher_is_better,
        note=metric.note,
    )


def _clipped(found: Interval, within: Callable[[float, float], tuple[float, float]]) -> Interval:
    low, high = within(found.low, found.high)
    return replace(found, low=low, high=high)


def compare_jackknife(metric: Metric, base: Jackknife, policy: Jackknife, bootstrap: Bootstrap) -> Row:
    """A row from a statistic that is not a mean over prompts. Its pseudo-values may lie outside the metric's range."""
    return compare(metric, base.pseudo_P, policy.pseudo_P, bootstrap)


def single(metric: Metric, interval: Interval) -> Row:
    """A row for a value without a counterpart."""
    return Row(metric=metric.name, policy=interval, higher_is_better=metric.higher_is_better, note=metric.note)


def rows_to_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The table as JSON-like values, for a stage's summary."""
    return [row.to_json() for row in rows]
