"""The watch over reward functions: a call that takes long is told, and one that hangs does not keep a run from
stopping."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_run import kill_all, start, togi, write_recipe

from togi.core.errors import Interrupted, TogiError
from togi.rewards.calls import Call, Calls
from togi.stages.context import Context, Control
from togi.stages.training.grading_watch import PATIENCE, SLOW, GradingWatch


class Watched:
    """A watch on a stage in `folder`, whose messages and ends are kept."""

    def __init__(self, folder: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self.ends: list[TogiError] = []
        self.control = Control(send=self.events.append, give_up=self.ends.append)
        self.calls = Calls()
        self.watch = GradingWatch(self.calls, Context("policy", folder, folder, 0, {}, self.control))

    def at(self, *times: float) -> list[str]:
        """The messages of looks at these times."""
        before = len(self.events)
        for now in times:
            self.watch.look(now)
        return [f"{event['event']}: {event['message']}" for event in self.events[before:]]

    def call(self, start: float, deadline: float | None = None) -> None:
        self.calls.current = Call(function="f of slow.py", prompt="q7", start=start, deadline=deadline)


def test_a_call_that_takes_long_is_an_alarm_once_and_a_line_rarely(tmp_path):
    watched = Watched(tmp_path)
    assert watched.at(0.0) == []
    watched.call(start=100.0)
    (alarm,) = watched.at(100.0, 99.0 + SLOW, 100.0 + SLOW, 101.0 + SLOW)
    assert alarm.startswith("alarm: reward function f of slow.py has not returned for 60 seconds (prompt q7); ")
    assert "`deadline`" in alarm
    (line,) = watched.at(*(100.0 + second for second in range(61, 240)))
    assert line == "log: reward function f of slow.py has not returned for 120 seconds (prompt q7)"
    watched.call(start=1000.0)
    assert watched.at(1000.0 + 2 * SLOW) == []  # no longer than those that were told
    assert len(watched.at(*range(1000, 1000 + 24 * 3600, 60))) < 30


def test_a_file_that_does_not_load_is_told_and_does_not_keep_a_run_from_stopping(tmp_path):
    watched = Watched(tmp_path)
    watched.calls.current = Call(function="f of slow.py", prompt="", start=0.0)
    (alarm,) = watched.at(SLOW)
    assert alarm.startswith(
        "alarm: reward function f of slow.py has not loaded for 60 seconds; the run waits for the code"
    )
    watched.control.stop = True
    watched.at(100.0, 100.0 + PATIENCE)
    (error,) = watched.ends
    assert "stopped while reward function f of slow.py had not loaded, 15 seconds after" in str(error)


def test_a_signal_ends_a_run_whose_reward_file_hangs_while_it_loads(tmp_path):
    recipe, home = write_recipe(tmp_path, RECIPE), tmp_path / "home"
    (tmp_path / "reward.py").write_text(
        "import time\nfrom pathlib import Path\n\ndef vowels(prompt, completion):\n    return 1.0\n\n"
        "(Path(__file__).parent / 'hangs').touch()\ntime.sleep(3600)\n"
    )
    run = start(recipe, home)
    until_it_hangs(tmp_path, run)
    os.kill(run.pid, signal.SIGTERM)
    text = output(run)
    assert run.returncode == 130 and "vowels of reward.py had not loaded" in text, text


def test_the_alarm_names_a_deadline_that_exists(tmp_path):
    watched = Watched(tmp_path)
    watched.call(start=0.0, deadline=600.0)
    (alarm,) = watched.at(SLOW)
    assert alarm.endswith("its deadline is 600 seconds")


@pytest.mark.parametrize(("begun", "end"), [(0.0, 10.0 + PATIENCE), (12.0, 12.0 + PATIENCE)])
def test_after_a_request_to_stop_a_call_gets_a_bounded_time(tmp_path, begun, end):
    watched = Watched(tmp_path)
    watched.at(9.0)
    watched.control.stop = True
    watched.at(10.0)
    watched.call(start=begun)
    watched.at(end - 0.1)
    assert not watched.ends
    watched.at(end)
    (error,) = watched.ends
    assert isinstance(error, Interrupted) and "f of slow.py" in str(error) and "prompt q7" in str(error)


def test_without_a_request_to_stop_a_call_may_take_any_time(tmp_path):
    watched = Watched(tmp_path)
    watched.call(start=0.0)
    watched.at(1e6)
    watched.calls.current, watched.control.stop = None, True
    watched.at(1e6, 2e6)
    assert not watched.ends


HANGS = """\
import time
from pathlib import Path

