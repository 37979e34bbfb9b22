"""Bradley-Terry: against stored numbers and three libraries, and models without a finite strength."""

import choix
import evalica
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from stored import load

from togi.core.errors import InputError
from togi.evaluate.statistics import Battles, bradley_terry, influence, resampled

SMALL = load("bt_small.json")
SHARES = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5}


def battles(rows, baseline="A", questions=None):
    models = list(dict.fromkeys(row[side] for row in rows for side in ("model_a", "model_b")))
    return Battles(
        models=tuple(models),
        baseline=models.index(baseline),
        first_N=np.array([models.index(row["model_a"]) for row in rows], dtype=np.intp),
        second_N=np.array([models.index(row["model_b"]) for row in rows], dtype=np.intp),
        share_N=np.array([SHARES[row["winner"]] for row in rows]),
        weight_N=np.array([2 * row.get("answer_len_delta", 0.5) for row in rows]),
        question_N=np.arange(len(rows)) if questions is None else np.array(questions),
    )


def row(one, other, winner):
    return {"model_a": one, "model_b": other, "winner": winner}


def drawn(count, models, seed, star):
    """Battles of `models` models with evenly spaced strengths; with `star`, all battles are against the first model."""
    generator = np.random.default_rng(seed)
    first = np.zeros(count, dtype=int) if star else generator.integers(models, size=count)
    second = (first + generator.integers(1, models, size=count)) % models
    chance = 1 / (1 + np.exp(0.2 * (second - first)))
    winners = np.where(
        generator.random(count) < 0.15, "tie", np.where(generator.random(count) < chance, "model_a", "model_b")
    )
    return [row(f"m{a}", f"m{b}", w) for a, b, w in zip(first, second, winners, strict=True)]


@pytest.mark.parametrize("case", ["elo_logistic_mle_anchor_A_1000", "elo_mm_anchor_A"])
def test_strengths_are_those_of_the_stored_fits(case):
    fit = bradley_terry(battles(SMALL["battles"]))
    assert dict(zip(fit.models, fit.elo_M, strict=True)) == pytest.approx(SMALL[case], abs=1e-6)


def test_weighted_strengths_are_those_of_the_stored_fit():
    fit = bradley_terry(battles(SMALL["weighted"]["battles"]))
    assert dict(zip(fit.models, fit.elo_M, strict=True)) == pytest.approx(SMALL["weighted"]["elo_anchor_A"], abs=1e-6)


@pytest.mark.parametrize("star", [True, False])
def test_three_libraries_agree(star):
    rows = drawn(2000, 6, seed=1, star=star)
    ours = bradley_terry(battles(rows, "m0"))
    for theirs in (_sklearn(rows, ours.models), _choix(rows, ours.models), _evalica(rows, ours.models)):
        assert ours.strength_M == pytest.approx(theirs - theirs[ours.models.index("m0")], abs=1e-6)


def _halves(rows):
    """(winner, loser, weight) of each row; a tie is half a win for both."""
    for each in rows:
        pair = (each["model_a"], each["model_b"])
        if each["winner"] == "tie":
            yield from ((*pair, 0.5), (*pair[::-1], 0.5))
        else:
            yield (*(pair if each["winner"] == "model_a" else pair[::-1]), 1.0)


def _sklearn(rows, models):
    parts = list(_halves(rows))
    features = np.zeros((2 * len(parts), len(models)))
    for place, (winner, loser, _) in enumerate(parts):
        features[2 * place, [models.index(winner), models.index(loser)]] = 1, -1
        features[2 * place + 1] = -features[2 * place]
    weights = np.repeat([weight for *_, weight in parts], 2)
    # without the first model's column the solution is unique
    fit = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-12, solver="newton-cg", max_iter=1000)
    fit.fit(features[:, 1:], np.tile([1, 0], len(parts)), sample_weight=weights)
    return np.concatenate([[0.0], fit.coef_[0]])


