"""Selects a budget of items that represent all the others. Deterministic; ties go to the earlier item.

Vectors may be float16; they are computed in float32, one tile at a time. Their lengths are ignored.

Suffixes: N items, W width, T tile, K taken or nearest, P pool, C clusters.
"""

import heapq
from collections.abc import Callable, Iterator

import numpy as np

from togi.data.duplicates import TILE, unit_rows

POOL = 1024
Progress = Callable[[int], None]


def farthest_points(
    vectors_NW: np.ndarray, budget: int, start: int | None = None, progress: Progress = lambda done: None
) -> list[int]:
    """Greedy k-centre: starts with `start`, by default the item nearest to the mean, then always takes the item
    farthest (by cosine) from those taken.

    Returns the indices in the order taken; all items, if the budget allows. The largest distance of an item to its
    nearest taken one is at most twice the optimum (Gonzalez 1985). Covers the edges of the data, outliers included.

    The next items are searched for among the currently farthest ones. As distances only shrink, an item that is farther
    than the old distances of all items outside this pool is the farthest of all, so several items can be taken before
    all distances are recomputed.
    """
    count = len(vectors_NW)
    if budget <= 0 or count == 0:
        return []
    taken = [_nearest_to_mean(vectors_NW) if start is None else start]
    nearest_N = np.full(count, np.inf, dtype=np.result_type(vectors_NW.dtype, np.float32))
    fresh = taken
    while len(taken) < min(budget, count):
        _shrink(nearest_N, vectors_NW, fresh)
        nearest_N[taken] = -np.inf
        fresh = _next(nearest_N, vectors_NW, min(budget, count) - len(taken))
        taken = [*taken, *fresh]
        progress(len(taken))
    return taken


def _nearest_to_mean(vectors_NW: np.ndarray) -> int:
    mean_W = sum(unit_TW.sum(axis=0) for _, unit_TW in _tiles(vectors_NW)) / len(vectors_NW)
    return int(np.argmax(np.concatenate([unit_TW @ mean_W for _, unit_TW in _tiles(vectors_NW)])))


