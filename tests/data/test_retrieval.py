"""BM25 and embeddings find what a question is about."""

import math
from collections import Counter

import numpy as np
import pytest

from togi.data.features import HashedNgrams
from togi.data.retrieval import Bm25, ByEmbedding, best, terms

TEXTS = ["The cat sat on the mat.", "Dogs chase cats, and cats run.", "Rain falls in spring.", ""]


def test_terms_of_words_and_of_scripts_without_spaces():
    assert terms("Ice melts, I say") == [" ice", "ice ", " mel", "melt", "elts", "lts ", " i ", " say", "say "]
    assert terms("猫は黒い cat 犬") == ["猫は", "は黒", "黒い", " cat", "cat ", "犬"]


def test_forms_of_a_word_share_terms():
    assert [term for term in terms("ледников") if term in terms("Ледники")] == [" лед", "ледн", "едни", "дник"]


def test_scores_are_those_of_the_formula():
    counts = [Counter(terms(text)) for text in TEXTS]
    k1, b, mean = 1.5, 0.75, sum(each.total() for each in counts) / len(counts)

    def score(own: Counter[str]) -> float:
        found = 0.0
        for term in sorted(dict.fromkeys(terms("cats in the rain"))):
            holding = sum(term in each for each in counts)
            rarity = math.log(1 + (len(counts) - holding + 0.5) / (holding + 0.5))
            found += rarity * own[term] * (k1 + 1) / (own[term] + k1 * (1 - b + b * own.total() / mean))
        return found

    np.testing.assert_allclose(Bm25(TEXTS).scores("cats in the rain"), [score(each) for each in counts], rtol=1e-12)


def test_the_best_stand_first_and_equal_ones_in_their_order():
    assert [place for place, _ in best(Bm25(TEXTS), "when does rain fall in spring", 1)] == [2]
    assert [place for place, _ in best(Bm25(TEXTS), "что", 3)] == [0, 1, 2]
    assert best(Bm25([]), "what", 3) == []


@pytest.mark.parametrize("question", ["猫はどこ", "кошка где"])
def test_words_of_other_languages_are_found(question):
    texts = ["雨が降る。", "猫は黒い。", "Идёт дождь.", "Кошки спят на кошке."]
    assert best(Bm25(texts), question, 1)[0][0] == (1 if "猫" in question else 3)


def test_embeddings_find_too():
    finder = ByEmbedding(TEXTS[:3], HashedNgrams())
    assert best(finder, "rainfall in the springtime", 1)[0][0] == 2
