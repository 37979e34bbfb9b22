"""What a person sees of a running stage: a rate without the warm-up, and nothing once the reader has left."""

import io
from typing import Any

import pytest
from rich.console import Console

from togi.core.errors import OutputClosed
from togi.recipe import display
from togi.recipe.display import Human, Watched


def step(done: int) -> dict[str, Any]:
    return {"event": "progress", "stage": "policy", "done": done, "total": 900, "what": "steps", "note": ""}


def test_the_first_step_which_loads_and_compiles_is_not_in_the_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    human, shown = Human(), io.StringIO()
    human.console = Console(file=shown)
    human.start("policy", "train.grpo")
    for done, seconds in ((1, 18.7), (2, 5.0), *((n, 0.5) for n in range(3, 60))):
        now[0] += seconds
        human.event(step(done))
    lines = shown.getvalue().splitlines()
    assert lines[1] == "  1/900 steps"  # alone it says nothing
    assert lines[-1].split("  ")[-1].startswith("2/s, 7:")


class Pipe:
    """A display that can be read until `left`."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.left = False

    def note(self, message: str) -> None:
        if self.left:
            raise BrokenPipeError
        self.shown.append(message)

    start = cached = event = done = note  # type: ignore[assignment]


def test_a_reader_that_leaves_is_told_once_and_the_work_may_end():
    pipe = Pipe()
    watched = Watched(pipe)  # type: ignore[arg-type]
    gone: list[bool] = []
    watched.gone = lambda: gone.append(True)
    watched.note("a")
    pipe.left = True
    watched.note("b")
    pipe.left = False
    watched.note("c")
    assert pipe.shown == ["a"] and gone == [True]
    with pytest.raises(OutputClosed):
        raise watched.lost or AssertionError
