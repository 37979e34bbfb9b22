"""How far a judge can be trusted: its agreement with people, its leanings, and rates corrected for its errors.

Names: `_L` one value per labelled comparison, `_U` one per comparison that only the judge has seen, `_P` per prompt. A
preference is 1 where the first of two answers is better, 0 where the second is, 0.5 for a tie.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from togi.core.errors import InputError
from togi.evaluate.statistics import Floats

FEWEST = 30  # labels under which a normal interval is not to be trusted


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """A rate over comparisons with the bounds that hold it with confidence `level`. `weight` is how much of the judge
    it uses: 0 is the labels alone, 1 all that the judge says. `labels` is their number."""

    mean: float
    low: float
    high: float
    level: float
    weight: float
    labels: int


def side(preference: float) -> int:
    """0 where the second answer is preferred, 1 for a tie, 2 where the first is."""
    return 1 + (preference > 0.5) - (preference < 0.5)


def kappa(counts: ArrayLike) -> Floats:
    """Cohen's kappa (Cohen 1960, Educational and Psychological Measurement 20:37) of tables of counts (..., K, K);
    NaN where chance alone would agree always."""
    table = np.asarray(counts, dtype=np.float64)
    total = table.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = table / total[..., None, None]
        agreed = np.trace(share, axis1=-2, axis2=-1)
        chance = (share.sum(-1) * share.sum(-2)).sum(-1)
        found = (agreed - chance) / (1 - chance)
    return np.where(1 - chance > 1e-12, found, np.nan)


def count_tables(judged: Sequence[float], human: Sequence[float], prompts: Sequence[Hashable]) -> Floats:
    """(P, 3, 3): for each prompt how often the judge took a side (rows) where people took one (columns)."""
    places = {name: place for place, name in enumerate(dict.fromkeys(prompts))}
    tables = np.zeros((len(places), 3, 3))
    for one, other, name in zip(judged, human, prompts, strict=True):
        tables[places[name], side(one), side(other)] += 1
    return tables


def kappa_interval(
    tables: Floats, *, seed: int, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """(kappa, low, high): a percentile bootstrap over prompts, since comparisons of one prompt are not independent.

    Resamples in which chance alone would agree always have no kappa and are left out.
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
    """The mean that people would give to all comparisons, from their labels of some and the judge's word on all.

    The estimator is prediction-powered inference with power tuning (Angelopoulos, Bates, Fannjiang, Jordan and Zrnic
    2023, Science 382:669; PPI++: Angelopoulos, Duchi and Zrnic 2023, arXiv 2311.01453):

        mean(truth_L - w judged_L) + w mean(judged_U),  w = cov(truth_L, judged_L) / ((1 + n/N) var(judged))

    with w held to 0..1. It assumes nothing of the judge's errors, but that the labelled comparisons were drawn at
    random from all. (Rogan and Gladen 1978 correct by sensitivity and specificity; that wants two outcomes and errors
    alike in both parts.) The interval is normal, its variance clustered by prompt. Raises InputError for fewer than two
    labelled prompts.
    """
    y, f, u = (np.asarray(values, dtype=np.float64) for values in (truth_L, judged_L, judged_U))
    if len(dict.fromkeys(prompts_L)) < 2:
        raise InputError(f"correction: {len(y)} labels of {len(dict.fromkeys(prompts_L))} prompts; 2 are needed")
    weight = _power(y, f, u)
    rest = weight * float(u.mean()) if len(u) else 0.0
    residual = y - weight * f
    mean = float(residual.mean()) + rest
    influence: dict[Hashable, float] = {}
    for value, name in zip((residual - residual.mean()) / len(y), prompts_L, strict=True):
        influence[name] = influence.get(name, 0.0) + float(value)
    if weight:
        for value, name in zip(weight * (u - u.mean()) / len(u), prompts_U, strict=True):
            influence[name] = influence.get(name, 0.0) + float(value)
    count = len(influence)
    spread = math.sqrt(count / (count - 1) * sum(value * value for value in influence.values()))
    reach = NormalDist().inv_cdf((1 + level) / 2) * spread
    low, high = max(0.0, mean - reach), min(1.0, mean + reach)
    if spread == 0:  # all alike so far: the exact bound for what was not seen, as in Bootstrap.share
        unseen = 1 - ((1 - level) / 2) ** (1 / len(dict.fromkeys(prompts_L)))
        low, high = max(0.0, mean - unseen), min(1.0, mean + unseen)
    return Corrected(mean=min(1.0, max(0.0, mean)), low=low, high=high, level=level, weight=weight, labels=len(y))


def clustered_mean(values: ArrayLike, prompts: Sequence[Hashable], level: float = 0.95) -> Corrected:
    """The mean over comparisons with a normal interval, its variance clustered by prompt: `prediction_powered` without
    a judge."""
    return prediction_powered(values, values, (), prompts_L=prompts, prompts_U=(), level=level)


def _power(y: Floats, f: Floats, u: Floats) -> float:
    """How much of the judge to use: the weight with the smallest variance."""
    if not len(u) or len(y) < 2:
        return 0.0
    spread = float(np.concatenate([f, u]).var())
    together = float(np.cov(y, f)[0, 1])
    return float(np.clip(together / ((1 + len(y) / len(u)) * spread), 0.0, 1.0)) if spread > 0 else 0.0
