"""Selects a budget of items that represent all the others. Deterministic; ties go to the earlier item.

Suffixes: N items, W width.
"""

import heapq

import numpy as np


def farthest_points(vectors_NW: np.ndarray, budget: int) -> list[int]:
    """Greedy k-centre: starts nearest to the mean, then always takes the item farthest (by cosine) from those taken.

    Gives the indices in the order taken; all items, if the budget allows. The largest distance of an item to its
    nearest taken one is at most twice the best possible (Gonzalez 1985). Finds the edges of the data, outliers too.
    """
    unit_NW = _unit(vectors_NW)
    if budget <= 0 or len(unit_NW) == 0:
        return []
    taken = [int(np.argmax(unit_NW @ unit_NW.mean(axis=0)))]
    nearest_N = 1 - unit_NW @ unit_NW[taken[0]]
    nearest_N[taken[0]] = -np.inf
    while len(taken) < min(budget, len(unit_NW)):
        taken.append(int(np.argmax(nearest_N)))
        nearest_N = np.minimum(nearest_N, 1 - unit_NW @ unit_NW[taken[-1]])
        nearest_N[taken[-1]] = -np.inf
    return taken


def facility_location(vectors_NW: np.ndarray, budget: int) -> list[int]:
    """Greedy facility location: each step takes the item that raises the summed cosine to the nearest taken one most.

    Gives the indices in the order taken. Represents the bulk rather than the edges. Lazy greedy (Minoux 1978) on a heap
    of stale gains; needs N x N numbers, so at most some ten thousand items.
    """
    unit_NW = _unit(vectors_NW)
    similar_NN = unit_NW @ unit_NW.T
    covered_N = np.zeros(len(unit_NW), dtype=unit_NW.dtype)
    heap = [(-_gain(row_N, covered_N), i) for i, row_N in enumerate(similar_NN)]
    heapq.heapify(heap)
    taken: list[int] = []
    while heap and len(taken) < budget:
        _, i = heapq.heappop(heap)
        entry = (-_gain(similar_NN[i], covered_N), i)
        if heap and entry > heap[0]:  # its gain is stale: back into the queue
            heapq.heappush(heap, entry)
            continue
        taken.append(i)
        covered_N = np.maximum(covered_N, similar_NN[i])
    return taken


def _gain(row_N: np.ndarray, covered_N: np.ndarray) -> float:
    return float(np.maximum(row_N - covered_N, 0).sum())


def _unit(vectors_NW: np.ndarray) -> np.ndarray:
    length_N1 = np.linalg.norm(vectors_NW, axis=1, keepdims=True)
    return vectors_NW / np.where(length_N1 > 0, length_N1, 1)
