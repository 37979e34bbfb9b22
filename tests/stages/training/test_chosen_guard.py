"""The guard over chosen answers: when it raises an alarm, that it does so once, and what it remembers after a kill."""

from pathlib import Path

import pytest

from togi.core.errors import StageError
from togi.core.files import read_lines
from togi.stages.context import Context, Control
from togi.stages.training.chosen_guard import FallingChosen, FallWatch


def quiet_context(folder: Path) -> Context:
    control = Control(send=lambda event: None)
    return Context(name="learn", folder=folder, cache=folder, seed=1, inputs={}, control=control)


def alarms(folder: Path, watch: FallWatch, values: list[float]) -> list[int]:
    """Returns the steps at which the watch raised an alarm."""
    for step, value in enumerate(values, 1):
        watch.observe(step, value, quiet_context(folder))
    return [line["step"] for line in read_lines(folder / "alarms.jsonl")]


def test_a_fall_under_a_known_start_is_told_once_while_it_lasts(tmp_path):
    watch = FallWatch(FallingChosen(max_fall=0.22, window=2), 0.0)
    assert alarms(tmp_path, watch, [0.0, -0.1, -0.2, -0.3, -0.4, 0.0, 0.1, -0.5, -0.5]) == [4, 9]


def test_an_unknown_start_is_the_mean_of_the_first_window(tmp_path):
    watch = FallWatch(FallingChosen(max_fall=0.2, window=2))
    assert alarms(tmp_path, watch, [-3.0, -3.2, -3.2, -3.2, -3.4]) == []
    assert alarms(tmp_path, watch, [-3.5]) == [1]


def test_rising_never_alarms(tmp_path):
    assert alarms(tmp_path, FallWatch(FallingChosen(window=1), 0.0), [0.5, 1.0, 2.0]) == []


def test_the_recipe_may_want_the_run_to_end(tmp_path):
    watch = FallWatch(FallingChosen(max_fall=0.2, window=1, stop=True), 0.0)
    with pytest.raises(StageError, match=r"stopped by a guard: the chosen answers fell by 0.3 nats per token"):
        watch.observe(7, -0.3, quiet_context(tmp_path))


def test_what_it_remembers_makes_a_watch_that_goes_on(tmp_path):
    values = [-3.0, -3.2, -3.1, -3.35, -3.5, -3.5]
    whole = FallWatch(FallingChosen(max_fall=0.2, window=2))
    expected = alarms(tmp_path, whole, values)
    (tmp_path / "again").mkdir()
    first, second = FallWatch(whole.settings), FallWatch(whole.settings)
    alarms(tmp_path / "again", first, values[:3])
    second.restore(first.state())
    found = alarms(tmp_path / "again", second, values[3:])
    assert second.state() == whole.state() and [step + 3 for step in found] == expected == [5]
