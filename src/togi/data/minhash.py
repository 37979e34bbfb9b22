"""MinHash: small signatures; the share of equal positions estimates the Jaccard similarity of two texts (Broder 1997).

Two texts become candidates if a band of their signatures is equal (Indyk and Motwani 1998). The permutations are linear
functions of 32-bit hashes.

Suffixes: N texts, P permutations, B bands, R permutations of one band.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from togi.text.ngrams import Ngrams, mixed

MOST_PERMUTATIONS = 256
MOST_BANDS = 64
MISS = 1e-3
"""Maximum probability of missing a pair exactly at the threshold."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Number of bands and of permutations per band (`rows`): the layout with the fewest false candidates that MISS
    allows. Below a threshold of about 0.1 every permutation is a band; below 0.027 even that misses more than MISS."""

    bands: int
    rows: int

    @classmethod
    def at(cls, threshold: float) -> "Layout":
        for rows in range(16, 0, -1):
            bands = min(MOST_BANDS, MOST_PERMUTATIONS // rows)
            if (1 - threshold**rows) ** bands < MISS:
                return cls(bands, rows)
        return cls(MOST_PERMUTATIONS, 1)

    @property
    def permutations(self) -> int:
        return self.bands * self.rows


def signatures(ngrams: Ngrams, permutations: int) -> np.ndarray:
    """(P, N) uint32: the minimum of each permutation over the n-grams of each text. Every text needs at least one
    n-gram."""
    low_G = (ngrams.hashes_G >> np.uint64(32)).astype(np.uint32)
    starts = ngrams.starts[:-1]
    found_PN = np.empty((permutations, len(starts)), dtype=np.uint32)
    value_G = np.empty_like(low_G)
    for row, (factor, offset) in enumerate(_linear(permutations)):
        np.multiply(low_G, factor, out=value_G)
        np.add(value_G, offset, out=value_G)
        np.minimum.reduceat(value_G, starts, out=found_PN[row])
    return found_PN


@cache
def _linear(permutations: int) -> list[tuple[np.uint32, np.uint32]]:
    """An odd factor and an offset for each permutation; deterministic."""
    numbers = (mixed(np.arange(1, 2 * permutations + 1, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)
    return [(numbers[2 * i] | np.uint32(1), numbers[2 * i + 1]) for i in range(permutations)]


def band_keys(found_PN: np.ndarray, layout: Layout) -> np.ndarray:
    """(N, B) uint32: a number for each band of each signature; equal bands have equal numbers."""
    found_BRN = found_PN.reshape(layout.bands, layout.rows, -1)
    key_BN = np.zeros((layout.bands, found_PN.shape[1]), dtype=np.uint64)
    for row in range(layout.rows):
        key_BN = mixed(key_BN + found_BRN[:, row] + np.uint64(row + 1))
    return (key_BN >> np.uint64(32)).astype(np.uint32).T


def low_bytes(found_PN: np.ndarray) -> np.ndarray:
    """(N, P) uint8: the lowest byte of each position of each signature, enough to estimate a similarity."""
    return (found_PN & np.uint32(255)).astype(np.uint8).T


def estimated(bytes_NP: np.ndarray, bytes_P: np.ndarray) -> np.ndarray:
    """(N,): estimated Jaccard similarity of texts to one text, from their low bytes, corrected for the 1 in 256 that
    are equal by chance."""
    equal_N = np.count_nonzero(bytes_NP == bytes_P, axis=1) / len(bytes_P)
    return (equal_N - 1 / 256) / (1 - 1 / 256)


def error(similarity: float, permutations: int) -> float:
    """The standard deviation of an estimate."""
    return float(np.sqrt(similarity * (1 - similarity) / permutations))
