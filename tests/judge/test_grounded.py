"""The prompts of a judge of grounded answers, and how its verdicts are read."""

from typing import Any

import pytest

from togi.judge.grounded import (
    case_values,
    correct_prompt,
    read_correct,
    read_numbers,
    sentences,
    support_prompt,
)
from togi.text.grounded import Shown

LANGUAGES: tuple[Any, ...] = ("en", "ja", "ru")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_judge_sees_documents_question_reference_and_answer(language: Any):
    values = case_values([Shown("Rain", "It rains."), Shown(None, "It snows.")], "Why?", "So. And so.", "Because.")
    correct, support = correct_prompt(language).render(values), support_prompt(language).render(values)
    for text in (correct, support):
        assert all(part in text for part in ("Rain", "It rains.", "It snows.", "Why?"))
    assert "Because." in correct and "So. And so." in correct and "{" not in correct
    assert "1. So.\n2. And so." in support and "Because." not in support
    letters = [correct_prompt(language).render(values | {"letter": letter}) for letter in "AB"]
    assert letters[0] != letters[1] and all("[[" not in each and "\n\n\n" not in each for each in letters)
    without = correct_prompt(language).render(case_values([], "Why?", "So.", None))
    assert len(without) < len(correct) and "\n\n\n" not in without


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("It is right.\n[[correct]]", True),
        ("[[Incorrect]]", False),
        ("理由。\n【【不正解】】", False),
        ("[[верно]]", True),
        ("[[correct]] or [[incorrect]]?", None),
        ("correct", None),
        ("<think>[[correct]]</think> [[incorrect]]", False),
        ("[[yes]]", None),
    ],
)
def test_a_verdict_stands_in_brackets(text: str, verdict: bool | None):
    assert read_correct(text) is verdict


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("[[2, 3]]", (2, 3)),
        ("[[2、2]]", (2,)),
        ("[[none]]", ()),
        ("[[なし]]", ()),
        ("[[нет]]", ()),
        ("[[2, most]]", None),
        ("Sentence 2.", None),
        ("[[]]", None),
    ],
)
def test_the_numbers_of_sentences_are_read(text: str, numbers: tuple[int, ...] | None):
    assert read_numbers(text) == numbers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It rose 3.5 %. Why? Nobody knows!", ["It rose 3.5 %.", "Why?", "Nobody knows!"]),
        ("はい。「そうです。」猫です！終わり", ["はい。", "「そうです。」", "猫です！", "終わり"]),
        ("1. Rain\n2. Snow", ["1. Rain", "2. Snow"]),
        ("", []),
    ],
)
def test_an_answer_is_cut_into_sentences(text: str, found: list[str]):
    assert sentences(text) == found
