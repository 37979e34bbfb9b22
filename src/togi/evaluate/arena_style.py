"""Style control: win rates without the effect of length and markup, by arena-hard-auto's two regressions.

`v0.1` (published until 2024-09): features (a - b) / (a + b + 1) of tokens, headers, lists and bold, standardised over
the battles; each battle counts twice, and scikit-learn's default ridge (C = 1) penalises models and features. `v2`:
(a - b) / (a + b) of tokens, and (a - b) / (a + b + 1) of markup per token; no ridge. Both give the win rate at the mean
style difference. We compute the exact maximum of the likelihood: v2's own fit stops early, which changes win rates in
the third decimal. For length or markup alone, v2's own code uses the wrong columns; ours uses the right ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.optimize import linprog
from scipy.special import expit

from togi.core.errors import InputError, StageError
from togi.evaluate.arena import Arena, Battle, Draw, Rows, find_baseline, numbered_battles, ranked
from togi.evaluate.markdown import Style
from togi.evaluate.statistics import Battles, Floats, Regression, bradley_terry, row_counts

Control = Literal["length", "markdown", "both"]
Styles = Mapping[str, Mapping[str, Style]]
"""The style of each model's answer to each question."""
FEATURES = {
    "length": ("length",),
    "markdown": ("headers", "lists", "bold"),
    "both": ("length", "headers", "lists", "bold"),
}
DOUBTFUL = 5.0  # log odds per standard deviation: a larger effect is checked for being finite


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleControl:
    """The controlled features, the rules, and the styles of answers."""

    control: Control
    rules: Literal["v0.1", "v2"]
    styles: Styles


def rank_controlled(rows: Rows, control: StyleControl, draw: Draw, *, baseline: str | None = None) -> Arena:
    """The leaderboard under a style control, together with each model's plain win rate.

    InputError for battles without question ids, for a battle whose answers have no style, and if no feature varies.
    """
    battles = numbered_battles(rows.battles, find_baseline(rows, baseline))
    draw = draw.of(battles)
    names, fit, found_K = _fitted(rows.battles, battles, control)
    plain_M = bradley_terry(battles).strength_M
    strength_M = _finite_ones(battles, found_K, plain_M, control.rules)
    rates_RM = _resamples(battles, fit, found_K, control, draw)
    influence_QM = _by_question(battles, _strengths(battles, fit.influence(found_K), control.rules), draw)
    found = ranked(rows, battles, draw, strength_M, (rates_RM, influence_QM))
    plain = dict(zip(battles.models, (100 * expit(plain_M)).tolist(), strict=True))
    known = {
        model: replace(one, uncontrolled=None if np.isnan(plain[model]) else plain[model])
        for model, one in found.standings.items()
    }
    style = dict(zip(names, found_K[-len(names) :].tolist(), strict=True))
    return replace(found, standings=known, style=style)


def controlled_strengths(control: StyleControl) -> Callable[[Sequence[Battle], Battles], Floats | None]:
    """A fit for `with_leaks` under this style control. It returns None if the battles do not determine it."""

    def fit(rows: Sequence[Battle], battles: Battles) -> Floats | None:
        try:
            found_K = _fitted(rows, battles, control)[2]
        except (InputError, StageError):
            return None
        return _finite_ones(battles, found_K, bradley_terry(battles).strength_M, control.rules)

    return fit


def _fitted(rows: Sequence[Battle], battles: Battles, control: StyleControl) -> tuple[list[str], Regression, Floats]:
    """(names of the features that vary, the regression, its coefficients)."""
    names, style_NF = _features(rows, control)
    fit = _regression(battles, style_NF, control.rules)
    try:
        found_K = fit.fit()
        doubtful = bool(np.abs(found_K[-len(names) :]).max() > DOUBTFUL)
    except StageError:
        if not _style_decides(fit, len(names)):
            raise
        raise _decided(control) from None
    if doubtful and fit.penalty == 0 and _style_decides(fit, len(names)):
        raise _decided(control)
    return names, fit, found_K


def _decided(control: StyleControl) -> InputError:
    return InputError(
        f"style control ({control.control}): style, alone or with the models, decides the battles. None contradicts "
        "it, so its effect has no finite value; add battles, or use the rules v0.1, whose penalty keeps it finite"
    )


def _style_decides(fit: Regression, features: int) -> bool:
    """Whether the models and the last `features` columns together agree with battles that the models alone do not
    decide, and contradict none. The likelihood then has no maximum (Albert and Anderson 1984, Biometrika 71:1)."""
    won_N = np.sign(fit.share_N - 0.5)
    margins = []
    for x_NK in (fit.x_NK[:, :-features], fit.x_NK):
        margin_NK, tied_NK = (x_NK * won_N[:, None])[won_N != 0], x_NK[won_N == 0]
        found = linprog(
            -margin_NK.sum(axis=0),
            A_ub=-margin_NK,
            b_ub=np.zeros(len(margin_NK)),
            A_eq=tied_NK if len(tied_NK) else None,
            b_eq=np.zeros(len(tied_NK)) if len(tied_NK) else None,
            bounds=(-1, 1),
        )
        margins.append(-found.fun if found.status == 0 else 0.0)
    return bool(margins[1] > margins[0] + 1e-6)


