"""Hashes of the n-grams of many texts at once, as arrays: there is no Python object per n-gram.

Texts are normalised first (text/compare.py). A hash has 64 bits and is the same on every machine.

Suffixes: N texts, C characters of all texts together, G n-grams of all texts together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
SPACE = 32
PORTION = 1 << 18


@dataclass(frozen=True, slots=True)
class Codes:
    """The characters of N normalised texts, concatenated: text i is `codes[starts[i] : starts[i + 1]]`."""

    codes_C: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, plain: Sequence[str]) -> "Codes":
        """The characters of normalised texts."""
        lengths = np.fromiter((len(text) for text in plain), dtype=np.int64, count=len(plain))
        codes = np.frombuffer("".join(plain).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        return cls(codes, np.concatenate([[0], np.cumsum(lengths)]))


@dataclass(frozen=True, slots=True)
class Ngrams:
    """The hashes of the n-grams of N texts: those of text i are `hashes[starts[i] : starts[i + 1]]`.

    `first` and `last` delimit the characters of an n-gram in its `Codes` (`last` is exclusive).
    """

    hashes_G: np.ndarray
    starts: np.ndarray
    first_G: np.ndarray
    last_G: np.ndarray


def character_ngrams(codes: Codes, n: int) -> Ngrams:
    """Every run of `n` characters; the whole text if it is shorter."""
    lengths = np.diff(codes.starts)
    starts, place_G, owner_G = _numbered(np.maximum(lengths - n + 1, 1))
    first_G = codes.starts[owner_G] + place_G
    last_G = np.minimum(first_G + n, codes.starts[owner_G + 1])
    return Ngrams(_span_hashes(codes.codes_C, first_G, last_G), starts, first_G, last_G)


def word_ngrams(codes: Codes, n: int) -> Ngrams:
    """Every run of `n` words; the whole text if it has fewer words."""
    begins_C = codes.codes_C != SPACE
    begins_C[1:] &= codes.codes_C[:-1] == SPACE
    begins_C[codes.starts[:-1][np.diff(codes.starts) > 0]] = True
    words = np.flatnonzero(begins_C)
    before = np.searchsorted(words, codes.starts)  # words of all texts before each
    starts, place_G, owner_G = _numbered(np.maximum(np.diff(before) - n + 1, 1))
    from_G = before[owner_G] + place_G
    padded = np.append(words, codes.starts[-1])
    first_G = np.where(from_G < before[owner_G + 1], padded[np.minimum(from_G, len(words))], codes.starts[owner_G])
    next_G = np.minimum(from_G + n, len(words))
    whole_G = from_G + n >= before[owner_G + 1]  # up to the end of the text, else up to the space before the next word
    last_G = np.where(whole_G, codes.starts[owner_G + 1], padded[next_G] - 1)
    return Ngrams(_span_hashes(codes.codes_C, first_G, last_G), starts, first_G, last_G)


def portions(texts: Sequence[str], characters: int = PORTION) -> Iterator[Sequence[str]]:
    """Yields the texts in order, in groups of at most `characters` in total, but at least one text."""
    first = held = 0
    for place, text in enumerate(texts):
        if place > first and held + len(text) > characters:
            yield texts[first:place]
            first, held = place, 0
        held += len(text)
    if first < len(texts):
        yield texts[first:]


def _numbered(counts_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts, place, owner) for `counts_N[i]` items of each text i in sequence: where each text's items start, and for
    each item its index within its text and the index of its text."""
    starts = np.concatenate([[0], np.cumsum(counts_N)])
    owner = np.repeat(np.arange(len(counts_N)), counts_N)
    return starts, np.arange(starts[-1]) - starts[owner], owner


def _span_hashes(codes_C: np.ndarray, first_G: np.ndarray, last_G: np.ndarray) -> np.ndarray:
    """The hashes of character runs: a polynomial over their codes modulo 2**64, from prefix sums, then mixed."""
    size = len(codes_C) + 1
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(size, _BASE, dtype=np.uint64))
        inverse = np.cumprod(np.full(size, _INVERSE, dtype=np.uint64))
        sums = np.zeros(size, dtype=np.uint64)
        np.cumsum(mixed(codes_C.astype(np.uint64)) * powers[:-1], out=sums[1:])
        spans_G = (sums[last_G] - sums[first_G]) * inverse[first_G]
        return mixed(spans_G + (last_G - first_G).astype(np.uint64))


def mixed(values: np.ndarray) -> np.ndarray:
    """64-bit numbers, each mixed over all bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * _MIX[0]
        values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))
