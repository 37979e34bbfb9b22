"""Agreement and corrected rates, against numbers computed by hand and on human labels of real answers."""

import numpy as np
import pytest
from scipy.stats import binomtest
from stored_verdicts import needs_shared, pandalm_question, pandalm_rows

from togi.core.errors import InputError
from togi.evaluate.benchmarks.corrected import Pairing
from togi.evaluate.calibration import (
    clustered_mean,
    count_tables,
    kappa,
    kappa_interval,
    prediction_powered,
    side,
)
from togi.evaluate.statistics import adjusted_wald


def test_sides():
    assert [side(value) for value in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 0, 1, 2, 2]


def test_kappa_by_hand_and_nothing_where_chance_always_agrees():
    assert kappa([[20, 5], [10, 15]]) == pytest.approx(0.4)
    table = np.array([[44, 5, 1], [7, 20, 3], [9, 5, 6]])
    assert kappa(table) == pytest.approx((0.70 - 0.41) / (1 - 0.41))
    rows = [(i / 2, j / 2) for i in range(3) for j in range(3) for _ in range(table[i, j])]
    judged, human = [one for one, _ in rows], [other for _, other in rows]
    tables = count_tables(judged, human, [f"p{i % 40}" for i in range(100)])
    assert tables.shape == (40, 3, 3) and (tables.sum(0) == table).all()
    value, low, high = kappa_interval(tables, seed=1)
    assert value == kappa(table) and low < value < high and high - low < 0.4
    assert kappa_interval(tables, seed=1) == (value, low, high)
    assert np.isnan(kappa(np.diag([0, 0, 9])))


def test_the_interval_of_kappa_covers():
    """A judge that copies people with probability 0.6 and otherwise picks at random has a true kappa of 0.6."""
    rng, inside = np.random.default_rng(7), 0
    for draw in range(60):
        human = rng.choice([0.0, 0.5, 1.0], 150)
        judged = np.where(rng.random(150) < 0.6, human, rng.choice([0.0, 0.5, 1.0], 150))
        tables = count_tables(judged, human, list(range(150)))
        _, low, high = kappa_interval(tables, seed=draw, resamples=400)
        inside += low <= 0.6 <= high
    assert inside >= 52  # of 60; at 95 % coverage, fewer have a chance under 1 in 100


# --- corrected rates --------------------------------------------------------------------------------------------------


def corrected(truth, judged, shown, prompts):
    rest = np.setdiff1d(np.arange(len(truth)), shown)
    return prediction_powered(
        truth[shown],
        judged[shown],
        judged[rest],
        prompts_L=[prompts[i] for i in shown],
        prompts_U=[prompts[i] for i in rest],
    )


def test_a_judge_that_is_always_wrong_by_the_same_is_corrected_and_a_useless_one_is_not_used():
    rng = np.random.default_rng(5)
    truth = (rng.random(400) < 0.3).astype(float)
    prompts = [str(i) for i in range(400)]
    shown = rng.permutation(400)[:100]
    kind = corrected(truth, np.clip(truth + 0.4, 0, 1), shown, prompts)  # sees all, but grades too high
    people = corrected(truth, np.zeros(400), shown, prompts)  # no information: the labels alone count
    assert people.weight == 0 and people.mean == pytest.approx(truth[shown].mean())
    assert kind.weight > 0.5 and kind.labels == 100
    assert abs(kind.mean - truth.mean()) < abs(np.clip(truth + 0.4, 0, 1).mean() - truth.mean()) / 3
    assert kind.high - kind.low < 0.7 * (people.high - people.low)


def test_labels_that_are_all_alike_still_leave_a_width():
    found = prediction_powered([1.0] * 20, [1.0] * 20, [], prompts_L=list(range(20)), prompts_U=[])
    wilsons = binomtest(20, 20).proportion_ci(0.95, method="wilson")
    assert (found.mean, found.high) == (1.0, 1.0) and found.low == pytest.approx(wilsons.low)
    with pytest.raises(InputError, match="at least 2 prompts are needed"):
        prediction_powered([1.0, 0.0], [1.0, 0.0], [1.0], prompts_L=["a", "a"], prompts_U=["b"])


def test_a_judge_with_the_full_weight_has_the_interval_of_a_difference_of_shares_beside_its_own():
    """With very many unlabelled rows and a judge that is always right, w is 1: its share, and 40 differences of 0."""
    truth = [1.0, 0.0] * 20
    found = prediction_powered(
        truth, truth, [1.0, 0.0] * 50_000, prompts_L=list(range(40)), prompts_U=list(range(40, 100_040))
    )
    alone = adjusted_wald([0.0] * 40)
    assert found.weight > 0.99 and found.mean == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.5 + alone.low, 0.5 + alone.high), abs=0.01)


def test_labels_of_one_question_do_not_narrow_the_interval():
    rng = np.random.default_rng(4)
    truth = (rng.random(60) < 0.3).astype(float)
    once = clustered_mean(truth, list(range(60)))
    thrice = clustered_mean(np.repeat(truth, 3), np.repeat(np.arange(60), 3).tolist())
    assert (thrice.mean, thrice.low, thrice.high) == pytest.approx((once.mean, once.low, once.high), abs=2e-3)


@pytest.mark.parametrize("accuracy", [0.85, 0.97])
@pytest.mark.parametrize("rate", [0.02, 0.1])
@pytest.mark.parametrize("labels", [30, 100])
def test_intervals_of_rare_rates_cover(labels, rate, accuracy):
    """300 answers, of which people labelled some; the judge is right with probability `accuracy`."""
    rng, people, better, draws = np.random.default_rng(labels), 0, 0, 250
    for _ in range(draws):
        truth = (rng.random(300) < rate).astype(float)
        judged = np.where(rng.random(300) < accuracy, truth, 1 - truth)
        shown = [each if place < labels else None for place, each in enumerate(truth.tolist())]
        alone, found = Pairing(questions=range(300), judged=judged.tolist(), human=shown).cells(0.95)
        people += alone.low <= rate <= alone.high
        better += found.low <= rate <= found.high
    assert people >= 0.93 * draws and better >= 0.93 * draws


@needs_shared
def test_on_real_labels_the_interval_covers_what_people_say_of_all_and_is_narrower_than_labels_alone():
    """PandaLM: people and GPT-3.5 judged all 999 pairs; 200 human labels are shown, drawn anew 300 times."""
    rows = [row for row in pandalm_rows() if row["gpt"] != "garbage"]
    value = {0: 0.5, 1: 1.0, 2: 0.0, "1": 1.0, "2": 0.0, "Tie": 0.5}
    truth = np.array([np.mean([value[row[f"annotator{i}"]] for i in (1, 2, 3)]) for row in rows])
    judged = np.array([value[row["gpt"]] for row in rows])
    prompts = [pandalm_question(row) for row in rows]
    rng, inside, widths = np.random.default_rng(11), 0, []
    for _ in range(300):
        shown = rng.permutation(len(rows))[:200]
        found = corrected(truth, judged, shown, prompts)
        alone = corrected(truth, np.zeros(len(rows)), shown, prompts)
        inside += found.low <= truth.mean() <= found.high
        widths.append((found.high - found.low) / (alone.high - alone.low))
    assert inside >= 276  # 92 % of 300; at 95 % coverage, fewer have a chance under 2 in 100
    assert np.mean(widths) < 0.95
