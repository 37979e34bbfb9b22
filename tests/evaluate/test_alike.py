"""Measures of embeddings, checked against explicit pairs and against leaving each prompt out."""

from itertools import combinations, product

import numpy as np
import pytest

from togi.core.errors import InputError
from togi.evaluate.alike import (
    answer_entropy,
    homogenisation,
    likeness,
    spread_over,
    spread_within,
    unit_vectors,
    vendi,
    vendi_within,
)

PROMPTS, ANSWERS, WIDTH = 7, 4, 5


def _vectors(seed: int, *, empty: bool = True) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(PROMPTS * ANSWERS, WIDTH)) + 0.4
    if empty:
        rows[[1, 8, 9, 10, 12, 13, 14, 15]] = 0  # prompt 2 has one answer left, prompt 3 none
    return unit_vectors(rows, ANSWERS)


def _rows(group: np.ndarray) -> list[np.ndarray]:
    return [row for row in group if row.any()]


def _score(rows) -> float:
    """The Vendi score as its authors compute it, from the whole kernel."""
    rows = np.array(rows)
    values = np.linalg.eigvalsh(rows @ rows.T / len(rows))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def test_spread_and_vendi_of_a_prompt_equal_its_pairs_and_its_kernel():
    vectors = _vectors(0)
    spread = [np.mean([1 - a @ b for a, b in combinations(_rows(g), 2)] or [np.nan]) for g in vectors]
    np.testing.assert_allclose(spread_within(vectors), spread)
    wanted = [_score(_rows(g)) if len(_rows(g)) > 1 else np.nan for g in vectors]
    np.testing.assert_allclose(vendi_within(vectors), wanted)


def test_likeness_of_two_models_equals_its_pairs():
    ours, theirs = _vectors(0), _vectors(1, empty=False)
    pairs = [product(_rows(x), _rows(y)) for x, y in zip(ours, theirs, strict=True)]
    wanted = [np.mean([a @ b for a, b in own] or [np.nan]) for own in pairs]
    np.testing.assert_allclose(likeness(ours, theirs), wanted)


def _across(vectors) -> float:
    return np.mean([a @ b for one, two in combinations(vectors, 2) for a, b in product(_rows(one), _rows(two))])


def test_homogenisation_equals_the_pairs_of_different_prompts_and_leaves_each_prompt_out():
    vectors = np.delete(_vectors(2), 3, axis=0)
    found = homogenisation(vectors)
    assert found.value == pytest.approx(_across(vectors))
    left = [_across(np.delete(vectors, p, axis=0)) for p in range(len(vectors))]
    np.testing.assert_allclose(found.without_P, left)
    assert homogenisation(vectors[:1]) is None
    two = homogenisation(vectors[:2])
    assert two.value == pytest.approx(_across(vectors[:2])) and np.ptp(two.pseudo_P) == 0


@pytest.mark.parametrize("count", [4, 40], ids=["by the kernel", "by the gram"])
def test_vendi_equals_the_whole_kernel_either_way(count):
    rows = unit_vectors(np.random.default_rng(1).normal(size=(count, 9)), 1)[:, 0]
    score, added = vendi(rows)
    assert score == pytest.approx(_score(rows))
    assert added.sum() == pytest.approx(0, abs=1e-9)


def test_what_answers_add_to_vendi_is_what_leaving_them_out_takes_away():
    rows = unit_vectors(np.random.default_rng(1).normal(size=(150, 6)) * [3, 2, 1, 1, 0.5, 0.2], 1)[:, 0]
    added = vendi(rows)[1]
    left = np.array([_score(np.delete(rows, i, axis=0)) for i in range(len(rows))])
    exact = (len(rows) - 1) * (left.mean() - left)
    np.testing.assert_allclose(added, exact, atol=0.03 * np.abs(exact).max())


def test_vendi_counts_different_answers():
    apart = np.eye(4)
    assert vendi(apart)[0] == pytest.approx(4)
    assert vendi(np.repeat(apart[:1], 5, axis=0))[0] == pytest.approx(1)
    assert vendi_within(np.array([[apart[0], apart[0], apart[1], apart[1]]]))[0] == pytest.approx(2)


def test_entropy_counts_answers_that_differ_in_more_than_case_and_punctuation():
    texts = ["Yes.", "yes", "No", "no!", "a", "a", "a", "a", "a", "b", "c", "d", "", "", "", "x"]
    np.testing.assert_allclose(answer_entropy(texts, 4), [1.0, 0.0, 2.0, 0.8112781244591328])
    assert np.isnan(answer_entropy(["a", "b"], 1)).all()


def test_spread_over_wordings_takes_answers_to_two_wordings_of_one_question():
    vectors = _vectors(4)
    names = ["x", "y", "x", "x", "y", "z", "y"]
    found = spread_over(vectors, names)
    for first, name in ((0, "x"), (1, "y")):
        groups = [_rows(vectors[p]) for p, own in enumerate(names) if own == name]
        pairs = [1 - a @ b for one, two in combinations(groups, 2) for a, b in product(one, two)]
        assert found[first] == pytest.approx(np.mean(pairs))
    assert np.isnan(found[[2, 3, 4, 5, 6]]).all()


@pytest.mark.parametrize("rows", [np.ones(4), np.ones((3, 2)), np.full((4, 2), np.nan)], ids=["flat", "odd", "nan"])
def test_what_are_no_embeddings_is_refused(rows):
    with pytest.raises(InputError, match="embeddings"):
        unit_vectors(rows, 2)
