"""Rows of RewardBench (Lambert et al. 2024) and RewardBench 2 (Malik et al. 2025)."""

from collections.abc import Mapping
from typing import Any

from togi.data.values import BadRow, kind_of

Row = Mapping[str, Any]
FIRST = ("prompt", "chosen", "rejected", "subset")
SECOND = ("id", *FIRST)
"""The columns that are read."""
TIES = "ties"
SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        *("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut"),
        "llmbar-adver-manual",
    ),
    "Safety": (
        *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
"""The sections of RewardBench by their subsets."""


def first_row(row: Row, kind: str) -> Row:
    """A pair of RewardBench, with the section that its subset belongs to."""
    section = next((name for name, subsets in SECTIONS.items() if row["subset"] in subsets), "")
    return {**{name: row[name] for name in FIRST}, "section": section}


def second_rows(row: Row, kind: str) -> list[Row]:
    """The pairs of a row of RewardBench 2: its right answer with each of the wrong ones. As prompts: the row once.

    A row of the subset Ties may have several right answers. It becomes the fewest pairs that show every answer; right
    and wrong answers are taken in turn, and a wrong answer with the text of a right one is left out. Raises BadRow for
    a row without right or wrong answers, or with several right ones in another subset.
    """
    if kind != "pairs":
        return [row]
    ties = str(row["subset"]).casefold() == TIES
    right, wrong = _texts(row, "chosen", several=ties), _texts(row, "rejected", several=True)
    if ties:
        wrong = [text for text in wrong if text not in right] or wrong
    return [
        {**row, "chosen": right[place % len(right)], "rejected": wrong[place % len(wrong)]}
        for place in range(max(len(right), len(wrong)))
    ]


def _texts(row: Row, name: str, several: bool) -> list[Any]:
    found, wanted = row[name], "one or more texts" if several else "one text"
    if not isinstance(found, list) or not found or (len(found) > 1 and not several):
        told = f"a list of {len(found)}" if isinstance(found, list) else kind_of(found)
        raise BadRow("wrong_type", f"column {name!r}: found {told}, wanted a list of {wanted}")
    return found


def second_row(row: Row, kind: str) -> Row:
    """A pair of RewardBench 2, or its prompt."""
    return {name: row[name] for name in (SECOND if kind == "pairs" else ("id", "prompt", "subset"))}
