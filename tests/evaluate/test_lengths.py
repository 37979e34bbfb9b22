"""Answers cut to one length."""

import pytest

from togi.core.errors import InputError
from togi.evaluate.lengths import cut_at_border, cut_characters


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("one two three", 9, "one two"),
        ("one two three", 7, "one two"),
        ("one two three", 13, "one two three"),
        ("don't stop", 4, "don'"),
        ("don't stop now", 8, "don't"),
        ("unbreakable", 5, "unbre"),
        ("猫はかわいい", 3, "猫はか"),
        ("猫がgood", 4, "猫が"),
        ("はか\u3099き", 2, "は"),
        ("ab 👩\u200d🔬x", 4, "ab"),
        ("Привет, мир", 8, "Привет,"),
    ],
)
def test_text_is_cut_at_a_border_between_words(text, limit, expected):
    assert cut_at_border(text, limit) == expected


def test_both_answers_end_up_about_equally_long():
    base, policy = cut_characters("A cat is an animal that likes to sleep all day long.", "A cat is a pet.")
    assert (base, policy) == ("A cat is an", "A cat is a pet.")


def test_below_one_neither_answer_keeps_its_ending():
    base, policy = cut_characters("A cat is an animal that sleeps.", "A cat is a pet. It sleeps.", share=0.8)
    assert (base, policy) == ("A cat is an animal", "A cat is a pet. It")


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(InputError, match="share"):
        cut_characters("a", "b", share=share)
