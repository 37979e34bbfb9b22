"""ROUGE-L (Lin 2004): how much of an answer and its reference is a common subsequence of words.

Words are lower-case runs of letters and digits in any script; Japanese, which has no spaces, is split by SudachiPy.
(The usual package keeps only a to z, and finds no words in Russian.)
"""

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

Tokens = Callable[[str], list[str]]
_WORD = re.compile(r"\w+")
SILENT = ("補助記号", "空白")  # punctuation and space, as SudachiPy calls them
LONGEST = 10_000  # characters passed to SudachiPy at once; it accepts 49,149 bytes


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    return _WORD.findall(text.lower())


def tokens_of(language: str) -> Tokens:
    """The function that splits texts of a language (an ISO 639-1 code) into words. Japanese needs SudachiPy and its
    dictionary (the extra `ja`); ModuleNotFoundError if they are missing."""
    return _sudachi() if language == "ja" else words


def _sudachi() -> Tokens:
    """SudachiPy's words in its longest units (mode C), without punctuation."""
    dictionary: Any = importlib.import_module("sudachipy").Dictionary()
    cutter = dictionary.create()

    def cut(text: str) -> list[str]:
        lines = [line[at : at + LONGEST] for line in text.lower().splitlines() for at in range(0, len(line), LONGEST)]
        found = [each for line in lines for each in cutter.tokenize(line)]
        return [each.surface() for each in found if each.part_of_speech()[0] not in SILENT]

    return cut


def rouge_l(reference: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two lists of words; 0 if one of them is empty."""
    if not reference or not answer:
        return 0.0
    return 2 * common(reference, answer) / (len(reference) + len(answer))


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence. Bit-parallel: each word of `other` updates all positions of `one`
    at once (Hyyrö 2004, Bit-parallel LCS-length computation revisited)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        found = row & places.get(word, 0)
        row = (row + found | row - found) & full
    return len(one) - row.bit_count()
