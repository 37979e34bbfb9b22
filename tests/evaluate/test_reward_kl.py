"""Reward against KL as a table: figures computed by hand."""

import math

import numpy as np
import pytest

from togi.core.errors import InputError
from togi.evaluate.benchmarks.reward_kl import BEST, Drawn, frontier_table
from togi.evaluate.statistics import Bootstrap

BASE = np.array([[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 3.0, 5.0], [2.0, 0.0, 1.0, 1.0]])
PROMPTS = ["p", "q", "r"]


def table(**policies: Drawn):
    return frontier_table("reward_kl", "base", BASE, policies, Bootstrap(seed=1, resamples=200), PROMPTS)


def drawn(reward: float, apart=((1.0, 2.0), (3.0, 0.0), (2.0, 4.0))) -> Drawn:
    apart_PK = np.array(apart)
    return Drawn(
        scores_PK=np.full((3, 2), reward) + np.array([[0.1], [0.0], [-0.1]]),
        own_PK=-10.0 + apart_PK,
        base_PK=np.full((3, 2), -10.0),
        tokens_PK=np.array([[4, 6], [5, 5], [10, 10]]),
    )


def test_kl_is_the_mean_over_answers_and_over_tokens():
    cells = table(policy=drawn(2.0)).cells["policy"]
    assert cells["KL (nats)"].value == pytest.approx(12 / 6)
    assert cells["KL (nats per token)"].value == pytest.approx(12 / 40)
    assert cells["reward"].value == pytest.approx(2.0) and cells["reward"].n == 3


def test_the_line_is_the_best_of_n_of_the_base():
    (part,) = table(policy=drawn(2.0)).parts
    assert part.title == BEST and list(part.cells) == ["best of 1", "best of 2", "best of 4"]
    assert part.cells["best of 1"]["reward"].value == pytest.approx(BASE.mean())
    assert part.cells["best of 4"]["reward"].value == pytest.approx(BASE.max(axis=1).mean())
    pairs = [max(row[i], row[j]) for row in BASE for i in range(4) for j in range(i + 1, 4)]
    assert part.cells["best of 2"]["reward"].value == pytest.approx(np.mean(pairs))
    assert part.cells["best of 4"]["KL (nats)"].value == pytest.approx(math.log(4) - 3 / 4)


@pytest.mark.parametrize(("reward", "fewest"), [(1.0, 1), (2.0, 2), (3.3, 4), (9.0, None)])
def test_how_many_answers_of_the_base_are_as_good(reward: float, fewest: int | None):
    found = table(policy=drawn(reward)).cells["policy"]["as good as best of"]
    assert found.value == fewest and (found.note == "more than 4") is (fewest is None)


def test_the_baseline_itself_has_no_kl_and_is_its_own_best_of_1():
    cells = table().cells["base"]
    assert cells["KL (nats)"].value == 0 and cells["as good as best of"].value == 1


def test_one_prompt_has_numbers_without_intervals():
    ones = np.ones((1, 2))
    one = Drawn(scores_PK=ones, own_PK=0 * ones, base_PK=-ones, tokens_PK=ones.astype(int))
    cells = frontier_table("r", "base", BASE[:1], {"policy": one}, Bootstrap(seed=1), ["p"]).cells["policy"]
    assert cells["KL (nats)"].value == 1 and cells["KL (nats)"].low is None


def test_an_answer_that_the_base_rules_out_is_an_error():
    with pytest.raises(InputError, match="1 of 6 answers have no finite"):
        table(policy=drawn(1.0, ((math.inf, 0.0), (0.0, 0.0), (0.0, 0.0))))
