"""Similarity of two texts by their characters: for every language, without a model."""

import unicodedata


class _Kept(dict[int, int]):
    """Maps letters, marks and numbers to themselves, everything else to a space; filled on demand."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else 32
        return self[code]


_KEPT = _Kept()


def normalise(text: str) -> str:
    """Text for comparison: unifies compatibility forms, case, punctuation and spacing."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_KEPT).split())


def shingles(text: str, n: int) -> frozenset[str]:
    """The distinct character n-grams of a normalised text; the whole text if it is shorter."""
    plain = normalise(text)
    return frozenset([plain[i : i + n] for i in range(max(len(plain) - n + 1, 1))])


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Size of the intersection over size of the union."""
    return len(a & b) / (len(a) + len(b) - len(a & b))
