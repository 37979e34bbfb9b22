"""Cuts two answers to the same length, so that neither ending nor shortening an answer raises its score.

A `share` below 1 cuts both answers, so that a complete last sentence is no advantage either.
"""

import unicodedata
from collections.abc import Sequence

from togi.core.errors import InputError


def cut_characters(base: str, policy: str, *, share: float = 1.0) -> tuple[str, str]:
    """The beginnings of both answers: at most `share` of the shorter one's characters, cut at a word boundary."""
    if not 0 < share <= 1:
        raise InputError(f"cut: share is {share}; it must be above 0 and at most 1")
    base, policy = base.strip(), policy.strip()
    limit = int(min(len(base), len(policy)) * share)
    return cut_at_border(base, limit), cut_at_border(policy, limit)


def cut_to_shortest(texts: Sequence[str]) -> list[str]:
    """The texts cut to the length of the shortest, each at a word boundary."""
    stripped = [text.strip() for text in texts]
    limit = min(map(len, stripped), default=0)
    return [cut_at_border(text, limit) for text in stripped]


def cut_at_border(text: str, limit: int) -> str:
    """At most `limit` characters of `text`, cut at the last word boundary.

    In scripts without spaces, every character ends a word. A first word longer than `limit` is cut inside.
    """
    if len(text) <= limit:
        return text
    place = limit
    while place > 0 and _joined(text[place - 1], text[place]):
        place -= 1
    return text[: place or limit].rstrip()


def _joined(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word or to one visible character."""
    if unicodedata.category(right).startswith("M") or "\u200d" in (left, right):
        return True
    return _in_word(left) and _in_word(right)


def _in_word(character: str) -> bool:
    if unicodedata.east_asian_width(character) in "WF":
        return False
    return character.isalnum() or character in "'’_" or unicodedata.category(character).startswith("M")
