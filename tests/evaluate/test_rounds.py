"""Means and shares over rounds of the same questions."""

import numpy as np
import pytest

from togi.core.errors import InputError
from togi.evaluate.statistics import cluster_mean, mean_of_rounds, round_means, share_of_rounds, wilson


def test_one_round_is_the_mean_by_question():
    values = np.random.default_rng(1).integers(1, 11, 40)
    questions = [n // 2 for n in range(40)]
    assert mean_of_rounds(values, [1] * 40, questions) == cluster_mean(values, questions)


def test_every_round_weighs_the_same_however_many_grades_it_has():
    values, rounds, questions = [2, 4, 6, 10], [1, 1, 1, 2], [0, 1, 2, 0]
    assert round_means(values, rounds) == [4, 10]
    found = mean_of_rounds(values, rounds, questions)
    assert found is not None and (found.mean, found.n) == (7, 3)
    assert found.low < 7 < found.high


def test_rounds_that_repeat_the_answers_do_not_narrow_an_interval():
    values = np.random.default_rng(2).integers(1, 11, 30)
    once = mean_of_rounds(values, [1] * 30, range(30))
    thrice = mean_of_rounds(np.tile(values, 3), np.repeat([1, 2, 3], 30).tolist(), [*range(30)] * 3)
    assert once is not None and thrice is not None
    assert (once.mean, once.low, once.high) == pytest.approx((thrice.mean, thrice.low, thrice.high))
    hits = (values > 8).astype(float)
    alone = share_of_rounds(hits, [1] * 30, range(30))
    repeated = share_of_rounds(np.tile(hits, 3), np.repeat([1, 2, 3], 30).tolist(), [*range(30)] * 3)
    assert (alone.low, alone.high) == pytest.approx((repeated.low, repeated.high))
    assert alone == wilson(hits.sum(), 30)


def test_a_share_of_none_or_all_has_width():
    for value in (0.0, 1.0):
        found = share_of_rounds([value] * 60, [1, 2] * 30, [n // 2 for n in range(60)])
        assert found == wilson(30 * value, 30)


def test_what_says_nothing_of_its_spread_has_no_interval_and_what_is_not_there_is_refused():
    assert mean_of_rounds([7.0], [1], ["q"]) is None
    assert mean_of_rounds([7.0, 7.0], [1, 1], ["q", "r"]) is None
    assert round_means([], []) == []
    with pytest.raises(InputError, match="at least one row"):
        share_of_rounds([], [], [])
    with pytest.raises(InputError, match="2 values but 1 names"):
        mean_of_rounds([1.0, 2.0], [1], ["q", "r"])


@pytest.mark.parametrize("spread", ["questions", "answers"])
@pytest.mark.parametrize("share", [0.03, 0.3])
def test_intervals_of_three_rounds_hold_the_truth(spread, share):
    """2,000 draws of 100 questions: rounds that agree on each question, and independent rounds."""
    generator = np.random.default_rng(5)
    size = (2000, 1 if spread == "questions" else 3, 100)
    hits = np.broadcast_to(generator.random(size) < share, (2000, 3, 100)).astype(float)
    rounds, questions = np.repeat([1, 2, 3], 100).tolist(), [*range(100)] * 3
    inside = 0
    for drawn in hits:
        found = share_of_rounds(drawn.ravel(), rounds, questions)
        inside += found.low <= share <= found.high
    assert inside / 2000 >= 0.93
