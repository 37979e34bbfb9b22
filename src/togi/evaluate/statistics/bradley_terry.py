"""Bradley-Terry: one strength per model from pairwise battles (Bradley and Terry 1952, Biometrika 39:324).

A battle is a row with a weight; a tie is half a win for each side. The strengths are those of the weighted logistic
regression P(a beats b) = sigmoid(strength a - strength b), without regularisation, with the baseline at 0.

Names: `_N` one value per row, `_P` per pair of models with battles, `_M` per model, `_R` per resample, `_Q` per
question.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from togi.core.errors import InputError, StageError
from togi.evaluate.statistics.interval import Floats

Integers = NDArray[np.intp]
By = Literal["question", "row", "model"]
FAR = 100.0  # strengths are clipped to this
ROUNDS, STEPS, CHUNK = 200, 40, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Strengths of models in natural logarithms, with the baseline at 0. `strength_M` is inf or -inf for a model that
    only won or only lost against the models connected to the baseline, NaN for one not connected to it."""

    models: tuple[str, ...]
    strength_M: Floats

    @property
    def win_rate_M(self) -> Floats:
        """The chance to beat the baseline; NaN for a model not connected to it."""
        return expit(self.strength_M)

    @property
    def elo_M(self) -> Floats:
        """400 for every factor of ten in the odds, 1000 for the baseline."""
        return 1000 + 400 / np.log(10) * self.strength_M


@dataclass(frozen=True, kw_only=True)
class Battles:
    """Rows of two models each, as indices into `models`: `share_N` is 1 if `first_N` won, 0 if `second_N` did, 0.5 for
    a tie. `question_N` numbers the questions from 0."""

    models: tuple[str, ...]
    baseline: int
    first_N: Integers
    second_N: Integers
    share_N: Floats
    weight_N: Floats
    question_N: Integers | None = None

    @cached_property
    def pairs(self) -> tuple[Integers, Integers, Integers]:
        """(lower model of each pair, higher model of each pair, pair of each row)."""
        low_N, high_N = np.minimum(self.first_N, self.second_N), np.maximum(self.first_N, self.second_N)
        found_P, own_N = np.unique(low_N * len(self.models) + high_N, return_inverse=True)
        return found_P // len(self.models), found_P % len(self.models), own_N

    @cached_property
    def wins_N(self) -> Floats:
        """The weight won by the lower model of each row's pair."""
        return self.weight_N * np.where(self.first_N < self.second_N, self.share_N, 1 - self.share_N)

    def sums(self, count_N: Floats | None = None) -> tuple[Floats, Floats]:
        """(weight won by the lower model, total weight) for each pair, with every row repeated `count_N` times."""
        times_N = 1.0 if count_N is None else count_N
        size, own_N = len(self.pairs[0]), self.pairs[2]
        won_P = np.bincount(own_N, weights=self.wins_N * times_N, minlength=size)
        all_P = np.bincount(own_N, weights=self.weight_N * times_N, minlength=size)
        return won_P.astype(np.float64), all_P.astype(np.float64)

    def absent(self, all_RP: Floats) -> NDArray[np.bool_]:
        """Whether each model has no battle in each resample (R, M), from the weight of each pair. The baseline never
        counts as absent, because its strength is fixed."""
        low_P, high_P, _ = self.pairs
        weight_MR = np.zeros((len(self.models), len(all_RP)))
        np.add.at(weight_MR, low_P, all_RP.T)
        np.add.at(weight_MR, high_P, all_RP.T)
        weight_MR[self.baseline] = np.inf
        return (weight_MR == 0).T


def bradley_terry(battles: Battles) -> Fit:
    """The maximum-likelihood strengths. Raises InputError without rows, StageError if the fit does not converge."""
    if not len(battles.first_N):
        raise InputError("battles: none is left to fit")
    won_P, all_P = battles.sums()
    strength_M = _outside(battles, won_P, all_P)
    inside_M = np.isfinite(strength_M)
    low_P, high_P, _ = battles.pairs
    known_P = inside_M[low_P] & inside_M[high_P]
    if known_P.any():
        solved_RM = _solve(battles, won_P[None] * known_P, all_P[None] * known_P)
        strength_M[inside_M] = solved_RM[0][inside_M]
    return Fit(models=battles.models, strength_M=strength_M)


