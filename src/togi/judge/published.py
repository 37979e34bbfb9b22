"""Reads verdicts exactly as published benchmarks do, so that their figures can be reproduced.

Their quirks are kept: the first of two grades counts, and a grade may be off the scale. togi's own reading of judge
replies is in reading.py.
"""

import re
from collections.abc import Sequence

_LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
_LOOSE_LABEL = re.compile(r"\[([AB<>=]+)\]")
_MT_BENCH = re.compile(r"\[\[(10|[1-9])\]\]")
_SAFETY = re.compile(r"\[\[(\d)\]\]")
_FASTCHAT = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
QUALITY = ("正確性", "流暢性", "詳細性", "関連性", "総合評価")
_QUALITY = re.compile(rf"({'|'.join(QUALITY)}):\s?\[\[([1-5])\]\]")


class Unreadable(ValueError):
    """A text that its protocol cannot read; the message is the reason, a short constant."""


def ru_arena(text: str) -> tuple[str | None, bool]:
    """(label, whether to ask again) as in ru_llm_arena: the only label of a text; None if there are two different
    ones."""
    labels = list(dict.fromkeys(_LABEL.findall(text)))
    return (labels[0] if len(labels) == 1 else None), not labels


def arena_hard_v2(text: str) -> str | None:
    """The last label as in arena-hard-auto v2: in double brackets, else in single ones."""
    upper = text.upper()
    found = _LABEL.findall(upper) or _LOOSE_LABEL.findall(upper)
    return found[-1] if found else None


def llmjp_mt_bench(text: str) -> int | None:
    """The first grade from 1 to 10, as in llm-jp-judge's MT-Bench."""
    found = _MT_BENCH.search(text)
    return int(found[1]) if found else None


def llmjp_safety(text: str) -> int | None:
    """The first digit, as in llm-jp-judge's safety benchmark, even if it is off the scale of 1 to 5."""
    found = _SAFETY.search(text)
    return int(found[1]) if found else None


def fastchat(text: str) -> float | None:
    """The first grade as in FastChat: in double brackets, else in single ones. None if there is none, for which
    FastChat writes -1."""
    found = next((match for pattern in _FASTCHAT if (match := pattern.search(text))), None)
    return float(found[1]) if found else None


def llmjp_quality(text: str, pattern: re.Pattern[str] = _QUALITY, metrics: Sequence[str] = QUALITY) -> dict[str, float]:
    """The grade of each metric, as in llm-jp-judge's quality benchmark; `pattern` finds a metric and its grade.

    Raises Unreadable unless each metric has one grade (`duplicate`, `missing`).
    """
    grades: dict[str, float] = {}
    for metric, grade in pattern.findall(text):
        if metric in grades:
            raise Unreadable("duplicate")
        if (value := as_number(grade)) is None:
            raise Unreadable("missing")
        grades[metric] = value
    if sorted(grades) != sorted(metrics):
        raise Unreadable("missing")
    return grades


def as_number(text: str | None) -> float | None:
    """The number of a match's group; None for other text and for a group that took no part in the match."""
    return float(text) if text and re.fullmatch(r"[+-]?\d+(\.\d+)?", text) else None
