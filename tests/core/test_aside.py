"""Values stored on disk and read by number."""

from pathlib import Path

import pytest

from togi.core import aside
from togi.core.aside import Aside


@pytest.mark.parametrize("in_memory", [1 << 20, 1])
def test_values_come_back_in_any_order_while_others_are_added(tmp_path: Path, monkeypatch, in_memory: int) -> None:
    monkeypatch.setattr(aside, "IN_MEMORY", in_memory)
    kept: Aside[tuple[int, str]] = Aside(list, lambda row: (row[0], row[1]), tmp_path)
    first, second = [(number, "é質\ud800" * number) for number in range(50)], [(50, ""), (51, "last")]
    kept.add(first)
    assert kept[49] == first[49] and kept[0] == first[0]
    kept.add(second)
    assert list(kept) == first + second and kept[-1] == second[1] and kept[48:51] == [*first[48:], second[0]]
    with pytest.raises(IndexError):
        kept[52]
    assert list(tmp_path.iterdir()) == []  # nothing is left behind, however the process ends