def _tiles(vectors_NW: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the rows, scaled to length 1, in tiles of TILE rows."""
    for first in range(0, len(vectors_NW), TILE):
        rows = slice(first, first + TILE)
        yield rows, unit_rows(vectors_NW[rows])


def _shrink(nearest_N: np.ndarray, vectors_NW: np.ndarray, fresh: list[int]) -> None:
    """Updates each item's distance to its nearest centre with the new centres."""
    centres_WK = unit_rows(vectors_NW[fresh]).T
    for rows, unit_TW in _tiles(vectors_NW):
        np.minimum(nearest_N[rows], 1 - (unit_TW @ centres_WK).max(axis=1), out=nearest_N[rows])


def _next(nearest_N: np.ndarray, vectors_NW: np.ndarray, most: int) -> list[int]:
    """The next items that the greedy rule takes, as far as the pool of the farthest items determines them."""
    first = int(np.argmax(nearest_N))
    pool = np.arange(len(nearest_N))
    outside = -np.inf
    if len(pool) > POOL:
        split = np.argpartition(nearest_N, len(pool) - POOL)
        pool, outside = np.sort(split[-POOL:]), nearest_N[split[:-POOL]].max()
    nearest_P = nearest_N[pool]
    unit_PW = unit_rows(vectors_NW[pool])
    found = [first]
    while len(found) < most:
        place = np.searchsorted(pool, found[-1])
        if place < len(pool) and pool[place] == found[-1]:
            nearest_P[place] = -np.inf
        nearest_P = np.minimum(nearest_P, 1 - unit_PW @ unit_rows(vectors_NW[found[-1:]])[0])
        best = int(np.argmax(nearest_P))
        if nearest_P[best] <= outside or nearest_P[best] == -np.inf:
            break
        found.append(int(pool[best]))
    return found


def facility_location(
    vectors_NW: np.ndarray,
    budget: int,
    neighbours: int = 64,
    start: int | None = None,
    progress: Progress = lambda done: None,
) -> list[int]:
    """Greedy facility location: each step takes the item that raises the summed cosine to the nearest taken one most.

    An item represents its `neighbours` nearest items, itself included; with at most that many items in all this is
    exact. Returns the indices in the order taken, `start` first if given. Represents the bulk rather than the edges.
    Lazy greedy (Minoux 1978) on a heap of stale gains.
    """
    near_NK, cosine_NK = nearest(vectors_NW, neighbours)
    covered_N = np.zeros(len(near_NK), dtype=cosine_NK.dtype)

    def gain(i: int) -> float:
        return float(np.maximum(cosine_NK[i] - covered_N[near_NK[i]], 0).sum())

    heap = [(-gain(i), i) for i in range(len(near_NK))]
    if start is not None:
        heap[start] = (-np.inf, start)
    heapq.heapify(heap)
    taken: list[int] = []
    while heap and len(taken) < budget:
        stale, i = heapq.heappop(heap)
        entry = (-gain(i), i)
        if heap and entry > heap[0] and stale != -np.inf:  # its gain was stale: push it back
            heapq.heappush(heap, entry)
            continue
        taken.append(i)
        covered_N[near_NK[i]] = np.maximum(covered_N[near_NK[i]], cosine_NK[i])
        progress(len(taken))
    return taken


# --- nearest neighbours -----------------------------------------------------------------------------------------------

EXACT = 8192
"""Up to this many items, all are compared with all."""

CLUSTER = 512
SEARCHED = 256  # items at a time
PROBED = 16
SAMPLED = 32  # sampled items per cluster, for k-means
ROUNDS = 5


def nearest(vectors_NW: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) int32 and their cosines: the `k` items nearest to each, itself included, in no particular order.

    With more than EXACT items, the search covers the 16 clusters (of about 512 items) whose centres are nearest to that
    of the item's own cluster. This is approximate; docs/benchmarks.md gives the recall.
    """
    count = len(vectors_NW)
    k = min(k, count)
    near_NK = np.zeros((count, k), dtype=np.int32)
    cosine_NK = np.zeros((count, k), dtype=np.result_type(vectors_NW.dtype, np.float32))
    for rows, others in _searches(vectors_NW):
        for part in range(0, len(rows), SEARCHED):
            some = rows[part : part + SEARCHED]
            unit_TW = unit_rows(vectors_NW[some])
            tiles = (others[first : first + TILE] for first in range(0, len(others), TILE))
            cosine_TO = np.concatenate([unit_TW @ unit_rows(vectors_NW[tile]).T for tile in tiles], axis=1)
            top_TK = np.argpartition(-cosine_TO, k - 1, axis=1)[:, :k] if k < len(others) else _all(cosine_TO)
            near_NK[some] = others[top_TK]
            cosine_NK[some] = np.take_along_axis(cosine_TO, top_TK, axis=1)
    return near_NK, cosine_NK


def _all(cosine_TO: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(cosine_TO.shape[1]), cosine_TO.shape)


def _searches(vectors_NW: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows, and the rows among which their neighbours are searched for."""
    count = len(vectors_NW)
    if count <= EXACT:
        yield np.arange(count), np.arange(count)
        return
    centre_CW, cluster_N = _clusters(vectors_NW, count // CLUSTER)
    by_cluster = np.argsort(cluster_N, kind="stable")
    ends = np.cumsum(np.bincount(cluster_N, minlength=len(centre_CW)))
    members = np.split(by_cluster, ends[:-1])
    probed_CC = np.argsort(-(centre_CW @ centre_CW.T), axis=1, kind="stable")[:, :PROBED]
    for cluster, rows in enumerate(members):
        if len(rows):
            yield rows, np.concatenate([members[other] for other in probed_CC[cluster]])


def _clusters(vectors_NW: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(C, W) centres, and the nearest centre of each row: k-means by cosine on a sample, deterministic."""
    rng = np.random.default_rng(0)
    sample_SW = unit_rows(
        vectors_NW[np.sort(rng.choice(len(vectors_NW), min(len(vectors_NW), SAMPLED * count), False))]
    )
    centre_CW = sample_SW[rng.choice(len(sample_SW), count, False)]
    for _ in range(ROUNDS):
        nearest_S = (sample_SW @ centre_CW.T).argmax(axis=1)
        sums_CW = np.zeros_like(centre_CW)
        np.add.at(sums_CW, nearest_S, sample_SW)
        centre_CW = unit_rows(np.where(np.bincount(nearest_S, minlength=count)[:, None] > 0, sums_CW, centre_CW))
    return centre_CW, np.concatenate([(tile @ centre_CW.T).argmax(axis=1) for _, tile in _tiles(vectors_NW)])
