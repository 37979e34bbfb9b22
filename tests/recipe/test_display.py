"""The display of a running stage: a rate without the warm-up, and nothing after the reader has left."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from togi.core.errors import OutputClosed
from togi.recipe import display
from togi.recipe.display import Closing, Human, JsonLines, Watched, first_words


def step(done: int, total: int = 900) -> dict[str, Any]:
    return {"event": "progress", "stage": "policy", "done": done, "total": total, "what": "steps", "note": "reward 1"}


def fed(monkeypatch: pytest.MonkeyPatch, events: list[tuple[int, float]], terminal: bool = False) -> tuple[Human, Any]:
    """A display and its output, after steps that each came so many seconds after the one before."""
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    human, shown = Human(), io.StringIO()
    human.console = Console(file=shown, force_terminal=terminal, color_system=None, width=100)
    human.start("policy", "train.grpo")
    for done, seconds in events:
        now[0] += seconds
        human.event(step(done))
    return human, shown


def test_loading_and_warm_up_are_not_in_the_rate(monkeypatch):
    slow = [(1, 18.7), (2, 40.0)]
    _, shown = fed(monkeypatch, [*slow, *((n, 0.5) for n in range(3, 60))])
    lines = shown.getvalue().splitlines()
    assert lines[1] == "  1/900 steps  reward 1" and lines[2] == "  2/900 steps  reward 1"  # nothing is known yet
    assert "  2/s, 7:" in lines[-1] and lines[-1].endswith(" left  reward 1")


def test_a_stage_of_45_seconds_never_promises_hours(monkeypatch):
    human, _ = fed(monkeypatch, [(1, 30.0), (2, 12.0), (3, 0.1), (4, 0.1)])
    assert human.pace.rate_and_rest(900) == "10/s, 1:29 left"


def test_a_quiet_log_shows_the_metrics_of_the_last_step(monkeypatch):
    human, shown = fed(monkeypatch, [(1, 30.0), (2, 1.0)])
    human.event(step(8, total=8))
    human.event({**step(3, total=3), "what": "shard", "note": ""})
    assert shown.getvalue().splitlines()[1:] == ["  1/900 steps  reward 1", "  8/8 steps  reward 1"]


def test_a_terminal_shows_a_spinner_at_once_then_a_bar(monkeypatch):
    human, shown = fed(monkeypatch, [], terminal=True)
    assert "loading model" in shown.getvalue()
    human.event(step(450))
    human.done("policy", 1.0)
    assert "450/900 steps ━━━━" in shown.getvalue() and "reward 1" in shown.getvalue()
    assert first_words("select") == "reading records"


def test_the_bar_is_shorter_where_the_words_need_its_room(monkeypatch):
    human, shown = fed(monkeypatch, [], terminal=True)
    human.console.width = 80
    human.event({**step(450), "note": "loss 3.6895, validation 3.2182, 186 tokens/s"})
    human.done("policy", 1.0)
    line = next(line for line in shown.getvalue().splitlines() if "450/900" in line)
    assert "validation 3.2182, 186 tokens/s" in line and 0 < line.count("\u2501") < human.BAR


CLOSING = Closing(
    run="0123456789ab",
    report="/r.html",
    chats={"policy": "togi chat r.yaml policy"},
    rows=[("reward", "1", "2", "+1", "better")],
)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_end_shows_the_table_the_report_and_how_to_chat(monkeypatch, terminal):
    human, shown = fed(monkeypatch, [], terminal)
    human.closing(CLOSING)
    lines = shown.getvalue().splitlines()
    assert any(line.strip(" │").split() == ["reward", "1", "2", "+1", "better"] for line in lines)
    assert any("report: /r.html" in line for line in lines) and any("togi chat r.yaml policy" in line for line in lines)
    assert ("╭" in shown.getvalue()) is terminal


def test_the_end_in_json_has_the_table(capsys):
    JsonLines().closing(CLOSING)
    row = {"metric": "reward", "before": "1", "after": "2", "difference": "+1", "verdict": "better"}
    end = {
        "event": "end",
        "run": "0123456789ab",
        "report": "/r.html",
        "chat": {"policy": "togi chat r.yaml policy"},
        "table": [row],
        "spent": [],
    }
    assert json.loads(capsys.readouterr().out) == end


class Pipe:
    """A display that can be read until `left`."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.left = False

    def note(self, message: str) -> None:
        if self.left:
            raise BrokenPipeError
        self.shown.append(message)

    start = cached = event = done = closing = note  # type: ignore[assignment]


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


def test_a_note_of_a_signal_amid_a_line_comes_after_it():
    class Interrupted(io.StringIO):
        """A stream during whose first write a signal comes; like a file's stream it then rejects a reentrant write."""

        amid, told = False, False

        def write(self, text: str) -> int:
            if self.amid:
                raise RuntimeError("reentrant call")
            self.amid = True
            if not self.told:
                self.told = True
                watched.note("stopping")
            self.amid = False
            return super().write(text)

    human = Human()
    human.console = Console(file=Interrupted(), width=100)
    watched = Watched(human)
    watched.event({"event": "log", "stage": "policy", "message": "waiting for another run"})
    assert human.console.file.getvalue().split() == ["waiting", "for", "another", "run", "stopping"]


def test_a_quiet_log_shows_the_end_once_however_often_it_is_reported(monkeypatch):
    """A judge's batch is 1 of 1 from its start, and reports its calls as they come."""
    human, shown = fed(monkeypatch, [])
    for number in range(20):
        human.event({**step(1, total=1), "what": "batches", "note": f"judge: {number} calls"})
    human.event({"event": "log", "message": "accuracy 0.9"})
    human.done("scores", 1.0)
    assert shown.getvalue().splitlines()[1:3] == ["  1/1 batches  judge: 19 calls", "  accuracy 0.9"]
    assert shown.getvalue().count("batches") == 1
