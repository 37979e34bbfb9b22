"""Finds near-duplicates greedily: an item is a copy if it is too similar to one that came before it and was kept.

Items are processed in row order or in a given order, such as best first. Besides its text, a row takes at most 1 KiB,
or 2.3 KiB at thresholds up to 0.1.

Suffixes: N items, W width, B block or bands, K kept, P permutations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from togi.data.minhash import Layout, band_keys, error, estimated, low_bytes, signatures
from togi.data.packed import PackedTexts
from togi.text.compare import comparable, jaccard, ngrams
from togi.text.ngrams import Codes, character_ngrams, portions

BLOCK = 1024
TILE = 2048
SURE = 4.0  # an estimate this many standard deviations below the threshold rules a pair out
LAST = 1 << 30  # flags the last item of a bucket: no later item looks it up
HELD = 1 << 17  # maximum number of cached n-grams


@dataclass(frozen=True, slots=True)
class Copies:
    """`of[i]` is the kept item that item i is a copy of, or -1 if item i is kept; `similarity[i]` is their
    similarity."""

    of: np.ndarray
    similarity: np.ndarray

    @classmethod
    def none(cls, count: int) -> "Copies":
        """Nothing is a copy."""
        return cls(np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.float32))

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool: items that are no copies."""
        return self.of < 0


def copies_by_ngrams(texts: Sequence[str], max_jaccard: float, n: int = 4, order: np.ndarray | None = None) -> Copies:
    """Finds the copies among texts: Jaccard similarity of character n-grams > `max_jaccard`. See `NgramCopies`."""
    finder = NgramCopies(len(texts), max_jaccard, n)
    finder.add(texts)
    return finder.copies(order)


class NgramCopies:
    """Finds texts whose character n-grams have a Jaccard similarity > `max_jaccard` with those of an earlier kept one.

    Candidates come from MinHash with bands that miss a pair at the threshold less than once in a thousand. Each
    candidate is then compared exactly, so no text is dropped by chance.
    """

    def __init__(self, rows: int, max_jaccard: float, n: int) -> None:
        self.max_jaccard = max_jaccard
        self.n = n
        self.layout = Layout.at(max_jaccard)
        self.texts = PackedTexts(rows)
        self._least = max_jaccard - SURE * error(max_jaccard, self.layout.permutations)
        self._keys_NB = np.empty((rows, self.layout.bands), dtype=np.uint32)
        self._bytes_NP = np.empty((rows, self.layout.permutations), dtype=np.uint8)

    def add(self, texts: Sequence[str]) -> None:
        """Adds texts at the end."""
        for portion in portions(texts):
            plain = [comparable(text) for text in portion]
            found_PN = signatures(character_ngrams(Codes.of(plain), self.n), self.layout.permutations)
            rows = slice(len(self.texts), len(self.texts) + len(plain))
            self._keys_NB[rows] = band_keys(found_PN, self.layout)
            self._bytes_NP[rows] = low_bytes(found_PN)
            self.texts.add(plain)

    def copies(self, order: np.ndarray | None = None, progress: Callable[[int], None] = lambda done: None) -> Copies:
        """Finds the copies, processing rows in `order` (by default as added); rows that are not in it are compared with
        nothing. Call it only once: it consumes its data. `progress` is called with the number of rows done."""
        count = len(self.texts)
        found = Copies.none(count)
        if self.max_jaccard >= 1:  # no similarity exceeds 1
            return found
        order = np.arange(count) if order is None else order
        rank_N = np.empty(count, dtype=np.int64)
        rank_N[order] = np.arange(len(order))
        buckets = _Buckets(self._keys_NB, order)
        grams = _Grams(self.texts, self.n)
        for done, row in enumerate(order[buckets.shared_N[order]].tolist()):
            places = buckets.places(row)
            for other in self._close(row, buckets.kept(places), rank_N):
                similarity = grams.jaccard(row, other)
                if similarity > self.max_jaccard:
                    found.of[row], found.similarity[row] = other, similarity
                    break
            else:
                buckets.keep(row, places)
            if done % BLOCK == 0:
                progress(done)
        return found

    def _close(self, row: int, others: np.ndarray, rank_N: np.ndarray) -> list[int]:
        """The items of `others` that their estimated similarity does not rule out, in processing order."""
        if not len(others):
            return []
        near = others[estimated(self._bytes_NP[others], self._bytes_NP[row]) >= self._least]
        return near[np.argsort(rank_N[near])].tolist() if len(near) > 1 else near.tolist()


