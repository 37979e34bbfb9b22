"""An embedder without a model, for every language: hashed counts of character n-grams.

Suffixes: N texts, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from togi.text.compare import comparable

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedNgrams:
    """Embeds a text as the square roots of its character n-gram counts, hashed with a sign into `width` numbers.

    Implements `Embedder`. The same text gives the same numbers on every machine. Signs make collisions cancel on
    average, so that cosines stay unbiased (Weinberger et al., arXiv 0902.2206).
    """

    width: int = 1024
    sizes: tuple[int, ...] = (2, 3, 4)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(N, W) float32 with rows of length 1; a text without any n-gram has a row of zeros."""
        vectors_NW = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in enumerate(texts):
            vectors_NW[row] = self._vector(text)
        return vectors_NW

    def _vector(self, text: str) -> np.ndarray:
        plain = comparable(text)
        codes = np.array([ord(char) for char in f" {plain} " if plain], dtype=np.uint64)
        hashes = np.concatenate([_ngram_hashes(codes, size) for size in self.sizes])
        kinds, counts = np.unique(hashes, return_counts=True)
        signs = np.where(kinds >> np.uint64(63), 1.0, -1.0)
        places = (kinds % np.uint64(self.width)).astype(np.intp)
        vector_W = np.bincount(places, weights=signs * np.sqrt(counts), minlength=self.width)
        length = np.linalg.norm(vector_W)
        return vector_W / length if length > 0 else vector_W


def _ngram_hashes(codes: np.ndarray, size: int) -> np.ndarray:
    """A 64-bit hash of each run of `size` codes; none if the text is shorter."""
    count = max(len(codes) - size + 1, 0)
    hashes = np.full(count, size, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(size):
            hashes = (hashes + codes[offset : offset + count]) * _MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
        hashes *= _MIXER
    return hashes ^ (hashes >> np.uint64(32))
