"""Similarity of two texts by their characters: for every language, without a model."""

import re
import unicodedata


class _Kept(dict[int, str]):
    """Maps the characters of some Unicode categories to themselves, symbols apart from their neighbours, and everything
    else to a space; filled on demand."""

    def __init__(self, categories: str) -> None:
        self._categories = categories

    def __missing__(self, code: int) -> str:
        char, kind = chr(code), unicodedata.category(chr(code))[0]
        kept = kind in self._categories and char != "`"  # a quotation mark of code, though Unicode calls it a symbol
        self[code] = (f" {char} " if kind == "S" else char) if kept else " "
        return self[code]


_WORDS, _MEANT = _Kept("LMN"), _Kept("LMNS")
_SIGNS = re.compile(r"[#%*/\\&@-]+")
"""Punctuation that is a symbol in code and mathematics, depending on what is around it."""
_ENDS, _BEGINS = re.compile(r"[\w)\]}]$"), re.compile(r"[\w(\[{]")
_ENDS_APART, _BEGINS_APART = re.compile(r"\S[ \t]+$"), re.compile(r"[ \t]+\S")
"""The text before and after a sign that joins two operands, without and with spaces."""
NEAR = 8  # characters to look at on each side of a sign


def normalise(text: str) -> str:
    """The words of a text: unifies compatibility forms, case, punctuation, symbols and spacing."""
    return " ".join(_folded(text).translate(_WORDS).split())


def comparable(text: str) -> str:
    """The form of a text that decides whether two texts are the same: unifies compatibility forms, case, punctuation
    and spacing. It keeps symbols, so that `3 - 4` and `3 + 4` differ, and `C#` and `C++`. A text of punctuation alone
    stays as it is."""
    plain, told, at = _folded(text), "", 0
    for found in _SIGNS.finditer(plain):
        told += plain[at : found.start()].translate(_MEANT) + (f" {found.group()} " if _is_symbol(found) else " ")
        at = found.end()
    return " ".join((told + plain[at:].translate(_MEANT)).split()) or text.strip()


def _is_symbol(found: re.Match[str]) -> bool:
    """Whether a sign is between two operands (`3 * 4`, `a/b`), right after one (`C#`, `5%`), or a minus (`-5`). A
    bullet, a hyphen and emphasis are not."""
    sign, (start, end) = found.group(), found.span()
    before, after = found.string[max(start - NEAR, 0) : start], found.string[end : end + NEAR]
    if sign == "-" and after[:1].isdigit():
        return True
    if _ENDS.search(before) and (sign in ("#", "%") or (sign != "-" and _BEGINS.match(after))):
        return True
    return bool(_ENDS_APART.search(before) and _BEGINS_APART.match(after))


def same(one: str, other: str) -> bool:
    """Whether two texts differ only in case, spacing and punctuation."""
    return comparable(one) == comparable(other)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def shingles(text: str, n: int) -> frozenset[str]:
    """The distinct character n-grams of the words of a text; the whole text if it is shorter."""
    return ngrams(normalise(text), n)


def ngrams(plain: str, n: int) -> frozenset[str]:
    """The distinct character n-grams of a text as it is; the whole text if it is shorter."""
    return frozenset([plain[i : i + n] for i in range(max(len(plain) - n + 1, 1))])


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Size of the intersection over size of the union."""
    return len(a & b) / (len(a) + len(b) - len(a & b))
