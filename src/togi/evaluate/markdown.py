"""Counts the markup of an answer as arena-hard-auto does: headers, list items and bold pieces outside code fences."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_FENCED = re.compile(r"```[^`]*```")
_HEADERS = {f"h{level}": re.compile(rf"^#{{{level}}}\s", re.M) for level in range(1, 7)}
_LISTS = {"ordered": re.compile(r"^\s*\d+\.\s", re.M), "unordered": re.compile(r"^\s*[-*+]\s", re.M)}
_BOLD = {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")}
PARTS = {"header_count": _HEADERS, "list_count": _LISTS, "bold_count": _BOLD}


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """The length and markup of an answer."""

    tokens: float
    headers: float
    lists: float
    bold: float


def markup_counts(text: str) -> dict[str, dict[str, int]]:
    """Counts by kind, in the public layout: `header_count` {h1 .. h6}, `list_count` {ordered, unordered}, `bold_count`
    {**, __}."""
    bare = _FENCED.sub("", text)
    return {
        part: {name: len(pattern.findall(bare)) for name, pattern in patterns.items()}
        for part, patterns in PARTS.items()
    }


def style_of(tokens: float, counts: Mapping[str, Mapping[str, float]]) -> Style:
    """The style of an answer with these counts."""
    headers, lists, bold = (sum(counts[part].values()) for part in PARTS)
    return Style(tokens=tokens, headers=headers, lists=lists, bold=bold)
