"""Two models question by question, against numbers computed by hand."""

import math

import pytest

from togi.evaluate.comparison import compare, noise_floor, unlike
from togi.evaluate.statistics import Bootstrap, effect_size
from togi.evaluate.table import Metric

DRAWS = Bootstrap(seed=1, resamples=500)
GRADE = Metric(name="grade", higher_is_better=True)
SHARE = Metric(name="right", higher_is_better=True, share=True)


def answers(*values: float | None) -> dict[str, tuple[str, float | None]]:
    return {f"q{place}": (f"q{place}", value) for place, value in enumerate(values)}


def test_the_difference_is_of_questions_that_both_have():
    found = compare(GRADE, answers(1.0, 2.0, 3.0, None, 9.0), answers(2.0, 4.0, 3.0, 5.0), DRAWS)
    assert (found.base.value, found.other.value, found.difference.value) == (2.0, 3.0, 1.0)
    assert (found.difference.n, found.alone) == (3, 2)
    assert found.effect == effect_size([1.0, 2.0, 3.0], [2.0, 4.0, 3.0]) and found.test is None


@pytest.mark.parametrize(
    ("higher", "step", "verdict"),
    [(True, -1, "worse"), (True, 1, "better"), (False, 1, "worse"), (False, -1, "better"), (None, 1, "changed")],
)
def test_worse_is_an_interval_on_the_wrong_side_of_nothing(higher: bool | None, step: int, verdict: str):
    metric = Metric(name="m", higher_is_better=higher)
    base = [float(place % 7) for place in range(40)]
    other = [value + step * (1 + place % 3) for place, value in enumerate(base)]
    assert compare(metric, answers(*base), answers(*other), DRAWS).verdict == verdict
    assert compare(metric, answers(*base), answers(*reversed(base)), DRAWS).verdict == "unclear"


def test_shares_have_mcnemars_test():
    found = compare(SHARE, answers(1.0, 1.0, 1.0, 0.0, 1.0), answers(0.0, 0.0, 0.5, 1.0, 1.0), DRAWS)
    assert found.test is not None and (found.test.only_first, found.test.only_second) == (3, 1)
    assert found.test.p == pytest.approx(2 * (1 + 4) / 16)


@pytest.mark.parametrize(
    ("one", "two", "n"),
    [(answers(), answers(), 0), (answers(1.0), answers(None), 0), (answers(1.0), answers(0.0), 1)],
    ids=["nothing", "nothing in common", "one question"],
)
def test_what_is_not_defined_is_nothing(one, two, n: int):
    found = compare(SHARE, one, two, DRAWS)
    assert (found.difference.n, found.difference.low, found.effect, found.verdict) == (n, None, None, "unclear")


def test_noise_is_how_far_two_askings_of_the_same_lie_apart():
    names, owners = ["p.0", "p.1", "q.0", "q.1"], ["p", "p", "q", "q"]
    values = [1.0, 3.0, 2.0, 4.0]  # each question has a variance of 2, its mean of two one of 1
    found = noise_floor((values, values), names, owners, 0.95)
    assert found == pytest.approx(1.959964 * math.sqrt(2 * 1 / 2))
    assert noise_floor((values, values), ["a", "b", "c", "d"], owners, 0.95) is None, "pairs that share a prompt"
    rounds = ["p/1/1", "p/1/2", "p/2/1", "p/2/2"]
    assert noise_floor((values, values), rounds, ["p"] * 4, 0.95) == pytest.approx(found), "turns are questions apart"


def test_parts_of_manifests_that_differ_are_named():
    one = {"seed": 1, "asked": {"answers": {"questions": "a", "sampling": {"temperature": 0.0}}}}
    other = {"seed": 1, "asked": {"answers": {"questions": "a", "sampling": {"temperature": 1.0}}}, "judge": "j"}
    assert unlike(one, one) == []
    assert unlike(one, other) == ["asked.answers.sampling.temperature: 0.0 and 1.0", "judge: nothing and j"]


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_few_lost_questions_of_a_hundred_are_not_worse(lost):
    """McNemar's exact p is 0.25 for three lost questions and none gained; a bootstrap would exclude zero."""
    right = [float(place < 70) for place in range(100)]
    fewer = [0.0] * lost + right[lost:]
    assert compare(SHARE, answers(*right), answers(*fewer), DRAWS).verdict == "unclear"
