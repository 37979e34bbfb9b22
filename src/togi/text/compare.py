"""Similarity of two texts by their characters: for every language, without a model."""

import re
import unicodedata
from decimal import Decimal


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
_ASCII = [_MEANT[code].encode() for code in range(128)]
_ASCII_MEANT = b"".join(kept.strip() or b" " for kept in _ASCII).ljust(256)
_ASCII_SYMBOLS = [kept.strip() for kept in _ASCII if len(kept) == 3]
"""The same for text of ASCII alone, where it is several times as fast."""
_SIGNS = re.compile(r"[#%*/\\&@-]+")
"""Punctuation that is a symbol in code and mathematics, depending on what is around it."""
_ENDS_APART, _BEGINS_APART = re.compile(r"\S[ \t]+$"), re.compile(r"[ \t]+\S")
"""The text before and after a sign that joins two operands, without and with spaces."""
_MINUS = str.maketrans("\N{MINUS SIGN}\N{EN DASH}", "--")
_BARE_POINT = re.compile(r"(?<!\d)[.,](?=\d)")
_NUMBER = re.compile(r"(?:(?<![\w)\]}])[+-])?(?:\d{1,3}(?:[ ']\d{3})+(?:[.,]\d+)?(?!\d)|\d[\d.,]*)")
_COMMAS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_POINTS = re.compile(r"[1-9]\d{0,2}(?:(?:\.\d{3}){2,}(?:,\d+)?|\.\d{3},\d+)")
"""Numbers whose thousands are separated by commas, and by points."""
NEAR = 8  # characters to look at on each side of a sign


def normalise(text: str) -> str:
    """The words of a text: unifies compatibility forms, case, punctuation, symbols and spacing."""
    return " ".join(_folded(text).translate(_WORDS).split())


def comparable(text: str) -> str:
    """The form of a text that decides whether two texts are the same: unifies compatibility forms, case, punctuation
    and spacing. It keeps symbols, so that `3 - 4` and `3 + 4` differ, and `C#` and `C++`. A text of punctuation alone
    stays as it is."""
    plain = _folded(text)
    meant, told, at = _ascii_meant if plain.isascii() else _meant, [], 0
    for found in _SIGNS.finditer(plain):
        if _is_symbol(found):
            told += (meant(plain[at : found.start()]), found.group())
            at = found.end()
    told.append(meant(plain[at:]))
    return " ".join(" ".join(told).split()) or text.strip()


def _meant(plain: str) -> str:
    return plain.translate(_MEANT)


def _ascii_meant(plain: str) -> str:
    """The result of `_meant`, for text of ASCII alone."""
    found = plain.encode().translate(_ASCII_MEANT)
    for symbol in _ASCII_SYMBOLS:
        found = found.replace(symbol, b" %b " % symbol)
    return found.decode()


def _is_symbol(found: re.Match[str]) -> bool:
    """Whether a sign is between two operands (`3 * 4`, `a/b`), right after one (`C#`, `5%`), or a minus (`-5`). A
    bullet, a hyphen and emphasis are not."""
    sign, (start, end) = found.group(), found.span()
    before, after = found.string[max(start - NEAR, 0) : start], found.string[end : end + NEAR]
    if sign == "-" and after[:1].isdigit():
        return True
    if _ends(before) and (sign in ("#", "%") or (sign != "-" and _is_of(after[:1], "_([{"))):
        return True
    return after[:1] in (" ", "\t") and bool(_ENDS_APART.search(before) and _BEGINS_APART.match(after))


def _ends(before: str) -> bool:
    """Whether an operand ends a text, or its line."""
    return _is_of(before.removesuffix("\n")[-1:], "_)]}")


def _is_of(char: str, others: str) -> bool:
    """Whether a character is a letter, a digit or one of `others`."""
    return char.isalnum() or (char != "" and char in others)


def same(one: str, other: str) -> bool:
    """Whether two texts differ only in case, spacing and punctuation."""
    return comparable(one) == comparable(other)


def same_answer(one: str, other: str) -> bool:
    """Whether two final answers are the same: they differ only in case, spacing, punctuation and signs of currencies,
    or in how their numbers are written.

    A number keeps its sign. A comma before three digits separates thousands, and otherwise decimals. Nothing is
    computed: `1/2`, `0.5` and `50%` differ.
    """
    one, other = _answer(one), _answer(other)
    if same(one, other):
        return True
    found, wanted = _NUMBER.findall(one), _NUMBER.findall(other)
    alike = len(found) == len(wanted) and same(_NUMBER.sub("0", one), _NUMBER.sub("0", other))
    return alike and [_value(each) for each in found] == [_value(each) for each in wanted]


def _answer(text: str) -> str:
    """An answer without signs of currencies, with one sign for minus, no space before %, and a zero before a bare
    decimal point."""
    plain = re.sub(r"\s+%", "%", unicodedata.normalize("NFKC", text).translate(_MINUS))
    return _BARE_POINT.sub("0.", "".join(char for char in plain if unicodedata.category(char) != "Sc"))


def _value(number: str) -> Decimal | str:
    """The value of a number as `_NUMBER` finds it; the text itself if it is none, such as a date."""
    digits = re.sub(r"[ ']", "", number.rstrip(".,"))
    plain = digits.lstrip("+-")
    if _COMMAS.fullmatch(plain):
        digits = digits.replace(",", "")
    elif _POINTS.fullmatch(plain):
        digits = digits.replace(".", "")
    decimal = digits.replace(",", ".")
    return Decimal(decimal) if decimal.count(".") <= 1 else digits


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
