"""Verdicts read by the rules of published benchmarks, against what their own expressions find (tests/vectors)."""

import re

import pytest
from stored import load

from togi.judge.published import (
    Unreadable,
    arena_hard_v2,
    fastchat,
    llmjp_mt_bench,
    llmjp_quality,
    llmjp_safety,
    ru_arena,
)

CASES = load("judge_parse.json")


@pytest.mark.parametrize("case", CASES["pairwise"], ids=lambda case: case["text"])
def test_labels(case):
    assert list(ru_arena(case["text"])) == case["ru_arena"]
    assert arena_hard_v2(case["text"]) == case["arena_hard_v2"]


def number(value):
    return None if value in (None, -1) else float(value)


@pytest.mark.parametrize("case", CASES["numeric"], ids=lambda case: case["text"])
def test_grades(case):
    assert llmjp_mt_bench(case["text"]) == number(case["llmjp_mtbench"])
    assert llmjp_safety(case["text"]) == number(case["llmjp_safety"])
    assert fastchat(case["text"]) == number(case["fastchat"])


@pytest.mark.parametrize("case", CASES["quality"])
def test_five_grades(case):
    if isinstance(case["out"], dict):
        assert llmjp_quality(case["text"]) == case["out"]
        return
    with pytest.raises(Unreadable, match=case["out"].removeprefix("error:")):
        llmjp_quality(case["text"])


def test_the_metrics_and_the_expression_of_a_file_are_read_by_the_same_rule():
    pattern = re.compile(r"(depth|tone): (\d(?:\.5)?|none)")
    assert llmjp_quality("tone: 3.5\ndepth: 2", pattern, ["depth", "tone"]) == {"depth": 2.0, "tone": 3.5}
    for text, reason in (("tone: 3 tone: 3 depth: 1", "duplicate"), ("tone: 3", "missing"), ("tone: none", "missing")):
        with pytest.raises(Unreadable, match=reason):
            llmjp_quality(text, pattern, ["depth", "tone"])