class _Buckets:
    """Buckets of items that are equal in a band, band by band. An item alone in its bucket belongs to none.

    A bucket's section of `_kept` starts with its number of kept items, followed by the items. The last item of a bucket
    in `order` needs no slot, since no later item looks it up. The numbers in `keys_NB` are overwritten with the
    positions of the buckets.
    """

    def __init__(self, keys_NB: np.ndarray, order: np.ndarray) -> None:
        count, bands = keys_NB.shape
        self.place_NB = keys_NB.view(np.int32)
        self._first = np.arange(bands, dtype=np.int64) * count
        for band in range(bands):
            sort = order[np.argsort(keys_NB[order, band], kind="stable")]
            keys = keys_NB[sort, band]
            begins = np.ones(len(sort), dtype=bool)
            begins[1:] = keys[1:] != keys[:-1]
            starts = np.flatnonzero(begins)
            sizes = np.diff(np.append(starts, len(sort)))
            place = np.repeat(np.where(sizes > 1, starts, -1), sizes)
            ends = starts + sizes - 1
            place[ends[sizes > 1]] |= LAST
            self.place_NB[sort, band] = place
        self._kept = np.zeros(bands * count, dtype=np.int32)
        self.shared_N = np.zeros(count, dtype=bool)
        for band in range(bands):
            self.shared_N |= self.place_NB[:, band] >= 0

    def places(self, row: int) -> np.ndarray:
        """Start positions of an item's buckets; those in which it is the last item are flagged."""
        place_B = self.place_NB[row]
        shared = (place_B >= 0).nonzero()[0]
        place = place_B[shared].astype(np.int64)
        return (self._first[shared] + (place & ~LAST)) | (place & LAST) << 32

    def kept(self, places: np.ndarray) -> np.ndarray:
        """The kept items in the given buckets."""
        at = places & ~(LAST << 32)
        counts = self._kept[at]
        filled = counts.nonzero()[0]
        if not len(filled):
            return np.zeros(0, dtype=np.int32)
        at, counts = at[filled], counts[filled]
        before = counts.cumsum() - counts
        found = self._kept[np.repeat(at + 1 - before, counts) + np.arange(counts.sum())]
        return np.array(list(dict.fromkeys(found.tolist())), dtype=np.int32)

    def keep(self, row: int, places: np.ndarray) -> None:
        """Adds an item to its buckets."""
        at = places[places & LAST << 32 == 0]
        self._kept[at] += 1
        self._kept[at + self._kept[at]] = row


class _Grams:
    """Exact similarity of two texts. The n-gram sets are cached for the next comparison, up to HELD n-grams."""

    def __init__(self, texts: PackedTexts, n: int) -> None:
        self.texts = texts
        self.n = n
        self._held: dict[int, frozenset[str]] = {}
        self._size = 0

    def jaccard(self, one: int, other: int) -> float:
        """Size of the intersection over size of the union."""
        return jaccard(self._of(one), self._of(other))

    def _of(self, row: int) -> frozenset[str]:
        if row in self._held:
            return self._held[row]
        if self._size > HELD:
            self._held, self._size = {}, 0
        self._held[row] = grams = ngrams(self.texts[row], self.n)
        self._size += len(grams)
        return grams


def copies_by_cosine(vectors_NW: np.ndarray, max_cosine: float, order: np.ndarray | None = None) -> Copies:
    """Finds rows with a cosine > `max_cosine` (strictly) to an earlier kept one (docs/methods.md).

    Exact, in blocks; float16 is computed in float32. A row of zeros is similar to no other row. Rows that are not in
    `order` (by default all are, in turn) are compared with nothing.
    """
    count = len(vectors_NW)
    found = Copies.none(count)
    order = np.arange(count) if order is None else order
    kept: list[np.ndarray] = []
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        block_BW = unit_rows(vectors_NW[block])
        earlier = np.concatenate(kept) if kept else np.zeros(0, dtype=np.intp)
        for tile in range(0, len(earlier), TILE):
            others = earlier[tile : tile + TILE]
            _note(found, block, others, block_BW @ unit_rows(vectors_NW[others]).T, max_cosine)
        close_BB = block_BW @ block_BW.T
        fresh: list[int] = []  # kept within this block, counted from its start
        for i in range(len(block)):
            if found.of[block[i]] >= 0:
                continue
            near = [j for j in fresh if close_BB[i, j] > max_cosine] if (close_BB[i, :i] > max_cosine).any() else []
            if near:
                found.of[block[i]], found.similarity[block[i]] = block[near[0]], close_BB[i, near[0]]
            else:
                fresh.append(i)
        kept.append(block[fresh])
    return found


def _note(found: Copies, block: np.ndarray, others: np.ndarray, cosine_BK: np.ndarray, max_cosine: float) -> None:
    """For rows of a block that are not copies yet: notes the first of `others` that is close."""
    close_BK = cosine_BK > max_cosine
    first_B = close_BK.argmax(axis=1)
    hit_B = close_BK.any(axis=1) & (found.of[block] < 0)
    found.of[block[hit_B]] = others[first_B[hit_B]]
    found.similarity[block[hit_B]] = cosine_BK[hit_B, first_B[hit_B]]


def unit_rows(vectors_NW: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay. float16 becomes float32."""
    found_NW = vectors_NW.astype(np.result_type(vectors_NW.dtype, np.float32))
    length_N = np.sqrt(np.einsum("nw,nw->n", found_NW, found_NW))
    found_NW /= np.where(length_N > 0, length_N, 1)[:, None]
    return found_NW
