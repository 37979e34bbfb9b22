"""How alike two texts are, by their characters: for every language, without a model."""

import unicodedata


def normalise(text: str) -> str:
    """Text for comparison: compatibility forms, case, punctuation and spacing made equal."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split())


def shingles(text: str, n: int) -> frozenset[str]:
    """The distinct character n-grams of a normalised text; the text itself where it is shorter."""
    plain = normalise(text)
    return frozenset(plain[i : i + n] for i in range(max(len(plain) - n + 1, 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Size of the intersection over size of the union."""
    return len(a & b) / (len(a) + len(b) - len(a & b))
