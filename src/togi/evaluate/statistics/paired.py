"""Two models on the same prompts: McNemar's test and the effect size."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr

from togi.core.errors import InputError
from togi.evaluate.statistics.interval import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """How often only the first and only the second was right, and the exact two-sided p-value for no difference."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first_N: ArrayLike, second_N: ArrayLike) -> McNemar:
    """McNemar's exact test (1947, Psychometrika 12:153) of two subjects on the same rows; values are whether each was
    right."""
    first_N, second_N = _both(np.asarray(first_N, dtype=np.float64), np.asarray(second_N, dtype=np.float64))
    one, other = int((first_N > second_N).sum()), int((first_N < second_N).sum())
    p = min(1.0, 2 * float(bdtr(min(one, other), one + other, 0.5))) if one + other else 1.0
    return McNemar(only_first=one, only_second=other, p=p)


def effect_size(base_N: ArrayLike, policy_N: ArrayLike) -> float | None:
    """The mean paired difference (policy - base) in standard deviations of that difference, with Hedges' correction for
    few rows (1981, J. Educ. Stat. 6:107). None for fewer than two rows, or differences that do not vary."""
    base_N, policy_N = _both(np.asarray(base_N, dtype=np.float64), np.asarray(policy_N, dtype=np.float64))
    difference_N = policy_N - base_N
    if len(difference_N) < 2 or np.ptp(difference_N) <= 1e-12 * max(1.0, float(np.abs(difference_N).max())):
        return None
    freedom = len(difference_N) - 1
    correction = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    correction = correction if freedom > 1 else 1.0
    return correction * float(difference_N.mean() / difference_N.std(ddof=1))


def _both(one_N: Floats, other_N: Floats) -> tuple[Floats, Floats]:
    if one_N.shape != other_N.shape:
        raise InputError(f"paired values: {len(one_N)} and {len(other_N)} cannot be paired")
    return one_N, other_N
