"""Finds near-duplicates greedily: an item is a copy if it is too similar to one that came before it and was kept.

Items come in row order, or in an order that is given: the best first, say. Beside the texts, a row holds at most 1 KiB.

Suffixes: N items, W width, B block or bands, K kept, P permutations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from togi.data.minhash import Layout, band_keys, error, estimated, low_bytes, signatures
from togi.data.packed import PackedTexts
from togi.text.compare import jaccard, normalise, shingles
from togi.text.ngrams import Codes, character_ngrams, portions

BLOCK = 1024
TILE = 2048
SURE = 4.0  # standard deviations below the threshold at which an estimate rules a pair out
LAST = 1 << 30  # marks the last item of a bucket: none asks for it
HELD = 1 << 17  # n-grams that are kept for the next comparison


@dataclass(frozen=True, slots=True)
class Copies:
    """`of[i]` is the kept item that item i is a copy of, -1 where it is kept; `similarity[i]` how alike the two are."""

    of: np.ndarray
    similarity: np.ndarray

    @classmethod
    def none(cls, count: int) -> "Copies":
        """Nothing is a copy."""
        return cls(np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.float32))

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool: what is no copy."""
        return self.of < 0


def copies_by_ngrams(texts: Sequence[str], max_jaccard: float, n: int = 4, order: np.ndarray | None = None) -> Copies:
    """Which texts are copies: Jaccard similarity of character n-grams > `max_jaccard`. See `NgramCopies`."""
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
            plain = [normalise(text) for text in portion]
            found_PN = signatures(character_ngrams(Codes.of(plain), self.n), self.layout.permutations)
            rows = slice(len(self.texts), len(self.texts) + len(plain))
            self._keys_NB[rows] = band_keys(found_PN, self.layout)
            self._bytes_NP[rows] = low_bytes(found_PN)
            self.texts.add(plain)

    def copies(self, order: np.ndarray | None = None, progress: Callable[[int], None] = lambda done: None) -> Copies:
        """Which texts are copies, seen in `order` (all rows, each once; by default as they came). Call it once: it uses
        up what it holds. `progress` is told how many rows are done."""
        count = len(self.texts)
        found = Copies.none(count)
        if self.max_jaccard >= 1:  # nothing is more alike than equal
            return found
        order = np.arange(count) if order is None else order
        rank_N = np.empty(count, dtype=np.int64)
        rank_N[order] = np.arange(count)
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
        """Those of `others` whose estimated similarity does not rule them out, in their order."""
        if not len(others):
            return []
        near = others[estimated(self._bytes_NP[others], self._bytes_NP[row]) >= self._least]
        return near[np.argsort(rank_N[near])].tolist() if len(near) > 1 else near.tolist()


class _Buckets:
    """Items with an equal band, band by band. An item alone in its bucket is in none.

    A bucket's room in `_kept` begins with the number of its kept items, which follow; the last item of a bucket in
    `order` needs no room, since none asks after it. The numbers in `keys_NB` become the places of the buckets.
    """

    def __init__(self, keys_NB: np.ndarray, order: np.ndarray) -> None:
        count, bands = keys_NB.shape
        self.place_NB = keys_NB.view(np.int32)
        self._first = np.arange(bands, dtype=np.int64) * count
        for band in range(bands):
            sort = order[np.argsort(keys_NB[order, band], kind="stable")]
            keys = keys_NB[sort, band]
            begins = np.append(True, keys[1:] != keys[:-1]) if count else np.zeros(0, dtype=bool)
            starts = np.flatnonzero(begins)
            sizes = np.diff(np.append(starts, count))
            place = np.repeat(np.where(sizes > 1, starts, -1), sizes)
            ends = starts + sizes - 1
            place[ends[sizes > 1]] |= LAST
            self.place_NB[sort, band] = place
        self._kept = np.zeros(bands * count, dtype=np.int32)
        self.shared_N = np.zeros(count, dtype=bool)
        for band in range(bands):
            self.shared_N |= self.place_NB[:, band] >= 0

    def places(self, row: int) -> np.ndarray:
        """Where an item's buckets begin; those of which it is the last are marked."""
        place_B = self.place_NB[row]
        shared = (place_B >= 0).nonzero()[0]
        place = place_B[shared].astype(np.int64)
        return (self._first[shared] + (place & ~LAST)) | (place & LAST) << 32

    def kept(self, places: np.ndarray) -> np.ndarray:
        """The kept items in some buckets."""
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
        """Puts an item into its buckets."""
        at = places[places & LAST << 32 == 0]
        self._kept[at] += 1
        self._kept[at + self._kept[at]] = row


class _Grams:
    """The exact similarity of two texts. The sets of their n-grams are kept for the next comparison, up to HELD."""

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
        self._held[row] = grams = shingles(self.texts[row], self.n)
        self._size += len(grams)
        return grams


def copies_by_cosine(vectors_NW: np.ndarray, max_cosine: float, order: np.ndarray | None = None) -> Copies:
    """Which rows have a cosine > `max_cosine` (strictly) with an earlier kept one (docs/methods.md).

    Exact, in blocks; float16 is computed in float32. A row of zeros is similar to no other row.
    """
    count = len(vectors_NW)
    found = Copies.none(count)
    order = np.arange(count) if order is None else order
    kept: list[np.ndarray] = []
    for start in range(0, count, BLOCK):
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
    """Notes for rows of a block that are no copies yet the first of `others` that is close."""
    close_BK = cosine_BK > max_cosine
    first_B = close_BK.argmax(axis=1)
    hit_B = close_BK.any(axis=1) & (found.of[block] < 0)
    found.of[block[hit_B]] = others[first_B[hit_B]]
    found.similarity[block[hit_B]] = cosine_BK[hit_B, first_B[hit_B]]


def unit_rows(vectors_NW: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay. float16 becomes float32."""
    found_NW = vectors_NW.astype(np.result_type(vectors_NW.dtype, np.float32))
    length_N = np.sqrt(np.einsum("nw,nw->n", found_NW, found_NW))
    found_NW /= np.where(length_N > 0, length_N, 1)[:, None]
    return found_NW
