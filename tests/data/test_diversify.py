from itertools import combinations

import numpy as np
import pytest

from togi.data import diversify
from togi.data.diversify import facility_location, farthest_points, nearest

RNG = np.random.default_rng(3)
CENTRES = np.eye(6)[:4]
CLUSTERS = np.concatenate([CENTRES[k] + 0.05 * RNG.normal(size=(10, 6)) for k in range(4)])


@pytest.mark.parametrize("choose", [farthest_points, facility_location])
def test_one_of_each_cluster_first(choose) -> None:
    taken = choose(CLUSTERS, 4)
    assert sorted(i // 10 for i in taken) == [0, 1, 2, 3]
    assert choose(CLUSTERS, 4) == taken == choose(CLUSTERS, 9)[:4]


@pytest.mark.parametrize("choose", [farthest_points, facility_location])
def test_budgets_at_the_ends(choose) -> None:
    assert choose(CLUSTERS, 0) == []
    assert sorted(choose(CLUSTERS, 100)) == list(range(40))
    assert choose(np.zeros((0, 3)), 5) == []
    assert sorted(choose(np.zeros((3, 2)), 3)) == [0, 1, 2]


def test_ties_go_to_the_earlier_item() -> None:
    same = np.ones((5, 3))
    assert farthest_points(same, 3) == [0, 1, 2]
    assert facility_location(same, 3) == [0, 1, 2]


def test_farthest_points_is_within_twice_the_best() -> None:
    points = RNG.normal(size=(14, 2))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)

    def radius(taken: tuple[int, ...] | list[int]) -> float:
        angles = np.arccos(np.clip(unit @ unit[list(taken)].T, -1, 1))
        return float(angles.min(axis=1).max())

    best = min(radius(choice) for choice in combinations(range(14), 3))
    assert radius(farthest_points(points, 3)) <= 2 * best + 1e-9


def test_facility_location_equals_the_plain_greedy() -> None:
    points = RNG.normal(size=(30, 4))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    similar = unit @ unit.T
    covered, taken = np.zeros(30), []
    for _ in range(8):
        gains = np.maximum(similar - covered, 0).sum(axis=1)
        gains[taken] = -1
        taken.append(int(np.argmax(gains)))
        covered = np.maximum(covered, similar[taken[-1]])
    assert facility_location(points, 8) == taken


def test_farthest_points_in_pools_and_tiles_equal_the_plain_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversify, "POOL", 37)
    monkeypatch.setattr(diversify, "TILE", 64)
    points = RNG.normal(size=(500, 8))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    for start in (None, 7):
        taken = [int(np.argmax(unit @ unit.mean(axis=0)))] if start is None else [start]
        distance = np.full(500, np.inf)
        while len(taken) < 200:
            distance = np.minimum(distance, 1 - unit @ unit[taken[-1]])
            distance[taken] = -np.inf
            taken.append(int(np.argmax(distance)))
        assert farthest_points(points, 200, start) == taken


def test_the_start_is_taken_first() -> None:
    assert farthest_points(CLUSTERS, 4, start=17)[0] == 17 == facility_location(CLUSTERS, 4, start=17)[0]
    assert sorted(i // 10 for i in facility_location(CLUSTERS, 4, start=17)) == [0, 1, 2, 3]


def test_neighbours_of_clusters_are_nearly_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    points = (CENTRES[RNG.integers(0, 4, 3000)] + 0.3 * RNG.normal(size=(3000, 6))).astype(np.float16)
    exact, cosines = nearest(points, 16)
    assert (exact == np.arange(3000)[:, None]).any(axis=1).all() and cosines.max(axis=1) == pytest.approx(1, abs=1e-5)
    for name, value in (("EXACT", 500), ("CLUSTER", 60)):
        monkeypatch.setattr(diversify, name, value)
    found, _ = nearest(points, 16)
    shared = [len({*a} & {*b}) / 16 for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    assert np.mean(shared) > 0.95 and (nearest(points, 16)[0] == found).all()


def test_with_few_neighbours_an_item_stands_for_them_alone() -> None:
    """Each cluster has 10 items: with 10 neighbours an item represents its cluster, with 5 half of it."""
    assert sorted(i // 10 for i in facility_location(CLUSTERS, 8, neighbours=10)[:4]) == [0, 1, 2, 3]
    assert sorted(i // 10 for i in facility_location(CLUSTERS, 8, neighbours=5)) == [0, 0, 1, 1, 2, 2, 3, 3]