HERE = Path(__file__).parent

def vowels(prompt, completion):
    if (HERE / "marker").exists() and (HERE / "calls").stat().st_size >= 9:
        (HERE / "hangs").touch()
        time.sleep(3600)
    with (HERE / "calls").open("a") as calls:
        calls.write(".")
    return sum(character in "aeiou" for character in completion.text) / max(len(completion.text), 1)
"""
TERM = "{type: function, file: reward.py, name: vowels}"
RECIPE = f"""\
name: tiny
models: {{base: {{path: model, template: chatml}}}}
data: {{questions: {{path: questions.jsonl}}}}
stages:
  policy:
    {{type: train.grpo, init: $base, prompts: $questions, steps: 3, prompts_per_step: 2, group_size: 4, save_every: 1,
     sampling: {{max_tokens: 4}}, reward: {{terms: [{TERM}]}}}}
"""


def until_it_hangs(folder: Path, run: "subprocess.Popen[str]") -> None:
    while not (folder / "hangs").exists():
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.05)


def output(run: "subprocess.Popen[str]") -> str:
    try:
        return " ".join(run.communicate(timeout=100)[0].split())
    except subprocess.TimeoutExpired:
        kill_all(run)
        raise


def test_a_signal_ends_a_run_whose_reward_function_hangs_and_it_continues_from_there(tmp_path):
    recipe, home = write_recipe(tmp_path, RECIPE), tmp_path / "home"
    (tmp_path / "reward.py").write_text(HANGS)
    (tmp_path / "calls").touch()
    (tmp_path / "marker").touch()  # the tenth call, in the second batch, hangs while this file exists
    run = start(recipe, home)
    until_it_hangs(tmp_path, run)
    os.kill(run.pid, signal.SIGTERM)
    text = output(run)
    assert run.returncode == 130 and "vowels of reward.py had not returned" in text and "To continue" in text, text
    assert json.loads((home / "runs" / "tiny" / "state.json").read_text())["state"] == "interrupted"
    (tmp_path / "marker").unlink()
    ended = togi(home, "run", str(recipe), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    calls = (tmp_path / "calls").stat().st_size
    assert calls == 9 + 16  # one call of the second batch is repeated, none of the first


def test_with_a_deadline_the_run_goes_on_and_a_deadline_added_later_continues_the_stage(tmp_path):
    recipe, home = write_recipe(tmp_path, RECIPE), tmp_path / "home"
    (tmp_path / "reward.py").write_text(HANGS)
    (tmp_path / "calls").touch()
    (tmp_path / "marker").touch()
    run = start(recipe, home)
    until_it_hangs(tmp_path, run)
    os.kill(run.pid, signal.SIGTERM)
    os.kill(run.pid, signal.SIGINT)  # at once
    output(run)
    recipe.write_text(RECIPE.replace("name: vowels", "name: vowels, deadline: 0.3"))
    ended = togi(home, "run", str(recipe), "--threads", "1")
    assert ended.returncode == 4
    said = " ".join(ended.stderr.split())
    assert "8 of 8 answers could not be graded" in said and "within its deadline of 0.3 seconds (prompt" in said, said
    assert (tmp_path / "calls").stat().st_size == 9  # the first batch was not graded again
    (tmp_path / "marker").unlink()
    recipe.write_text(RECIPE)
    assert togi(home, "run", str(recipe), "--threads", "1").returncode == 0
