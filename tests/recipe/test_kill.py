"""Kill it anywhere and run the same command again: it ends with the same bits as an undisturbed run.

Moments are drawn from the events that a run writes (units of generation, steps, starts of saves); the process is killed
as soon as the event is on disk, so the kill hits the work that follows it.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest
from tiny_run import command_of, kill_all, results, start, start_plainly, togi

EVENT_FILES = ("journal.jsonl", "metrics.jsonl")
Event = tuple[str, str, int]  # folder of the stage, file, number of lines


def events(finished: Path) -> list[Event]:
    """Every line in the journals of the undisturbed run, stage by stage."""
    state = json.loads((finished / "home" / "runs" / "tiny" / "state.json").read_text())
    found: list[Event] = []
    for row in state["stages"]:
        folder = finished / "home" / "store" / Path(row["folder"]).name
        for name in EVENT_FILES:
            if (folder / name).exists():
                count = (folder / name).read_bytes().count(b"\n")
                found += [(folder.name, name, n) for n in range(1, count + 1)]
    return found


def line_of(finished: Path, event: Event) -> dict:
    folder, name, number = event
    return json.loads((finished / "home" / "store" / folder / name).read_text().splitlines()[number - 1])


def draw(finished: Path) -> list[Event]:
    """20 moments: 8 in GRPO steps, 6 during generation, 6 while saving; in the order in which a run reaches them."""
    every = events(finished)
    kinds: dict[str, list[Event]] = {"steps": [], "generation": [], "saving": []}
    for event in every:
        line = line_of(finished, event)
        if event[1] == "metrics.jsonl" and event[0].startswith("train.grpo"):
            kinds["steps"].append(event)
        elif "unit" in line:
            kinds["generation"].append(event)
        elif "saving" in line:
            kinds["saving"].append(event)
    generator = random.Random(20)
    counts = {"steps": 8, "generation": 6, "saving": 6}
    drawn = [event for kind, found in kinds.items() for event in generator.choices(found, k=counts[kind])]
    return sorted(drawn, key=every.index)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(home: Path, event: Event, run: subprocess.Popen[str]) -> bool:
    """Waits until the event is on disk; False if the run ended before."""
    folder, name, number = event
    while lines_in(home / "store" / folder / name) < number:
        if run.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def kill_at(recipe: Path, home: Path, moments: Iterable[Event]) -> None:
    """Starts a run for each moment and kills it there; each run resumes from the state that the previous one left."""
    for event in moments:
        run = start(recipe, home)
        assert wait_for(home, event, run), f"{event} never came: {run.communicate()[0]}"
        kill_all(run)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 5))])
def test_killed_at_any_moment_a_run_ends_with_the_same_bits(finished, tmp_path, part):
    """Moments 1, 6, 11, 16 in one run, 2, 7, 12, 17 in the next: four kills each, spread over the run."""
    kill_at(finished / "tiny.yaml", tmp_path, draw(finished)[part::5])
    ended = togi(tmp_path, "run", str(finished / "tiny.yaml"), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path) == results(finished / "home")
    assert not list((tmp_path / "store").rglob(".*.tmp"))


def test_the_moments_lie_where_they_should(finished):
    moments = draw(finished)
    lines = [line_of(finished, event) for event in moments]
    assert len(moments) == 20
    assert sum("loss" in line for line in lines) >= 5
    assert sum("unit" in line for line in lines) >= 3
    assert sum("saving" in line for line in lines) >= 3


@pytest.mark.parametrize(
    "point",
    [
        "before_rename:9",
        "mid_append:12",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("before_sync:7", "after_rename:8")),
    ],
)
def test_killed_at_a_write_point_a_run_ends_with_the_same_bits(finished, tmp_path, point):
    run = start(finished / "tiny.yaml", tmp_path, TOGI_CRASH_AT=point)
    text, _ = run.communicate(timeout=200)
    assert run.returncode == 5 and "SIGKILL" in text, text
    ended = togi(tmp_path, "run", str(finished / "tiny.yaml"), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path) == results(finished / "home")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_go_on_and_has_its_own_code(finished, tmp_path, number):
    third_step = next(e for e in events(finished) if e[0].startswith("train.grpo") and e[1:] == ("metrics.jsonl", 3))
    run = start(finished / "tiny.yaml", tmp_path)
    assert wait_for(tmp_path, third_step, run)
    os.kill(run.pid, number)
    text, _ = run.communicate(timeout=100)
    assert run.returncode == 130
    assert f"To continue: togi run {finished / 'tiny.yaml'}" in text.replace("\n", " ")
    assert list((tmp_path / "store" / third_step[0] / "checkpoints").glob("step-*"))
    assert json.loads((tmp_path / "runs" / "tiny" / "state.json").read_text())["state"] == "interrupted"
    ended = togi(tmp_path, "run", str(finished / "tiny.yaml"), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    assert results(tmp_path) == results(finished / "home")


def test_a_second_signal_stops_at_once_and_is_no_fault(tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"question": "Why?"}\n')
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "name: tiny\ndata: {questions: {path: questions.jsonl}}\nstages: {some: {type: select, input: $questions}}\n"
    )
    run = start_plainly(recipe, tmp_path)
    worker_of(run).suspend()  # during its first imports: it cannot stop cleanly before the second signal
    os.kill(run.pid, signal.SIGINT)
    assert run.stdout is not None
    for line in run.stdout:
        if "repeat to stop at once" in line.replace("\n", " "):
            break
    os.kill(run.pid, signal.SIGINT)
    text, _ = run.communicate(timeout=100)
    assert run.returncode == 130 and "stopping at once" in text and "memory" not in text, text
    state = json.loads((tmp_path / "runs" / "tiny" / "state.json").read_text())
    assert state["state"] == "interrupted"
    assert [stage["state"] for stage in state["stages"]] == ["interrupted", "waiting"]


def worker_of(run: subprocess.Popen[str]) -> psutil.Process:
    """The process that runs the stages, as soon as it exists."""
    while run.poll() is None:
        for child in psutil.Process(run.pid).children():
            if "togi.recipe.worker" in command_of(child):  # before its program starts it has the parent's
                return child
        time.sleep(0.001)
    raise AssertionError(f"there was no worker: {run.communicate()[0]}")


def test_the_comparison_would_see_a_difference(finished, tmp_path):
    """A control: another learning rate gives other bits."""
    shutil.copytree(finished / "home", tmp_path / "home", symlinks=True)
    ended = togi(
        tmp_path / "home", "run", str(finished / "tiny.yaml"), "stages.policy.learning_rate=1.001e-3", "--threads", "1"
    )
    assert ended.returncode == 0, ended.stderr
    weights = "output/model/model.safetensors"
    found, expected = (
        [files[weights] for name, files in results(home).items() if name.startswith("train.grpo") and weights in files]
        for home in (tmp_path / "home", finished / "home")
    )
    assert len(found) == 2 and len(expected) == 1 and found[0] != found[1]
