"""Rows of RewardBench (Lambert et al. 2024) and RewardBench 2 (Malik et al. 2025)."""

from collections.abc import Mapping
from typing import Any

from togi.data.values import BadRow, LeftOut, kind_of

Row = Mapping[str, Any]
FIRST = ("prompt", "chosen", "rejected", "subset")
SECOND = ("id", *FIRST)
"""The columns that are read."""
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

    Raises LeftOut for a pair of the subset Ties, which has several right answers and a rule of its own, BadRow for a
    row without exactly one right answer and a wrong one.
    """
    if kind != "pairs":
        return [row]
    if str(row["subset"]).casefold() == "ties":
        raise LeftOut("subset_ties")
    for name, wanted in (("chosen", "one text"), ("rejected", "one or more texts")):
        if not isinstance(row[name], list) or not row[name] or (name == "chosen" and len(row[name]) > 1):
            found = f"a list of {len(row[name])}" if isinstance(row[name], list) else kind_of(row[name])
            raise BadRow("wrong_type", f"column {name!r}: found {found}, wanted a list of {wanted}")
    return [{**row, "chosen": row["chosen"][0], "rejected": text} for text in row["rejected"]]


def second_row(row: Row, kind: str) -> Row:
    """A pair of RewardBench 2, or its prompt."""
    return {name: row[name] for name in (SECOND if kind == "pairs" else ("id", "prompt", "subset"))}
