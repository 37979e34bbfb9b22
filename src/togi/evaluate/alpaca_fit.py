"""The length-controlled model of AlpacaEval 2, fitted to preferences: `length_controlled_v1` of Dubois et al. (arXiv
2404.04475), as alpaca_eval's glm_winrate.py fits it.

Each model gets its own logistic regression of the preference on tanh(length difference / its standard deviation), the
difficulty of the instruction and the model, with an L1 penalty whose strength is chosen by five-fold cross-validation.
The published fit adds two anchors, each with a tenth of a row's weight: models that gamed the baseline's length, so
that length alone should explain their wins. They are not public. A fit without anchors is a different estimate, and is
reported as such.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from togi.core.errors import InputError
from togi.evaluate.statistics import Floats

FOLDS, SEED = 5, 123
STRENGTHS = np.logspace(-4, 4, 10)
NOTHING = 1e-12  # least weight of a row: liblinear needs both classes, and complains on standard output
ANCHORS_WEIGHT = 0.2  # weight of an anchor row, divided by the number of anchors; a row of the model has 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The preferences for one model (0 to 1), and the characters of the baseline's answer minus those of the model's.
    `hard_N` are the difficulties of the instructions, if known."""

    preference_N: Floats
    shorter_N: Floats
    hard_N: Floats | None

    def features(self, own: float) -> Floats:
        """Length, difficulty (0 if unknown) and the model term `own`, which is 0 for anchors."""
        deviation = float(self.shorter_N.std(ddof=1)) if len(self.shorter_N) > 1 else 0.0
        length_N = np.tanh(self.shorter_N / deviation) if deviation > 0 else np.zeros(len(self.shorter_N))
        hard_N = np.zeros(len(length_N)) if self.hard_N is None else self.hard_N
        return np.stack([length_N, hard_N, np.full(len(length_N), own)], axis=1)


def fit_terms(own: Judged, anchors: Sequence[Judged], model: str) -> tuple[dict[str, float], bool]:
    """(the weights {length, difficulty, model} of one model, whether their fit converged). InputError for fewer than
    five preferences, or if all are 0 or all are 1."""
    if len(own.preference_N) < FOLDS:
        raise InputError(f"--fit: {model} has {len(own.preference_N)} preferences; at least {FOLDS} are needed")
    if np.ptp(own.preference_N) == 0 and own.preference_N[0] in (0, 1):
        raise InputError(
            f"--fit: all {len(own.preference_N)} preferences of {model} are {own.preference_N[0]:g}, so length "
            "explains nothing; remove its rows, or run without --fit"
        )
    x_NK = np.concatenate([own.features(1.0), *(each.features(0.0) for each in anchors)])
    share_N = np.concatenate([own.preference_N, *(each.preference_N for each in anchors)])
    light = ANCHORS_WEIGHT / max(1, len(anchors))
    weight_N = np.concatenate(
        [np.ones(len(own.preference_N)), *(np.full(len(each.preference_N), light) for each in anchors)]
    )
    coef_K, converged = _best(x_NK, share_N, weight_N)
    return dict(zip(("length", "difficulty", "model"), coef_K.tolist(), strict=True)), converged


def _best(x_NK: Floats, share_N: Floats, weight_N: Floats) -> tuple[Floats, bool]:
    """The coefficients at the penalty strength with the least cross-validation loss, and whether they converged."""
    group_N = np.arange(len(share_N))
    folds = list(GroupKFold(FOLDS).split(x_NK, groups=group_N))
    losses = [
        sum(_loss(_fit(x_NK[t], share_N[t], weight_N[t], c)[0], x_NK[h], share_N[h], weight_N[h]) for t, h in folds)
        for c in STRENGTHS
    ]
    return _fit(x_NK, share_N, weight_N, float(STRENGTHS[int(np.argmin(losses))]))


def _fit(x_NK: Floats, share_N: Floats, weight_N: Floats, strength: float) -> tuple[Floats, bool]:
    """Fits with every row once as a win and once as a loss, weighted by its preference."""
    both_NK = np.concatenate([x_NK, x_NK])
    won_N = np.repeat([1, 0], len(x_NK))
    times_N = np.concatenate([share_N * weight_N, (1 - share_N) * weight_N])
    if not times_N[: len(x_NK)].any() or not times_N[len(x_NK) :].any():
        times_N = np.maximum(times_N, NOTHING)  # a fold has only wins, or only losses
    model = LogisticRegression(C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the caller reports it, once for each model
        model.fit(both_NK, won_N, sample_weight=times_N)
    return model.coef_[0], int(model.n_iter_.max()) < model.max_iter


def _loss(coef_K: Floats, x_NK: Floats, share_N: Floats, weight_N: Floats) -> float:
    chance_N = np.clip(expit(x_NK @ coef_K), 1e-15, 1 - 1e-15)
    return -float((weight_N * (share_N * np.log(chance_N) + (1 - share_N) * np.log(1 - chance_N))).mean())
