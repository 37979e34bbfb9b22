"""Finds near-duplicates greedily in row order: an item is a copy if it is too similar to an earlier kept one.

Suffixes: N items, W width, B block, K kept.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue] - compiled, no stubs

from togi.core.records import Drop, Record
from togi.text.compare import jaccard, shingles

R = TypeVar("R", bound=Record)

PERMUTATIONS = 256
BLOCK = 1024
MISS = 1e-3  # largest probability of missing a pair exactly at the threshold


def copies_by_ngrams(texts: Sequence[str], max_jaccard: float, n: int = 4, seed: int = 0) -> list[int | None]:
    """For each text the earlier kept text it is a copy of, or None: Jaccard of character n-grams > `max_jaccard`.

    Candidates come from MinHash with banding that misses a pair at the threshold less than once in a thousand. Each
    candidate is then compared exactly, so no text is dropped by chance.
    """
    index = RMinHashLSH(max_jaccard, PERMUTATIONS, _bands(max_jaccard))
    sets = [shingles(text, n) for text in texts]
    copies: list[int | None] = []
    for row, grams in enumerate(sets):
        sketch = RMinHash(PERMUTATIONS, seed)
        sketch.update(sorted(grams))
        close = (k for k in sorted(index.query(sketch)) if jaccard(sets[k], grams) > max_jaccard)
        copies.append(next(close, None))
        if copies[-1] is None:
            index.insert(row, sketch)
    return copies


def _bands(threshold: float) -> int:
    """The fewest bands (fewest false candidates) that miss a pair at the threshold less often than MISS."""
    for rows in (16, 8, 4, 2):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) < MISS:
            return PERMUTATIONS // rows
    return PERMUTATIONS


def copies_by_cosine(vectors_NW: np.ndarray, max_cosine: float) -> list[int | None]:
    """For each row the first earlier kept row with a cosine > `max_cosine` (strictly), or None (docs/methods.md).

    Exact, in blocks. A row of zeros is similar to no other row.
    """
    length_N1 = np.linalg.norm(vectors_NW, axis=1, keepdims=True)
    unit_NW = vectors_NW / np.where(length_N1 > 0, length_N1, 1)
    copies: list[int | None] = []
    kept: list[int] = []
    for start in range(0, len(unit_NW), BLOCK):
        block_BW = unit_NW[start : start + BLOCK]
        earlier = np.array(kept, dtype=np.intp)
        close_BK = block_BW @ unit_NW[earlier].T > max_cosine
        close_BB = block_BW @ block_BW.T > max_cosine
        fresh: list[int] = []  # kept within this block, counted from its start
        for i in range(len(block_BW)):
            found = [int(earlier[k]) for k in np.flatnonzero(close_BK[i])[:1]]
            found += [start + j for j in fresh if close_BB[i, j]]
            copies.append(found[0] if found else None)
            if not found:
                fresh.append(i)
        kept += [start + i for i in fresh]
    return copies


def remove_copies(
    records: Sequence[R], copies: Sequence[int | None], *, stage: str, reason: str = "near_duplicate"
) -> tuple[list[R], list[Drop]]:
    """The records that are not copies, and a drop for each copy."""
    kept = [r for r, copy in zip(records, copies, strict=True) if copy is None]
    drops = [Drop(id=r.id, stage=stage, reason=reason) for r, c in zip(records, copies, strict=True) if c is not None]
    return kept, drops
