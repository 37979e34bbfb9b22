"""Intervals of means and of ratios of means. None means that the data give no interval: fewer than two independent
values, or values that do not vary."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from togi.core.errors import InputError
from togi.evaluate.statistics.interval import Floats, Interval


def mean_interval(values_N: ArrayLike, level: float = 0.95) -> Interval | None:
    """Student's t interval of the mean of independent values; InputError for non-finite values."""
    values_N = _finite(values_N)
    return cluster_mean(values_N, range(len(values_N)), level)


def cluster_mean(values_N: ArrayLike, clusters_N: Sequence[Hashable], level: float = 0.95) -> Interval | None:
    """The mean of all values with an interval by cluster, such as by question: values of one cluster need not be
    independent.

    The mean is a ratio of sums, linearised (Cochran 1977, Sampling Techniques, chapter 6), with Student's t at one
    degree of freedom fewer than clusters. `n` of the interval is the number of clusters.
    """
    values_N = _finite(values_N)
    places: dict[Hashable, int] = {}
    own_N = np.array([places.setdefault(name, len(places)) for name in clusters_N], dtype=np.intp)
    if len(own_N) != len(values_N):
        raise InputError(f"mean: {len(values_N)} values but {len(own_N)} names of clusters")
    count = len(places)
    if count < 2:
        return None
    mean = float(values_N.mean())
    influence_C = np.bincount(own_N, weights=values_N - mean) / len(values_N)
    variance = count / (count - 1) * float((influence_C**2).sum())
    return _student(mean, variance, count - 1, level, count)


def mean_of_means(intervals: Sequence[tuple[float, Interval | None]], level: float = 0.95) -> Interval | None:
    """The unweighted mean of independent means, each with its interval; variances add, with Welch-Satterthwaite degrees
    of freedom. None if one of them has no interval."""
    parts = [found for _, found in intervals]
    if not parts or any(found is None for found in parts):
        return None
    known = [found for found in parts if found is not None]
    variances = [((one.high - one.mean) / float(stdtrit(one.n - 1, (1 + one.level) / 2))) ** 2 for one in known]
    total = sum(variances)
    freedom = total**2 / sum(own**2 / (one.n - 1) for own, one in zip(variances, known, strict=True))
    mean = sum(value for value, _ in intervals) / len(intervals)
    return _student(mean, total / len(intervals) ** 2, freedom, level, sum(one.n for one in known))


def ratio_of_means(above_N: ArrayLike, below_M: ArrayLike, *, paired: bool, level: float = 0.95) -> Interval | None:
    """mean(above) / mean(below) with Fieller's interval (1954, J. R. Stat. Soc. B 16:175): its bounds are the ratios r
    at which mean(above) - r mean(below) just stops being significantly different from zero.

    `paired` values belong to the same prompts, in the same order. None if mean(below) is not significantly different
    from zero: the ratio may then be anything. InputError for paired values of different lengths.
    """
    above_N, below_M = _finite(above_N), _finite(below_M)
    if paired and len(above_N) != len(below_M):
        raise InputError(f"ratio of means: {len(above_N)} and {len(below_M)} values cannot be paired")
    if min(len(above_N), len(below_M)) < 2 or below_M.mean() == 0:
        return None
    top, bottom = float(above_N.mean()), float(below_M.mean())
    var_top, var_bottom = above_N.var(ddof=1) / len(above_N), below_M.var(ddof=1) / len(below_M)
    shared = float(np.cov(above_N, below_M)[0, 1]) / len(above_N) if paired else 0.0
    ratio, count = top / bottom, min(len(above_N), len(below_M))
    freedom = count - 1.0 if paired else _welch(var_top, ratio**2 * var_bottom, len(above_N), len(below_M))
    reach = float(stdtrit(freedom, (1 + level) / 2)) ** 2
    a, b, c = bottom**2 - reach * var_bottom, top * bottom - reach * shared, top**2 - reach * var_top
    inside = b * b - a * c
    if a <= 0 or inside <= 0:
        return None
    low, high = (b - math.sqrt(inside)) / a, (b + math.sqrt(inside)) / a
    return Interval(mean=ratio, low=low, high=high, level=level, n=count)


def _welch(one: float, other: float, first: int, second: int) -> float:
    total = one + other
    return total**2 / (one**2 / (first - 1) + other**2 / (second - 1)) if total > 0 else min(first, second) - 1.0


def _student(mean: float, variance: float, freedom: float, level: float, count: int) -> Interval | None:
    if variance <= (1e-12 * max(1.0, abs(mean))) ** 2:  # below rounding error nothing varies
        return None
    reach = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance)
    return Interval(mean=mean, low=mean - reach, high=mean + reach, level=level, n=count)


def _finite(values: ArrayLike) -> Floats:
    values_N = np.asarray(values, dtype=np.float64)
    broken = int((~np.isfinite(values_N)).sum())
    if broken:
        raise InputError(f"mean: {broken} of {values_N.size} values are not finite; leave those out explicitly")
    return values_N
