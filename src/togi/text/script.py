"""Cheap, deterministic checks of a text's writing system, without a model or dictionary."""

import re
import unicodedata
from typing import Literal

Script = Literal["latin", "cyrillic", "kana", "kanji", "hangul", "other"]

_RANGES: tuple[tuple[int, int, Script], ...] = (
    (0x0041, 0x024F, "latin"),
    (0x0400, 0x052F, "cyrillic"),
    (0x1E00, 0x1EFF, "latin"),
    (0x3040, 0x30FF, "kana"),
    (0x31F0, 0x31FF, "kana"),
    (0x3400, 0x4DBF, "kanji"),
    (0x4E00, 0x9FFF, "kanji"),
    (0xAC00, 0xD7AF, "hangul"),
    (0xF900, 0xFAFF, "kanji"),
    (0xFF66, 0xFF9F, "kana"),
    (0x20000, 0x3134F, "kanji"),
)
_EXPECTED: dict[str, tuple[Script, ...]] = {
    "en": ("latin",),
    "ru": ("cyrillic",),
    "ja": ("kana", "kanji"),
    "zh": ("kanji",),
    "ko": ("hangul",),
}


def script_of(char: str) -> Script:
    """The writing system of one letter."""
    code = ord(char)
    for low, high, name in _RANGES:
        if low <= code <= high:
            return name
    return "other"


class _Marks(dict[int, int | None]):
    """Maps a letter to one letter for its writing system, everything else to None; filled on demand."""

    def __missing__(self, code: int) -> int | None:
        char = chr(code)
        self[code] = ord(_MARKS[script_of(char)]) if unicodedata.category(char)[0] == "L" else None
        return self[code]


_MARKS: dict[Script, str] = {"latin": "l", "cyrillic": "c", "kana": "k", "kanji": "j", "hangul": "h", "other": "o"}
_MARK_OF = _Marks()
_ASCII_LETTER = re.compile("[A-Za-z]")


def script_shares(text: str) -> dict[Script, float]:
    """Share of each writing system among the letters of `text`; empty if there are no letters."""
    if text.isascii():
        return {"latin": 1.0} if _ASCII_LETTER.search(text) else {}
    marks = text.translate(_MARK_OF)
    counts: dict[Script, int] = {script: marks.count(mark) for script, mark in _MARKS.items()}
    return {script: count / len(marks) for script, count in counts.items() if count}


def script_share(text: str, language: str) -> float:
    """Share of letters in the writing system of `language` (en, ru, ja, zh, ko); 0 if there are no letters.

    Japanese needs kana: a text of Chinese characters alone gives 0.
    """
    shares = script_shares(text)
    if language == "ja" and "kana" not in shares:
        return 0.0
    return sum(shares.get(script, 0.0) for script in _EXPECTED[language])


def expected_scripts(language: str) -> tuple[Script, ...] | None:
    """The writing systems of a language (en, ru, ja, zh, ko); None for any other."""
    return _EXPECTED.get(language)


def is_spaced(text: str) -> bool:
    """Whether the text puts spaces between words, judged by its letters."""
    shares = script_shares(text)
    return shares.get("kana", 0.0) + shares.get("kanji", 0.0) < 0.3
