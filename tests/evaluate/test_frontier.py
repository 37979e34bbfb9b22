"""Reward against KL: best of n against a list of all draws, KL against the sum over all answers of a small model."""

from itertools import combinations

import numpy as np
import pytest

from togi.core.errors import InputError
from togi.evaluate.frontier import best_of_n, best_of_n_kl, divergence, doublings


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_draws(n):
    scores = np.random.default_rng(0).normal(size=(4, 5))
    wanted = [np.mean([max(draw) for draw in combinations(row, n)]) for row in scores]
    np.testing.assert_allclose(best_of_n(scores, n), wanted)


@pytest.mark.parametrize("n", [1, 2, 16])
def test_the_kl_of_the_best_of_n_is_that_of_the_highest_of_n_numbers(n):
    """The best of n has density n F^(n-1) relative to the base; F is the rank of the score, uniform from 0 to 1."""
    rank = (np.arange(200_000) + 0.5) / 200_000
    density = n * rank ** (n - 1)
    assert best_of_n_kl(n) == pytest.approx(np.mean(density * np.log(density)), abs=1e-4)


def test_the_kl_of_answers_is_that_of_the_distributions():
    policy, base = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    drawn = np.random.default_rng(1).choice(3, size=20_000, p=policy)
    found = divergence(
        np.log(policy[drawn]).tolist(), np.log(base[drawn]).tolist(), [2] * 20_000, list(range(20_000)), 0.95
    )
    exact = float((policy * np.log(policy / base)).sum())
    assert found.sequence == pytest.approx(exact, abs=0.02)
    assert found.token == pytest.approx(found.sequence / 2)
    assert found.token_interval.low < exact / 2 < found.token_interval.high


def test_kl_is_a_mean_by_prompt_and_by_token_of_all_answers():
    found = divergence([-1.0, -3.0, -2.0, -2.0], [-2.0, -4.0, -2.0, -4.0], [1, 1, 4, 4], ["a", "a", "b", "b"], 0.95)
    np.testing.assert_allclose(found.per_prompt_P, [1.0, 1.0])
    assert (found.sequence, found.token, found.tokens) == (1.0, pytest.approx(0.4), 10)


def test_answers_without_a_finite_probability_are_refused_and_no_tokens_have_no_kl_by_token():
    with pytest.raises(InputError, match="1 of 2 answers have no finite"):
        divergence([-1.0, float("-inf")], [-1.0, -1.0], [1, 1], ["a", "b"], 0.95)
    with pytest.raises(InputError, match="0 of 0"):
        divergence([], [], [], [], 0.95)
    assert divergence([0.0], [0.0], [0], ["a"], 0.95).token is None


@pytest.mark.parametrize("n", [0, 4])
def test_more_than_there_are_cannot_be_drawn(n):
    with pytest.raises(InputError, match="best of n"):
        best_of_n(np.zeros((2, 3)), n)


def test_doublings_end_with_all():
    assert doublings(1) == [1]
    assert doublings(8) == [1, 2, 4, 8]
    assert doublings(6) == [1, 2, 4, 6]
