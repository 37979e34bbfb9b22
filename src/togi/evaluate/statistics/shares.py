"""Intervals of shares."""

import math
from statistics import NormalDist

from togi.core.errors import InputError
from togi.evaluate.statistics.interval import Interval


def wilson(hits: float, count: float, level: float = 0.95) -> Interval:
    """Wilson's interval of a share of independent rows (Wilson 1927, JASA 22:209). It stays within 0 and 1, and has
    width even at 0 and 1. A tie may count as half a hit, and `count` may be an effective number of independent rows.
    InputError for no rows, or more hits than rows."""
    if count < 1 or not 0 <= hits <= count:
        raise InputError(f"share: {hits} of {count} rows; at least one row is needed, and no more hits than rows")
    reach = NormalDist().inv_cdf((1 + level) / 2)
    share, more = hits / count, reach * reach / count
    centre = (share + more / 2) / (1 + more)
    half = reach * math.sqrt(share * (1 - share) / count + more / (4 * count)) / (1 + more)
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == count else min(1.0, centre + half)
    return Interval(mean=share, low=low, high=high, level=level, n=round(count))
