"""distinct-n: the share of distinct n-grams in a list of answers. Shapes: P answers, one per prompt."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from togi.core.errors import InputError
from togi.evaluate.statistics import Floats, Jackknife

Units = Literal["words", "characters"]
WITHOUT_SPACES = ("ja", "zh", "th", "lo", "km", "my")


def units_of(language: str) -> Units:
    """Characters for languages written without spaces, words otherwise; `language` is an ISO 639-1 code."""
    return "characters" if language in WITHOUT_SPACES else "words"


def distinct(texts_P: Sequence[str], n: int, units: Units) -> Jackknife:
    """distinct-n (Li et al., arXiv 1510.03055): distinct n-grams divided by all n-grams of the list, 0 without any."""
    enough(texts_P)
    grams_P = [Counter(ngrams(_split(text, units), n)) for text in texts_P]
    owners: Counter[tuple[str, ...]] = Counter()
    for grams in grams_P:
        owners.update(grams.keys())
    own_P = np.array([sum(owners[gram] == 1 for gram in grams) for grams in grams_P])
    total_P = np.array([grams.total() for grams in grams_P])
    total = int(total_P.sum())
    left_P = np.maximum(total - total_P, 1)
    return Jackknife(value=len(owners) / max(total, 1), without_P=(len(owners) - own_P) / left_P)


def enough(items: Sequence[str] | Floats) -> None:
    """Raises InputError if there are too few answers to compare."""
    if len(items) < 3:
        raise InputError(f"diversity: {len(items)} answers; at least 3 are needed to compare them with each other")


def _split(text: str, units: Units) -> list[str]:
    if units == "characters":
        return [character for character in text if not character.isspace()]
    return text.lower().split()


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` items."""
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
