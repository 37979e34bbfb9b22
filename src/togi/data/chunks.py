"""Cuts texts into parts at paragraphs, else at sentences, else at words, else anywhere. Only white space at the cuts is
lost."""

import re
from collections.abc import Callable

BORDERS = (r"\n\s*\n", r"\n", r"(?<=[.!?…])\s+|(?<=[。！？])", r"\s+")
"""Where a text may be cut, from best to worst; each border is tried for pieces that the one before leaves too long."""


def chunks(text: str, longest: int) -> list[str]:
    """The parts of `text`, in order, each of at most `longest` characters and as long as its borders allow."""
    return _cut(text.strip(), longest, BORDERS)


def _cut(text: str, longest: int, borders: tuple[str, ...]) -> list[str]:
    if len(text) <= longest:
        return [text] if text else []
    if not borders:
        return [text[start : start + longest] for start in range(0, len(text), longest)]
    return _joined(_pieces(text, borders[0]), longest, borders[1:])


def _pieces(text: str, border: str) -> list[tuple[str, str]]:
    """The pieces between the borders, each with the border before it."""
    found, start, before = [], 0, ""
    for match in re.finditer(border, text):
        found.append((before, text[start : match.start()]))
        before, start = match[0], match.end()
    return [*found, (before, text[start:])]


def _joined(pieces: list[tuple[str, str]], longest: int, borders: tuple[str, ...]) -> list[str]:
    """Joins pieces up to the limit; a piece over the limit is cut at the next kind of border."""
    found: list[str] = []
    part = ""
    for before, piece in pieces:
        if part and len(part) + len(before) + len(piece) <= longest:
            part += before + piece
            continue
        found += [part] if part.strip() else []
        part = piece
        if len(piece) > longest:
            *whole, part = _cut(piece.strip(), longest, borders) or [""]
            found += whole
    return [*found, *([part] if part.strip() else [])]


def halves(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Cuts `text` into parts that fit, by halving; a single character that does not fit is dropped."""
    if fits(text):
        return [text]
    if len(text) < 2:
        return []
    return [part for half in chunks(text, -(-len(text) // 2)) for part in halves(half, fits)]
