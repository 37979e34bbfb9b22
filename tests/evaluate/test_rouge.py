"""ROUGE-L, against stored vectors and a slow computation."""

import random
import sys

import pytest
from stored import load

from togi.core.extras import missing
from togi.evaluate.rouge import common, rouge_l, tokens_of, words


@pytest.mark.parametrize("case", load("dedup_rouge.json")["rouge_l"], ids=lambda case: case["ref"] or "empty")
def test_the_stored_cases_come_out(case: dict):
    assert rouge_l(words(case["ref"]), words(case["hyp"])) == pytest.approx(case["f1"], abs=1e-12)


def slow(one: list[str], other: list[str]) -> int:
    """The length of the longest common subsequence, by the textbook table."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for place, each in enumerate(other, 1):
            row.append(before[place - 1] + 1 if word == each else max(before[place], row[-1]))
    return row[-1]


def test_the_longest_common_subsequence_is_that_of_the_table():
    chance = random.Random(5)
    for _ in range(200):
        one, other = ([chance.choice("abcd") for _ in range(chance.randrange(90))] for _ in range(2))
        assert common(one, other) == slow(one, other)


def test_japanese_is_cut_into_words_without_marks():
    pytest.importorskip("sudachipy")
    cut = tokens_of("ja")
    assert cut("猫が好きです。\n東京都へ！") == ["猫", "が", "好き", "です", "東京都", "へ"]
    assert cut("猫。" * 20_000) == ["猫"] * 20_000, "longer than what SudachiPy takes at once"
    assert rouge_l(cut("猫が好きです。"), cut("猫が嫌いです")) == pytest.approx(3 / 4)


def test_without_its_library_japanese_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sudachipy", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        tokens_of("ja")
    told = missing(caught.value)
    assert told is not None and "pip install 'togi[ja]'" in str(told)