def resampled(battles: Battles, *, by: By, rounds: int, seed: int) -> tuple[Floats, Floats]:
    """(win rates against the baseline in each resample (R, M), the influence of each question or row on a strength (Q,
    M)). See `row_counts` for what is drawn. The rate of a model without battles in a resample is NaN."""
    start_M = np.nan_to_num(bradley_terry(battles).strength_M, nan=0.0, posinf=10.0, neginf=-10.0)
    inverse_MM = _inverse(battles, start_M)
    found = []
    for won_RP, all_RP in _draws(battles, by, rounds, seed):
        strength_RM = _resolve(battles, won_RP, all_RP, start_M, inverse_MM)
        strength_RM[battles.absent(all_RP)] = np.nan
        found.append(strength_RM)
    return expit(np.concatenate(found)), influence(battles, by)


def influence(battles: Battles, by: By) -> Floats:
    """The influence of each question or row on a model's strength, to first order (the infinitesimal jackknife: Jaeckel
    1972; Efron and Tibshirani 1993, chapter 22). Shape (questions or rows, models)."""
    own_N = battles.question_N if by == "question" else np.arange(len(battles.first_N))
    assert own_N is not None
    strength_M = np.nan_to_num(bradley_terry(battles).strength_M, nan=0.0, posinf=FAR, neginf=-FAR)
    low_P, high_P, pair_N = battles.pairs
    chance_P = expit(strength_M[low_P] - strength_M[high_P])
    residual_N = battles.wins_N - battles.weight_N * chance_P[pair_N]
    score_QM = np.zeros((int(own_N.max()) + 1, len(battles.models)))
    np.add.at(score_QM, (own_N, low_P[pair_N]), residual_N)
    np.add.at(score_QM, (own_N, high_P[pair_N]), -residual_N)
    score_QM[:, battles.baseline] = 0.0  # its strength is fixed
    return score_QM @ _inverse(battles, strength_M)


# --- resamples --------------------------------------------------------------------------------------------------------


def row_counts(battles: Battles, by: By, rounds: int, seed: int) -> Iterator[Floats]:
    """How often each row occurs in each resample (R, N), a chunk of resamples at a time.

    `by` question draws whole questions with all their games and models. `by` row draws rows of all models together, as
    published arenas do: round i seeds numpy's legacy generator with `seed` + i, which draws the same rows as pandas'
    `sample(frac=1, replace=True, random_state=i)`. `by` model draws the rows of each pair of models separately.
    """
    if by == "question":
        assert battles.question_N is not None
        for drawn_RQ in _questions(int(battles.question_N.max()) + 1, rounds, seed):
            yield drawn_RQ[:, battles.question_N]
        return
    pair_N, count = battles.pairs[2], len(battles.first_N)
    groups = [np.arange(count)] if by == "row" else [np.flatnonzero(pair_N == p) for p in range(len(battles.pairs[0]))]
    for start in range(0, rounds, CHUNK):
        generators = [np.random.RandomState(seed + number) for number in range(start, min(start + CHUNK, rounds))]
        yield np.array(
            [
                _counted(np.concatenate([own[draw.randint(0, len(own), len(own))] for own in groups]), count)
                for draw in generators
            ]
        )


