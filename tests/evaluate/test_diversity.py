"""Diversity: against sacrebleu and against leaving each answer out by hand."""

import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from togi.core.errors import InputError
from togi.evaluate.distinct import units_of
from togi.evaluate.diversity import Texts, dispersion, distinct, diversity_rows, self_bleu
from togi.evaluate.statistics import Bootstrap

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "mat,",
    "rug.",
    "quickly",
    "it's",
    "and",
    "then",
    "home",
]


def _sentences(count, seed, words=WORDS, joiner=" "):
    drawn = random.Random(seed)
    return [joiner.join(drawn.choices(words, k=drawn.randint(1, 14))) for _ in range(count)]


def _by_sacrebleu(texts, language):
    bleu = BLEU(effective_order=True, tokenize="char" if language == "ja" else "13a")
    return np.mean([bleu.sentence_score(t, texts[:i] + texts[i + 1 :]).score for i, t in enumerate(texts)])


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("seed", [0, 1])
def test_self_bleu_and_every_value_with_one_left_out_equal_sacrebleu(language, seed):
    texts = _sentences(12, seed) if language == "en" else _sentences(12, seed, list("猫が犬とあるくのは楽しい。"), "")
    texts[3] = texts[7]
    found = self_bleu(texts, units_of(language))
    assert found.value == pytest.approx(_by_sacrebleu(texts, language), abs=1e-9)
    expected = [_by_sacrebleu(texts[:i] + texts[i + 1 :], language) for i in range(len(texts))]
    np.testing.assert_allclose(found.without_P, expected, atol=1e-9)


def test_empty_answers_have_a_self_bleu():
    found = self_bleu(["", "a b c d", "a b c d", ""], "words")
    assert found.value == pytest.approx(_by_sacrebleu(["", "a b c d", "a b c d", ""], "en"))


@pytest.mark.parametrize(("units", "n"), [("words", 1), ("words", 3), ("characters", 2)])
def test_distinct_equals_counting_and_leaves_each_answer_out(units, n):
    texts = _sentences(10, 5)

    def count(texts):
        split = [list(t.replace(" ", "")) if units == "characters" else t.split() for t in texts]
        grams = [tuple(s[i : i + n]) for s in split for i in range(len(s) - n + 1)]
        return len(set(grams)) / len(grams)

    found = distinct(texts, n, units)
    assert found.value == pytest.approx(count(texts))
    np.testing.assert_allclose(found.without_P, [count(texts[:i] + texts[i + 1 :]) for i in range(10)])


def test_dispersion_equals_the_pairs_and_leaves_each_answer_out():
    vectors = np.random.default_rng(0).normal(size=(9, 5)) + 0.5

    def pairs(v):
        u = v / np.linalg.norm(v, axis=1, keepdims=True)
        return np.mean([1 - u[i] @ u[j] for i in range(len(u)) for j in range(len(u)) if i != j])

    found = dispersion(vectors)
    assert found.value == pytest.approx(pairs(vectors))
    np.testing.assert_allclose(found.without_P, [pairs(np.delete(vectors, i, axis=0)) for i in range(9)])


def test_alike_answers_are_less_diverse_in_every_row():
    base = _sentences(40, 1)
    policy = [f"the cat sat on the mat {word}" for word in (WORDS * 4)[:40]]
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(40, 8)), generator.normal(size=(40, 8)) * 0.1 + 1
    rows = diversity_rows(Texts(base=base, policy=policy).cut(), "en", Bootstrap(seed=2), vectors)
    assert [row.metric for row in rows] == [
        "distinct-1",
        "distinct-2",
        "distinct-3",
        "self-BLEU",
        "embedding dispersion",
    ]
    for row in rows[1:]:
        assert row.difference.excludes_zero, row
        assert (row.difference.mean > 0) is (row.higher_is_better is False), row


def test_a_model_beside_itself_differs_by_nothing():
    texts = _sentences(20, 1)
    for row in diversity_rows(Texts(base=texts, policy=texts), "en", Bootstrap(seed=2)):
        assert row.difference.low == row.difference.mean == row.difference.high == 0


def test_no_interval_leaves_the_range_of_its_quantity():
    most = {"self-BLEU": 100.0, "embedding dispersion": 2.0}
    at_the_edge = 0
    for seed in range(6):
        base, policy = ([text[:20] for text in _sentences(8, each)] for each in (seed, 100 + seed))
        vectors = np.eye(8), np.eye(8)[[0, 0, 2, 3, 4, 5, 6, 7]]
        for row in diversity_rows(Texts(base=base, policy=policy), "en", Bootstrap(seed=2), vectors):
            for found in (row.base, row.policy):
                assert 0.0 <= found.low <= found.mean <= found.high <= most.get(row.metric, 1.0), row
                at_the_edge += found.mean < found.high == 1.0
    assert at_the_edge


def test_beyond_the_cap_both_models_are_read_on_the_same_prompts():
    texts = _sentences(30, 1)
    rows = diversity_rows(Texts(base=texts, policy=texts), "en", Bootstrap(seed=2), cap=10)
    assert rows[3].difference.mean == 0
    assert rows[3].policy.n == 10


def test_an_empty_answer_is_left_out_of_dispersion_and_counted():
    texts = Texts(base=_sentences(6, 1), policy=_sentences(6, 2))
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    vectors[2] = 0
    row = diversity_rows(texts, "en", Bootstrap(seed=0), (vectors, np.ones((6, 4)) + vectors))[-1]
    assert row.policy.n == 5
    assert "1 prompts with an empty answer left out" in row.note


@pytest.mark.parametrize(
    "call",
    [
        lambda: distinct(["a", "b"], 1, "words"),
        lambda: dispersion(np.zeros((4, 3))),
        lambda: Texts(base=["a"], policy=["a", "b"]),
    ],
)
def test_what_cannot_be_compared_is_refused(call):
    with pytest.raises(InputError):
        call()
