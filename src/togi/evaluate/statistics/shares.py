"""Intervals of shares, and of paired differences of shares.

Names: `_N` one value per row, `_C` one per cluster, such as a question: rows of one cluster are not independent.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from togi.core.errors import InputError
from togi.evaluate.statistics.interval import Floats, Interval

MORE = 4
"""Rows added to a mean of shares (Price and Bonett 2004)."""


def wilson(hits: float, count: float, level: float = 0.95) -> Interval:
    """Wilson's interval of a share of independent rows (Wilson 1927, JASA 22:209). It stays within 0 and 1, and has
    width even at 0 and 1. A tie may count as half a hit, and `count` may be an effective number of independent rows.
    InputError for no rows, or more hits than rows."""
    if count < 1 or not 0 <= hits <= count:
        raise InputError(f"share: {hits} of {count} rows; at least one row is needed, and no more hits than rows")
    reach = _reach(level)
    share, more = hits / count, reach * reach / count
    centre = (share + more / 2) / (1 + more)
    half = reach * math.sqrt(share * (1 - share) / count + more / (4 * count)) / (1 + more)
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == count else min(1.0, centre + half)
    return Interval(mean=share, low=low, high=high, level=level, n=round(count))


def clustered_share(values_N: ArrayLike, clusters_N: Sequence[Hashable], level: float = 0.95) -> Interval:
    """The mean of values from 0 to 1 with Wilson's interval for their `share_rows`. InputError for no rows. `n` is the
    number of clusters."""
    values_N = np.asarray(values_N, dtype=np.float64)
    share, rows = (float(values_N.mean()) if len(values_N) else 0.0), share_rows(values_N, clusters_N)
    return replace(wilson(share * rows, rows, level), mean=share, n=len(dict.fromkeys(clusters_N)))


def mean_of_shares(
    values: Sequence[ArrayLike], clusters: Sequence[Sequence[Hashable]], level: float = 0.95
) -> Interval:
    """The unweighted mean of independent shares, each from its values (0 to 1) and their clusters, with an interval
    around the mean of Price and Bonett (2004, Comput. Stat. Data Anal. 45:449): four more rows, spread evenly over the
    shares, half of them hits. InputError for no shares, or one without rows.

    The variance of a share is theirs, or that of `_drawn_together` if it is greater: three rows that are all hits do
    not show that their share never varies. Student's t has Welch's and Satterthwaite's degrees of freedom, four more
    for each share than it has by itself.
    """
    if not values or not all(map(len, clusters)):
        raise InputError("mean of shares: a share has no rows; each needs at least one")
    found = [np.asarray(own, dtype=np.float64) for own in values]
    share_K = np.array([own_N.mean() for own_N in found])
    rows_K = np.array([share_rows(own_N, names) for own_N, names in zip(found, clusters, strict=True)])
    more = MORE / len(share_K)
    near_K = (share_K * rows_K + more / 2) / (rows_K + more)
    mean, centre = float(share_K.mean()), float(near_K.mean())
    variance_K = np.maximum(near_K * (1 - near_K), _drawn_together(share_K, rows_K, centre)) / (rows_K + more)
    total = float(variance_K.sum())
    freedom = total**2 / float((variance_K**2 / (rows_K - 1 + MORE)).sum())
    half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(total) / len(share_K)
    low, high = max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean))
    return Interval(mean=mean, low=low, high=high, level=level, n=sum(len(dict.fromkeys(own)) for own in clusters))


def _drawn_together(share_K: Floats, rows_K: Floats, centre: float) -> Floats:
    """The variance of one row of each share, drawn towards that of a row with the mean of all shares as if four more
    rows had been seen (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3); at most 1/4, the greatest of a share."""
    squares_K = rows_K * share_K * (1 - share_K)
    return np.minimum(0.25, (squares_K + MORE * centre * (1 - centre)) / (rows_K - 1 + MORE))


def adjusted_wald(difference_N: ArrayLike, clusters_N: Sequence[Hashable] = (), level: float = 0.95) -> Interval:
    """The interval of a paired difference of shares, from the difference (-1 to 1) of each row: Wald's, with two more
    rows, one of -1 and one of 1 (Bonett and Price 2012, J. Educ. Behav. Stat. 37:479). It has width even if no row
    differs. The rows of a cluster count as their effective number. InputError for no rows.
    """
    difference_N = np.asarray(difference_N, dtype=np.float64)
    if not len(difference_N):
        raise InputError("difference of shares: no rows; at least one row is needed")
    names = clusters_N if len(clusters_N) else range(len(difference_N))
    mean, rows = float(difference_N.mean()), effective_rows(difference_N, names)
    low, high = with_two_rows(difference_N, rows, (-1.0, 1.0), level)
    low, high = max(-1.0, min(low, mean)), min(1.0, max(high, mean))
    return Interval(mean=mean, low=low, high=high, level=level, n=len(dict.fromkeys(names)))


def with_two_rows(values_N: Floats, rows: float, ends: tuple[float, float], level: float = 0.95) -> tuple[float, float]:
    """Wald's bounds of a mean of values that count as `rows` independent ones, with two more rows at the `ends` of
    their range."""
    count = rows + 2
    mean = (rows * float(values_N.mean()) + sum(ends)) / count
    square = (rows * float((values_N**2).mean()) + ends[0] ** 2 + ends[1] ** 2) / count
    half = _reach(level) * math.sqrt(max(0.0, square - mean * mean) / count)
    return mean - half, mean + half


def effective_rows(values_N: Floats, clusters_N: Sequence[Hashable]) -> float:
    """The number of independent rows whose mean has the variance of this mean by cluster (Kish 1965, Survey Sampling,
    chapter 8): at least the number of clusters, at most that of rows."""
    places: dict[Hashable, int] = {}
    own_N = np.array([places.setdefault(name, len(places)) for name in clusters_N], dtype=np.intp)
    count, rows = len(places), len(values_N)
    if not rows:
        return 0.0
    deviation_N = values_N - values_N.mean()
    influence_C = np.bincount(own_N, weights=deviation_N) / rows
    spread = float((influence_C**2).sum())
    if count < 2 or spread <= 1e-24:  # nothing varies between clusters
        return float(count)
    variance = count / (count - 1) * spread
    return min(max(float((deviation_N**2).sum()) / (rows - 1) / variance, float(count)), float(rows))


def share_rows(values_N: Floats, clusters_N: Sequence[Hashable]) -> float:
    """The number of independent right or wrong rows whose share varies as much as this mean: `effective_rows`; more of
    them for values in between, which vary less."""
    rows, spread = effective_rows(values_N, clusters_N), float(values_N.var()) if len(values_N) else 0.0
    if right_or_wrong(values_N) or spread <= 1e-24:
        return rows
    share = float(values_N.mean())
    return rows * share * (1 - share) / spread


def right_or_wrong(*values: ArrayLike) -> bool:
    """Whether all values are 0, 1, or 0.5 for a tie."""
    return all(bool(np.isin(np.asarray(each, dtype=np.float64), (0.0, 0.5, 1.0)).all()) for each in values)


def _reach(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