def _questions(count: int, rounds: int, seed: int) -> Iterator[Floats]:
    """How often each question occurs in each resample, a chunk at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, rounds, CHUNK):
        size = min(CHUNK, rounds - start)
        yield generator.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def _draws(battles: Battles, by: By, rounds: int, seed: int) -> Iterator[tuple[Floats, Floats]]:
    """The sums of pairs for each resample, a chunk at a time."""
    if by != "question":
        for counts_RN in row_counts(battles, by, rounds, seed):
            sums = [battles.sums(count_N) for count_N in counts_RN]
            yield np.array([won for won, _ in sums]), np.array([every for _, every in sums])
        return
    assert battles.question_N is not None
    questions, pairs = int(battles.question_N.max()) + 1, len(battles.pairs[0])
    place_N = battles.question_N * pairs + battles.pairs[2]
    won_QP, all_QP = (
        np.bincount(place_N, weights=values, minlength=questions * pairs).reshape(questions, pairs)
        for values in (battles.wins_N, battles.weight_N)
    )
    for drawn_RQ in _questions(questions, rounds, seed):
        yield drawn_RQ @ won_QP, drawn_RQ @ all_QP


def _counted(drawn_N: Integers, count: int) -> Floats:
    return np.bincount(drawn_N, minlength=count).astype(np.float64)


# --- the fit ----------------------------------------------------------------------------------------------------------


def _solve(battles: Battles, won_RP: Floats, all_RP: Floats) -> Floats:
    """Strengths (R, M) by Newton's method; if every pair includes the baseline, in closed form from the odds of a
    win."""
    if _is_star(battles):
        return _star(battles, won_RP, all_RP)
    return _newton(battles, won_RP, all_RP, np.zeros((len(won_RP), len(battles.models))))


def _inverse(battles: Battles, strength_M: Floats) -> Floats:
    """The inverse (M, M) of the curvature of all rows at these strengths."""
    won_P, all_P = battles.sums()
    _, bend_RP = _slope(battles, won_P[None], all_P[None], strength_M[None])
    return np.linalg.inv(_curvature(battles, bend_RP)[0])


def _resolve(battles: Battles, won_RP: Floats, all_RP: Floats, start_M: Floats, inverse_MM: Floats) -> Floats:
    """Strengths (R, M) of resamples within 1e-6. Starts from the strengths of all rows and steps with the curvature of
    all rows; resamples that do not converge use Newton's method."""
    if _is_star(battles):
        return _star(battles, won_RP, all_RP)
    strength_RM = np.tile(start_M, (len(won_RP), 1))
    open_R = np.arange(len(won_RP))
    for _ in range(STEPS):
        now_RM = strength_RM[open_R]
        step_RM = _slope(battles, won_RP[open_R], all_RP[open_R], now_RM)[0] @ inverse_MM
        strength_RM[open_R] = now_RM + np.clip(step_RM, -1.0, 1.0)
        open_R = open_R[np.abs(step_RM).max(axis=1) > 1e-6]
        if not len(open_R):
            return strength_RM
    begun_RM = np.tile(start_M, (len(open_R), 1))
    strength_RM[open_R] = _newton(battles, won_RP[open_R], all_RP[open_R], begun_RM, resampled=True)
    return strength_RM


def _newton(
    battles: Battles, won_RP: Floats, all_RP: Floats, strength_RM: Floats, *, resampled: bool = False
) -> Floats:
    """Strengths (R, M) by Newton's method from `strength_RM`. With `resampled`, the likelihood may have no maximum: the
    strength of a model that only wins, or that has no battles, grows without end. So the fit stops when the slope is
    negligible."""
    open_R = np.arange(len(won_RP))
    for _ in range(ROUNDS):
        now_RM = strength_RM[open_R]
        slope_RM, bend_RP = _slope(battles, won_RP[open_R], all_RP[open_R], now_RM)
        step_RM = np.linalg.solve(_curvature(battles, bend_RP), slope_RM[..., None])[..., 0]
        strength_RM[open_R] = now_RM + np.clip(step_RM, -2.0, 2.0)
        moving_R = np.abs(step_RM).max(axis=1) > 1e-6  # the next step is quadratically smaller
        if resampled:
            moving_R &= np.abs(slope_RM).max(axis=1) > 1e-9 * all_RP[open_R].sum(axis=1)
        open_R = open_R[moving_R]
        if not len(open_R):
            return strength_RM
    raise StageError(f"Bradley-Terry: the fit of {len(battles.models)} models did not converge in {ROUNDS} rounds")


