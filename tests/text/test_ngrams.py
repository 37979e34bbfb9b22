"""N-grams of many texts at once equal those of each text alone; the fast normalisation equals a plain one."""

import sys
import unicodedata
from itertools import pairwise

import numpy as np
import pytest

from togi.text.compare import normalise, shingles
from togi.text.ngrams import Codes, Ngrams, character_ngrams, portions, word_ngrams

TEXTS = ["hello there big world of cats", "", "a", "パンの焼き方を教えてください", "ab cd", "ab cd ef", "", "лес"]


def texts_of(ngrams: Ngrams) -> list[list[str]]:
    """The n-grams of each text, as text."""
    joined = "".join(TEXTS)
    spans = [joined[a:b] for a, b in zip(ngrams.first_G.tolist(), ngrams.last_G.tolist(), strict=True)]
    starts = ngrams.starts.tolist()
    return [spans[a:b] for a, b in pairwise(starts)]


@pytest.mark.parametrize("n", [1, 2, 4, 30])
def test_character_ngrams_are_the_shingles_of_each_text(n: int) -> None:
    found = character_ngrams(Codes.of(TEXTS), n)
    assert [set(each) for each in texts_of(found)] == [set(shingles(text, n)) for text in TEXTS]


@pytest.mark.parametrize("n", [1, 2, 9])
def test_word_ngrams_are_runs_of_words_of_each_text(n: int) -> None:
    def runs(words: list[str]) -> list[str]:
        return [" ".join(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))]

    assert texts_of(word_ngrams(Codes.of(TEXTS), n)) == [runs(text.split()) for text in TEXTS]


def test_equal_ngrams_have_equal_hashes_wherever_they_stand() -> None:
    found = character_ngrams(Codes.of([*TEXTS, *TEXTS[::-1]]), 2)
    joined = "".join([*TEXTS, *TEXTS[::-1]])
    hashes: dict[str, int] = {}
    for value, first, last in zip(found.hashes_G.tolist(), found.first_G, found.last_G, strict=True):
        assert hashes.setdefault(joined[first:last], value) == value
    assert len(set(hashes.values())) == len(hashes)
    assert found.hashes_G[0] == np.uint64(HELLO)  # the same on every machine


HELLO = 0x6070AE5D91828015


def test_portions_join_to_the_texts() -> None:
    found = list(portions(TEXTS, 10))
    assert [text for part in found for text in part] == TEXTS and len(found) > 3
    assert all(len(part) == 1 or sum(map(len, part)) <= 10 for part in found)


def test_normalising_keeps_letters_marks_and_numbers_alone() -> None:
    for code in range(0, sys.maxunicode + 1, 7):
        if not 0xD800 <= code < 0xE000:
            folded = unicodedata.normalize("NFKC", f"a{chr(code)}b").casefold()
            plain = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
            assert normalise(f"a{chr(code)}b") == " ".join(plain.split())