def _finite_ones(battles: Battles, found_K: Floats, plain_M: Floats, rules: str) -> Floats:
    """The controlled strengths; a model without a finite plain strength keeps that one."""
    return np.where(np.isfinite(plain_M), _strengths(battles, found_K[None], rules)[0], plain_M)


def _regression(battles: Battles, style_NF: Floats, rules: str) -> Regression:
    """The regression on models, then features. Under v0.1 every model has a column, in units of log 10; under v2 the
    baseline's column is 0."""
    rows, twice = np.arange(len(battles.first_N)), rules == "v0.1"
    sides_NM = np.zeros((len(rows), len(battles.models)))
    sides_NM[rows, battles.first_N] = _unit(rules)
    sides_NM[rows, battles.second_N] = -_unit(rules)
    if not twice:
        sides_NM[:, battles.baseline] = 0.0
    return Regression(
        x_NK=np.concatenate([sides_NM, style_NF], axis=1),
        share_N=battles.share_N,
        weight_N=battles.weight_N * (2.0 if twice else 1.0),
        penalty=1.0 if twice else 0.0,
    )


def _unit(rules: str) -> float:
    return float(np.log(10)) if rules == "v0.1" else 1.0


def _strengths(battles: Battles, coef_RK: Floats, rules: str) -> Floats:
    """The strengths of models (R, M), the baseline at 0."""
    models_RM = _unit(rules) * coef_RK[:, : len(battles.models)]
    return models_RM - models_RM[:, [battles.baseline]]


def _resamples(battles: Battles, fit: Regression, found_K: Floats, control: StyleControl, draw: Draw) -> Floats:
    """The win rates of all resamples (R, M). InputError if one has no finite effect of style."""
    counts = row_counts(battles, draw.by, draw.rounds, draw.seed)
    try:
        return np.concatenate([_rates(battles, fit, counts_RN, found_K, control.rules) for counts_RN in counts])
    except StageError:
        raise InputError(
            f"style control ({control.control}): the battles are too few for an interval: in some resamples none "
            "contradicts the style, so its effect has no finite value; the rules v0.1 keep it finite with a penalty"
        ) from None


def _rates(battles: Battles, fit: Regression, counts_RN: Floats, found_K: Floats, rules: str) -> Floats:
    """The win rates of resamples (R, M); NaN for a model without battles in a resample."""
    rates_RM = expit(_strengths(battles, fit.resampled(counts_RN, found_K), rules))
    rates_RM[battles.absent(np.array([battles.sums(count_N)[1] for count_N in counts_RN]))] = np.nan
    return rates_RM


def _by_question(battles: Battles, influence_NM: Floats, draw: Draw) -> Floats:
    if draw.by != "question":
        return influence_NM
    assert battles.question_N is not None
    found_QM = np.zeros((int(battles.question_N.max()) + 1, influence_NM.shape[1]))
    np.add.at(found_QM, battles.question_N, influence_NM)
    return found_QM


# --- features ---------------------------------------------------------------------------------------------------------


def _features(battles: Sequence[Battle], control: StyleControl) -> tuple[list[str], Floats]:
    """(names of the features that vary, their standardised values (N, F)) for model_a against model_b."""
    first_N4, second_N4 = (
        np.array([_numbers(control.styles, model, battle) for model, battle in pairs])
        for pairs in (
            [(battle.model_a, battle) for battle in battles],
            [(battle.model_b, battle) for battle in battles],
        )
    )
    if control.rules == "v0.1":
        value_N4 = (first_N4 - second_N4) / (first_N4 + second_N4 + 1)
    else:
        dense = [_dense(side_N4) for side_N4 in (first_N4, second_N4)]
        value_N4 = (dense[0] - dense[1]) / (dense[0] + dense[1] + 1)
        tokens_N = first_N4[:, 0] + second_N4[:, 0]
        value_N4[:, 0] = (first_N4[:, 0] - second_N4[:, 0]) / np.maximum(tokens_N, 1e-12)
    wanted = [FEATURES["both"].index(name) for name in FEATURES[control.control]]
    deviation_4 = value_N4.std(axis=0, ddof=0 if control.rules == "v0.1" or len(battles) < 2 else 1)
    varied = [place for place in wanted if deviation_4[place] > 1e-12]
    if not varied:
        raise InputError(
            f"style control ({control.control}): the answers of all battles differ in style by the same amount"
        )
    value_NF = ((value_N4 - value_N4.mean(axis=0)) / np.where(deviation_4 > 0, deviation_4, 1.0))[:, varied]
    return [FEATURES["both"][place] for place in varied], value_NF


def _dense(side_N4: Floats) -> Floats:
    """Markup per token."""
    return side_N4 / (side_N4[:, [0]] + 1)


def _numbers(styles: Styles, model: str, battle: Battle) -> tuple[float, float, float, float]:
    if model not in styles:
        raise InputError(f"answers: no answers by {model}; found {', '.join(list(styles)[:12])}")
    if battle.question is None:
        raise InputError("style control: battles have no question_id, so their answers cannot be found")
    style = styles[model].get(str(battle.question))
    if style is None:
        raise InputError(f"answers: question {battle.question}: no answer by {model}")
    return style.tokens, style.headers, style.lists, style.bold