def _slope(battles: Battles, won_RP: Floats, all_RP: Floats, strength_RM: Floats) -> tuple[Floats, Floats]:
    """(first derivatives (R, M), the curvature of each pair (R, P))."""
    low_P, high_P, _ = battles.pairs
    chance_RP = expit(strength_RM[:, low_P] - strength_RM[:, high_P])
    expected_RP = all_RP * chance_RP
    return _to_models(battles, won_RP - expected_RP), expected_RP * (1 - chance_RP)


def _is_star(battles: Battles) -> bool:
    low_P, high_P, _ = battles.pairs
    return bool(((low_P == battles.baseline) | (high_P == battles.baseline)).all())


def _star(battles: Battles, won_RP: Floats, all_RP: Floats) -> Floats:
    """The log odds of each model's share of the weight, clipped to FAR; 0 for a model without battles in a resample."""
    low_P, high_P, _ = battles.pairs
    other_P = np.where(low_P == battles.baseline, high_P, low_P)
    own_RP = np.where(low_P == battles.baseline, all_RP - won_RP, won_RP)
    with np.errstate(divide="ignore", invalid="ignore"):
        odds_RP = np.log(own_RP) - np.log(all_RP - own_RP)
    strength_RM = np.zeros((len(won_RP), len(battles.models)))
    strength_RM[:, other_P] = np.clip(np.nan_to_num(odds_RP, nan=0.0, posinf=FAR, neginf=-FAR), -FAR, FAR)
    return strength_RM


def _to_models(battles: Battles, values_RP: Floats) -> Floats:
    """Sums values of pairs by model: plus for the lower model of a pair, minus for the higher one. The baseline gets 0,
    because its strength is fixed."""
    low_P, high_P, _ = battles.pairs
    sums_RM = np.zeros((len(values_RP), len(battles.models)))
    for row_M, values_P in zip(sums_RM, values_RP, strict=True):
        row_M += np.bincount(low_P, weights=values_P, minlength=len(row_M))
        row_M -= np.bincount(high_P, weights=values_P, minlength=len(row_M))
    sums_RM[:, battles.baseline] = 0.0
    return sums_RM


def _curvature(battles: Battles, bend_RP: Floats) -> Floats:
    """Minus the second derivatives (R, M, M), from those of pairs. A small value on the diagonal keeps the system
    solvable if models have no battles."""
    low_P, high_P, _ = battles.pairs
    models = np.arange(len(battles.models))
    found_RMM = np.zeros((len(bend_RP), len(models), len(models)))
    found_RMM[:, low_P, high_P] = found_RMM[:, high_P, low_P] = -bend_RP
    found_RMM[:, models, models] = 1e-8 - found_RMM.sum(axis=2)
    found_RMM[:, battles.baseline, :] = found_RMM[:, :, battles.baseline] = 0.0
    found_RMM[:, battles.baseline, battles.baseline] = 1.0
    return found_RMM


def _outside(battles: Battles, won_P: Floats, all_P: Floats) -> Floats:
    """0 for models whose strength is finite; inf, -inf or NaN for the others.

    A strength is finite if a chain of wins (or ties) leads from the model to the baseline and another one back (Ford
    1957, Am. Math. Mon. 64:28).
    """
    low_P, high_P, _ = battles.pairs
    reach_MM = np.eye(len(battles.models), dtype=bool)
    reach_MM[low_P[won_P > 0], high_P[won_P > 0]] = True
    lost_P = all_P - won_P > 1e-12 * all_P
    reach_MM[high_P[lost_P], low_P[lost_P]] = True
    for _ in range(max(1, len(battles.models).bit_length())):  # doubles the length of the chains each time
        reach_MM = (reach_MM.astype(np.float32) @ reach_MM.astype(np.float32)) > 0
    up_M, down_M = reach_MM[:, battles.baseline], reach_MM[battles.baseline]
    return np.select([up_M & down_M, up_M, down_M], [0.0, np.inf, -np.inf], np.nan)


def numbered(values: Sequence[Hashable]) -> Integers:
    """Numbers the values from 0 in the order of their first appearance."""
    places: dict[Hashable, int] = {}
    return np.array([places.setdefault(value, len(places)) for value in values], dtype=np.intp)
