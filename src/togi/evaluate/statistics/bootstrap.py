"""Confidence intervals by resampling prompts.

Names: `_P` one value per prompt, `_R` one per resample. All intervals are two-sided. Values of several answers to one
prompt are first averaged (`by_prompt`), because answers to one prompt are not independent.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from togi.core.errors import InputError
from togi.evaluate.statistics.interval import Floats, Interval, unseen_share
from togi.evaluate.statistics.shares import adjusted_wald, right_or_wrong

CHUNK_VALUES = 1 << 20  # resampled values held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Jackknife:
    """A statistic of all prompts (`value`) and the same statistic with each prompt left out in turn.

    Diversity is not a mean over prompts: drawing a prompt twice makes a sample less diverse. So its intervals come from
    the jackknife's pseudo-values, one per prompt (Tukey 1958; Efron and Tibshirani 1993, chapter 11), which are
    resampled like any value per prompt. For a mean, the pseudo-values are the values themselves.
    """

    value: float
    without_P: Floats

    @property
    def pseudo_P(self) -> Floats:
        """One value per prompt, shifted so that their mean is `value`."""
        count = len(self.without_P)
        influence_P = (count - 1) * (self.without_P.mean() - self.without_P)
        return self.value + influence_P


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Bootstrap settings. `bca` corrects for bias and skew (Efron 1987); `percentile` uses plain quantiles."""

    seed: int
    level: float = 0.95
    resamples: int = 10_000
    method: Literal["bca", "percentile"] = "bca"

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise InputError(f"bootstrap: level is {self.level}; it must be between 0 and 1, such as 0.95")
        if self.resamples < 100:
            raise InputError(f"bootstrap: resamples is {self.resamples}; at least 100 are needed for an interval")

    def mean(self, values_P: ArrayLike) -> Interval:
        """The mean over prompts with its interval; InputError for fewer than two prompts or non-finite values."""
        return self._interval(_checked(values_P))

    def share(self, values_P: ArrayLike) -> Interval:
        """`mean` of values from 0 to 1. If all are equal, resampling would give an interval of width 0. The bounds then
        assume the largest share of unseen prompts that the exact bound for n of n independent ones allows (Clopper and
        Pearson 1934, Biometrika 26:404), all of them 0, or all 1. One prompt suffices: a value between 0 and 1 of a
        single prompt bounds nothing."""
        found = self._interval(_checked(values_P, least=1))
        if found.n == 1 and 0.0 < found.mean < 1.0:
            return replace(found, low=0.0, high=1.0)
        if found.low != found.high:
            return found
        unseen = unseen_share(found.n, self.level)
        return replace(found, low=found.mean * (1 - unseen), high=found.mean + unseen * (1 - found.mean))

    def difference(self, base_P: ArrayLike, policy_P: ArrayLike) -> Interval:
        """Mean of policy minus base, paired by prompt: both sides of a prompt are drawn together."""
        base_P, policy_P = _paired(base_P, policy_P)
        return self._interval(policy_P - base_P)

    def share_difference(self, base_N: ArrayLike, policy_N: ArrayLike, owners_N: Sequence[Hashable] = ()) -> Interval:
        """Mean of policy minus base, of values from 0 to 1 of the same rows; rows of one owner are not independent.

        Right and wrong answers (0, 1, or 0.5 for a tie) have the adjusted Wald interval (`adjusted_wald`): resampling
        is too narrow if few of them differ. Other values are resampled by owner. If their difference is the same for
        all owners, the bounds assume the largest share of unseen prompts that the exact bound allows (as in `share`),
        all with a difference of -1, or all of 1.
        """
        base_N, policy_N = _paired(base_N, policy_N)
        if right_or_wrong(base_N, policy_N):
            return adjusted_wald(policy_N - base_N, owners_N, self.level)
        difference_N = policy_N - base_N
        found = self._interval(by_cluster(difference_N, owners_N) if len(owners_N) else difference_N)
        if found.low != found.high:
            return found
        unseen = unseen_share(found.n, self.level)
        return replace(found, low=found.mean - unseen * (found.mean + 1), high=found.mean + unseen * (1 - found.mean))

    def _interval(self, values_P: Floats) -> Interval:
        mean = float(values_P.mean())
        deviation_P = values_P - mean
        low = high = mean
        # A spread below rounding error is not resampled.
        if np.abs(deviation_P).max() > 1e-12 * max(1.0, abs(mean)):
            shift_R = self._resampled_means(deviation_P)
            ends = np.quantile(shift_R, self._tails(deviation_P, shift_R))
            near = 1e-12 * float(np.abs(values_P).max())  # a bound this close to zero is zero, with a rounding error
            low, high = (0.0 if abs(mean + shift) < near else mean + shift for shift in ends.tolist())
        return Interval(mean=mean, low=low, high=high, level=self.level, n=len(values_P))

    def _resampled_means(self, values_P: Floats) -> Floats:
        generator = np.random.default_rng(self.seed)
        count = len(values_P)
        rows = max(1, CHUNK_VALUES // count)
        chunks = []
        for start in range(0, self.resamples, rows):
            drawn = generator.integers(count, size=(min(rows, self.resamples - start), count))
            chunks.append(values_P[drawn].mean(axis=1))
        return np.concatenate(chunks)

    def _tails(self, deviation_P: Floats, shift_R: Floats) -> tuple[float, float]:
        """The two quantiles to read; `deviation_P` and `shift_R` are relative to the mean."""
        alpha = (1 - self.level) / 2
        if self.method == "percentile":
            return alpha, 1 - alpha
        # The acceleration of a mean: its jackknife values are the deviations, scaled.
        return bca_tails(shift_R, deviation_P, self.level)


def bca_tails(shift_R: Floats, influence_P: Floats, level: float) -> tuple[float, float]:
    """The two quantiles of resampled values to read, corrected for bias and skew (Efron 1987, JASA 82:171).

    `shift_R` are the resampled values minus the value itself, `influence_P` the influence of each prompt on it.
    """
    normal = NormalDist()
    below = (np.mean(shift_R < 0) + np.mean(shift_R <= 0)) / 2
    edge = 0.5 / len(shift_R)
    bias = normal.inv_cdf(min(max(float(below), edge), 1 - edge))
    skew = _skew(influence_P)

    def corrected(tail: float) -> float:
        reach = bias + normal.inv_cdf(tail)
        return normal.cdf(bias + reach / max(1 - skew * reach, 1e-12))

    return corrected((1 - level) / 2), corrected((1 + level) / 2)


def _skew(influence_P: Floats) -> float:
    """The acceleration; 0 if no prompt has any influence."""
    largest = float(np.abs(influence_P).max(initial=0.0))
    if largest == 0:
        return 0.0
    scaled_P = influence_P / largest
    return float((scaled_P**3).sum() / (6 * (scaled_P**2).sum() ** 1.5))


def by_prompt(values: Sequence[float] | Floats, prompt_ids: Sequence[Hashable]) -> Floats:
    """The mean value of each prompt, in the order in which prompts first appear."""
    if len(values) != len(prompt_ids):
        raise InputError(f"by_prompt: {len(values)} values but {len(prompt_ids)} prompt ids")
    groups: dict[Hashable, list[float]] = {}
    for value, prompt_id in zip(values, prompt_ids, strict=True):
        groups.setdefault(prompt_id, []).append(value)
    return np.array([np.mean(group) for group in groups.values()], dtype=np.float64)


def by_cluster(values: ArrayLike, clusters: Sequence[Hashable]) -> Floats:
    """One value per cluster, whose mean is the mean of all values: the linearised ratio estimator (Cochran 1977,
    Sampling Techniques, chapter 6). With a single cluster, the values themselves."""
    values_N = np.asarray(values, dtype=np.float64)
    groups: dict[Hashable, list[float]] = {}
    for value, name in zip(values_N.tolist(), clusters, strict=True):
        groups.setdefault(name, []).append(value)
    if len(groups) < 2:
        return values_N
    mean, size = float(values_N.mean()), len(values_N) / len(groups)
    return np.array([mean + (sum(own) - mean * len(own)) / size for own in groups.values()])


def _paired(base: ArrayLike, policy: ArrayLike) -> tuple[Floats, Floats]:
    base_P, policy_P = _checked(base), _checked(policy)
    if len(base_P) != len(policy_P):
        raise InputError(f"bootstrap: {len(base_P)} base and {len(policy_P)} policy values cannot be paired")
    return base_P, policy_P


def _checked(values: ArrayLike, least: int = 2) -> Floats:
    values_P = np.asarray(values, dtype=np.float64)
    if values_P.ndim != 1 or len(values_P) < least:
        needed = "2 prompts" if least == 2 else "one prompt"
        raise InputError(
            f"bootstrap: values of shape {values_P.shape}; needs one value per prompt, for {needed} or more"
        )
    broken = int((~np.isfinite(values_P)).sum())
    if broken:
        raise InputError(
            f"bootstrap: {broken} of {len(values_P)} values are not finite; leave those prompts out explicitly"
        )
    return values_P
