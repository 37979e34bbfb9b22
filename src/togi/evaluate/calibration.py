"""How far a judge can be trusted: its agreement with people, its biases, and rates corrected for its errors.

Names: `_L` one value per labelled comparison, `_U` one per comparison that only the judge decided, `_P` per prompt. A
preference is 1 if the first of two answers is better, 0 if the second is, 0.5 for a tie.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from togi.core.errors import InputError
from togi.evaluate.statistics import Floats, clustered_share, effective_rows, with_two_rows

FEWEST = 30  # with fewer labels, intervals are rough


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """A rate over comparisons with its bounds at confidence `level`. `weight` is the weight of the judge: 0 uses only
    the labels, 1 uses the judge fully. `labels` is the number of labels."""

    mean: float
    low: float
    high: float
    level: float
    weight: float
    labels: int


def side(preference: float) -> int:
    """0 if the second answer is preferred, 1 for a tie, 2 if the first is."""
    return 1 + (preference > 0.5) - (preference < 0.5)


def kappa(counts: ArrayLike) -> Floats:
    """Cohen's kappa (Cohen 1960, Educational and Psychological Measurement 20:37) of tables of counts (..., K, K); NaN
    if chance alone would always agree."""
    table = np.asarray(counts, dtype=np.float64)
    total = table.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = table / total[..., None, None]
        agreed = np.trace(share, axis1=-2, axis2=-1)
        chance = (share.sum(-1) * share.sum(-2)).sum(-1)
        found = (agreed - chance) / (1 - chance)
    return np.where(1 - chance > 1e-12, found, np.nan)


def count_tables(judged: Sequence[float], human: Sequence[float], prompts: Sequence[Hashable]) -> Floats:
    """(P, 3, 3): for each prompt, counts by the judge's side (rows) and people's side (columns)."""
    places = {name: place for place, name in enumerate(dict.fromkeys(prompts))}
    tables = np.zeros((len(places), 3, 3))
    for one, other, name in zip(judged, human, prompts, strict=True):
        tables[places[name], side(one), side(other)] += 1
    return tables


def kappa_interval(
    tables: Floats, *, seed: int, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """(kappa, low, high): a percentile bootstrap over prompts, because comparisons of one prompt are not independent.

    Resamples in which chance alone would always agree have no kappa and are left out.
    """
    whole = float(kappa(tables.sum(0)))
    count = len(tables)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    drawn = kappa(np.einsum("rp,pij->rij", weights.astype(np.float64), tables))
    drawn = drawn[np.isfinite(drawn)]
    if math.isnan(whole) or not len(drawn):
        return whole, math.nan, math.nan
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return whole, float(low), float(high)


def prediction_powered(
    truth_L: ArrayLike,
    judged_L: ArrayLike,
    judged_U: ArrayLike,
    *,
    prompts_L: Sequence[Hashable],
    prompts_U: Sequence[Hashable],
    level: float = 0.95,
) -> Corrected:
    """Estimates the mean of human labels over all comparisons, from labels of some and the judge's verdicts on all.

    The estimator is prediction-powered inference with power tuning (Angelopoulos, Bates, Fannjiang, Jordan and Zrnic
    2023, Science 382:669; PPI++: Angelopoulos, Duchi and Zrnic 2023, arXiv 2311.01453):

        mean(truth_L - w judged_L) + w mean(judged_U),  w = cov(truth_L, judged_L) / ((1 + n/N) var(judged))

    with w clipped to 0..1. It assumes nothing about the judge's errors, only that the labelled comparisons are a random
    sample of all. (Rogan and Gladen 1978 correct by sensitivity and specificity, which needs two outcomes and the same
    error rates in both parts.) Raises InputError for fewer than two labelled prompts.

    The interval combines those of the two means (Zou and Donner 2008, Stat. Med. 27:1693). That of mean(judged_U) is
    `clustered_share`'s. That of mean(truth_L - w judged_L), whose values range from -w to 1, has two more rows at these
    ends; for w = 1 it is the adjusted Wald interval of a paired difference of shares. Rows of a prompt count as their
    effective number. If w = 0, only the labels count (`clustered_share`).
    """
    y, f, u = (np.asarray(values, dtype=np.float64) for values in (truth_L, judged_L, judged_U))
    if len(dict.fromkeys(prompts_L)) < 2:
        raise InputError(
            f"correction: {len(y)} labels of {len(dict.fromkeys(prompts_L))} prompts; at least 2 prompts are needed"
        )
    weight = _power(y, f, u)
    if weight == 0:
        people = clustered_share(y, prompts_L, level)
        return Corrected(mean=people.mean, low=people.low, high=people.high, level=level, weight=0.0, labels=len(y))
    judge, residual = clustered_share(u, prompts_U, level), y - weight * f
    low, high = with_two_rows(residual, effective_rows(residual, prompts_L), (-weight, 1.0), level)
    fixed = float(residual.mean())
    mean = weight * judge.mean + fixed
    below = math.hypot(weight * (judge.mean - judge.low), max(0.0, fixed - low))
    above = math.hypot(weight * (judge.high - judge.mean), max(0.0, high - fixed))
    value, low, high = (min(1.0, max(0.0, each)) for each in (mean, mean - below, mean + above))
    return Corrected(mean=value, low=low, high=high, level=level, weight=weight, labels=len(y))


def clustered_mean(values: ArrayLike, prompts: Sequence[Hashable], level: float = 0.95) -> Corrected:
    """The mean over comparisons with the interval of `clustered_share`: `prediction_powered` without a judge."""
    return prediction_powered(values, values, (), prompts_L=prompts, prompts_U=(), level=level)


def _power(y: Floats, f: Floats, u: Floats) -> float:
    """The weight of the judge that minimises the variance."""
    if not len(u) or len(y) < 2:
        return 0.0
    spread = float(np.concatenate([f, u]).var())
    together = float(np.cov(y, f)[0, 1])
    return float(np.clip(together / ((1 + len(y) / len(u)) * spread), 0.0, 1.0)) if spread > 0 else 0.0
