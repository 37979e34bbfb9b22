from itertools import combinations

import numpy as np
import pytest

from togi.data.diversify import facility_location, farthest_points

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