def _choix(rows, models):
    parts = [
        (models.index(won), models.index(lost)) for won, lost, weight in _halves(rows) for _ in range(int(2 * weight))
    ]
    return choix.opt_pairwise(len(models), parts, tol=1e-12)


def _evalica(rows, models):
    winners = {"model_a": evalica.Winner.X, "model_b": evalica.Winner.Y, "tie": evalica.Winner.Draw}
    found = evalica.bradley_terry(
        pd.Series([each["model_a"] for each in rows]),
        pd.Series([each["model_b"] for each in rows]),
        pd.Series([winners[each["winner"]] for each in rows]),
        tolerance=1e-13,
        limit=10_000,
    )
    return np.log(found.scores.loc[list(models)].to_numpy())


def test_a_model_that_only_wins_is_certain_and_the_others_are_as_without_it():
    rows = [*SMALL["battles"], row("E", "B", "model_a"), row("C", "E", "model_b"), row("F", "A", "model_b")]
    fit = bradley_terry(battles(rows))
    assert dict(zip(fit.models[:4], fit.elo_M[:4], strict=True)) == pytest.approx(SMALL["elo_mm_anchor_A"], abs=1e-6)
    assert list(fit.win_rate_M[4:]) == [1.0, 0.0]
    assert list(fit.strength_M[4:]) == [np.inf, -np.inf]


def test_a_model_that_nothing_connects_has_no_strength():
    fit = bradley_terry(battles([*SMALL["battles"], row("E", "F", "tie")]))
    assert np.isnan(fit.strength_M[4:]).all() and np.isfinite(fit.strength_M[:4]).all()


def test_no_battles_are_refused():
    with pytest.raises(InputError, match="none is left"):
        none = np.array([], dtype=np.intp)
        bradley_terry(
            Battles(models=("A",), baseline=0, first_N=none, second_N=none, share_N=none * 1.0, weight_N=none * 1.0)
        )


@pytest.mark.parametrize("star", [True, False])
def test_rows_are_drawn_as_pandas_draws_them(star):
    rows = drawn(600, 4, seed=2, star=star)
    frame = pd.DataFrame(rows)
    rates, _ = resampled(battles(rows, "m0"), by="row", rounds=3, seed=0)
    for round_ in range(3):
        again = frame.sample(frac=1.0, replace=True, random_state=round_).to_dict("records")
        fit = bradley_terry(battles(again, "m0"))
        expected = dict(zip(fit.models, fit.win_rate_M, strict=True))
        ours = dict(zip(battles(rows, "m0").models, rates[round_], strict=True))
        assert ours == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("star", [True, False])
def test_influence_is_what_leaving_a_question_out_changes_to_first_order(star):
    rows = drawn(4000, 4, seed=3, star=star)
    questions = np.arange(4000) % 400
    whole = battles(rows, "m0", questions)
    all_of_it = bradley_terry(whole)
    added = influence(whole, "question")
    for question in (0, 7, 399):
        kept = [each for each, own in zip(rows, questions, strict=True) if own != question]
        fit = bradley_terry(battles(kept, "m0"))
        left = np.array([fit.strength_M[fit.models.index(name)] for name in whole.models])
        assert all_of_it.strength_M - left == pytest.approx(added[question], abs=1e-3)


def test_whole_questions_are_drawn():
    rows = [row("A", "B", "model_a")] * 50 + [row("A", "B", "model_b")] * 50
    by_row, _ = resampled(battles(rows), by="row", rounds=200, seed=1)
    one_each, _ = resampled(battles(rows, questions=np.arange(100) % 50), by="question", rounds=200, seed=1)
    in_two, _ = resampled(battles(rows, questions=np.arange(100) // 50), by="question", rounds=200, seed=1)
    assert one_each[:, 1].std() == 0.0  # each question has one win for each side
    assert 0.03 < by_row[:, 1].std() < 0.07 < in_two[:, 1].std()
