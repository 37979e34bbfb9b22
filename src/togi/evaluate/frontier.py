"""Estimates a policy's KL from its base, and the expected reward of best-of-n sampling from the base.

Suffixes: P prompts, M answers of the base to each.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from togi.core.errors import InputError
from togi.evaluate.statistics import Floats, Interval, by_prompt, ratio_of_means


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n in nats: the KL of best-of-`n` sampling from the base, per whole answer (Stiennon et al.,
    arXiv 2009.01325). It is exact if no two answers are equal or equally good, and an upper bound otherwise (Beirami et
    al., arXiv 2401.01879)."""
    if n < 1:
        raise InputError(f"best of n: n is {n}; at least 1 is needed")
    return math.log(n) - (n - 1) / n


def best_of_n(scores_PM: Floats, n: int) -> Floats:
    """The expected score of the best of `n` of each prompt's M scores (P,), over all choices of n of them: unbiased,
    with less variance than one draw (Nakano et al., arXiv 2112.09332, appendix I). Raises InputError for n above M."""
    answers = scores_PM.shape[1]
    if not 1 <= n <= answers:
        raise InputError(f"best of n: n is {n} of {answers} answers; it must be from 1 to {answers}")
    rank_M = np.arange(n, answers + 1)
    log_M = _log_choose(rank_M - 1, n - 1) - _log_choose(np.array([answers]), n)
    return np.sort(scores_PM, axis=1)[:, n - 1 :] @ np.exp(log_M)


def doublings(answers: int) -> list[int]:
    """1, 2, 4, ... below the number of answers, then that number."""
    return [n for n in (2**power for power in range(answers.bit_length())) if n < answers] + [answers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """KL(policy, base) in nats, per whole answer and per token. `per_prompt_P` are the means over each prompt's
    answers."""

    sequence: float
    token: float | None
    token_interval: Interval | None
    per_prompt_P: Floats
    tokens: int


def divergence(
    policy: Sequence[float], base: Sequence[float], tokens: Sequence[int], prompts: Sequence[Hashable], level: float
) -> Divergence:
    """KL(policy, base) from answers sampled from the policy: the mean of log p(policy) - log p(base).

    `policy` and `base` are the log-probabilities of whole answers under both models at the sampling temperature,
    `tokens` their numbers of tokens. The estimate is unbiased, and may be below 0 with few answers. The value per token
    is the ratio of nats to tokens over all answers, with Fieller's interval by prompt. Raises InputError for numbers
    that are not finite, or lists of different lengths.
    """
    if not len(policy) == len(base) == len(tokens) == len(prompts):
        raise InputError(
            f"KL: {len(policy)}, {len(base)}, {len(tokens)} and {len(prompts)} values; needs one per answer"
        )
    apart_N = np.asarray(policy, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    if not len(apart_N) or not np.isfinite(apart_N).all():
        broken = int((~np.isfinite(apart_N)).sum())
        raise InputError(f"KL: {broken} of {len(apart_N)} answers have no finite log-probability under both models")
    nats_P, length_P = by_prompt(apart_N.tolist(), prompts), by_prompt([float(n) for n in tokens], prompts)
    total = sum(tokens)
    return Divergence(
        sequence=float(nats_P.mean()),
        token=float(nats_P.sum() / length_P.sum()) if total else None,
        token_interval=ratio_of_means(nats_P, length_P, paired=True, level=level) if total else None,
        per_prompt_P=nats_P,
        tokens=total,
    )


def _log_choose(above: np.ndarray, below: int) -> Floats:
    return gammaln(above + 1) - gammaln(below + 1) - gammaln(above - below + 1)
