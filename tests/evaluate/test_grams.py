"""n-grams as arrays, against counting and sacrebleu, for prompts with different numbers of answers."""

import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from togi.core.errors import InputError
from togi.evaluate.diversity import bleu_words
from togi.evaluate.grams import Coded, distinct_across, distinct_within, self_bleu_within

OWNERS = [0, 0, 0, 1, 1, 2, 4, 4, 4, 4, 5]  # prompts 2 and 5 have one answer, prompt 3 none
PROMPTS = 6


def _texts(seed: int, alphabet: str = "abcd", joiner: str = " ") -> list[str]:
    draw = random.Random(seed)
    return [joiner.join(draw.choices(alphabet, k=draw.randint(0, 12))) for _ in OWNERS]


def _by_prompt(texts):
    return [[text for text, owner in zip(texts, OWNERS, strict=True) if owner == p] for p in range(PROMPTS)]


def _distinct(texts, n):
    grams = [tuple(t.split()[i : i + n]) for t in texts for i in range(len(t.split()) - n + 1)]
    return len(set(grams)) / len(grams) if grams else np.nan


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_distinct_equals_counting(n, seed):
    texts = _texts(seed)
    coded = Coded.of([text.split() for text in texts], OWNERS, PROMPTS)
    wanted = [_distinct(own, n) if len(own) > 1 else np.nan for own in _by_prompt(texts)]
    np.testing.assert_allclose(distinct_within(coded, n), wanted)
    found = distinct_across(coded, n)
    assert found.value == pytest.approx(_distinct(texts, n))
    left = [
        _distinct([text for text, owner in zip(texts, OWNERS, strict=True) if owner != p], n) for p in range(PROMPTS)
    ]
    np.testing.assert_allclose(found.without_P, left)


@pytest.mark.parametrize("units", ["words", "characters"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_self_bleu_of_each_prompt_equals_sacrebleu(units, seed):
    texts = _texts(seed) if units == "words" else _texts(seed, "あいうえ", "")
    bleu = BLEU(effective_order=True, tokenize="char" if units == "characters" else "13a")
    wanted = [
        np.mean([bleu.sentence_score(own[i], own[:i] + own[i + 1 :]).score for i in range(len(own))])
        if len(own) > 1
        else np.nan
        for own in _by_prompt(texts)
    ]
    found = self_bleu_within(Coded.of([bleu_words(units)(text) for text in texts], OWNERS, PROMPTS))
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_no_units_at_all_are_no_error():
    coded = Coded.of([[], []], [0, 0], 1)
    assert np.isnan(distinct_within(coded, 2)).all()
    assert distinct_across(coded, 1) is None
    np.testing.assert_array_equal(self_bleu_within(coded), [0.0])


@pytest.mark.parametrize("owners", [[1, 0], [0], [0, 2]])
def test_answers_that_do_not_stand_prompt_by_prompt_are_refused(owners):
    with pytest.raises(InputError, match="not grouped by"):
        Coded.of([["a"], ["b"]], owners, 2)
