"""Two runs at once: those that share a stage wait for each other and say so; a second of the same recipe is refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forked
import pytest
from tiny_run import environment, togi

from togi.recipe.state import is_running

STAGES = "data: {rows: {path: rows.jsonl}}\nstages: {some: {type: select, input: $rows}}\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home in which `one` has run and `two`, which shares its stages, has not; the stages are marked unfinished."""
    (tmp_path / "rows.jsonl").write_text('{"question": "Why?"}\n')
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\n{STAGES}")
    home = tmp_path / "home"
    assert togi(home, "run", str(tmp_path / "one.yaml")).returncode == 0
    (home / "runs" / "one" / "some" / "DONE").rename(tmp_path / "DONE")
    return home


def start(home: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "togi", "run", str(home.parent / f"{name}.yaml")]
    return forked.Popen(command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock of a folder as a run does."""
    code = "import sys, time; from pathlib import Path; from togi.core.locks import take\n"
    code += f"h = take(Path({str(folder)!r})); print(h is not None, flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"True\n"
    try:
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def said(run: subprocess.Popen[str], words: str) -> str:
    """The first line of a run's output that contains `words`."""
    assert run.stdout is not None
    found = next((line for line in run.stdout if words in line), None)
    assert found is not None, f"never said {words!r}"
    return found


def stages(home: Path, name: str) -> list[tuple[str, str, bool]]:
    state = json.loads((home / "runs" / name / "state.json").read_text())
    return [(state["state"], stage["state"], stage["cached"]) for stage in state["stages"]]


def test_a_run_waits_for_a_stage_until_the_other_run_is_gone_and_then_does_it(home):
    with held((home / "runs" / "one" / "some").resolve()) as holder:
        run = start(home, "two")
        line = said(run, "stage some is being done by another run")
        assert f"(pid {holder.pid}); waiting" in line
        holder.kill()
        run.communicate(timeout=30)
    assert run.returncode == 0 and stages(home, "two") == [("done", "done", True), ("done", "done", False)]


def test_what_the_other_run_finished_is_not_done_again(home):
    folder = (home / "runs" / "one" / "some").resolve()
    with held(folder) as holder:
        run = start(home, "two")
        said(run, "waiting")
        before = sorted(os.listdir(folder))
        (home.parent / "DONE").rename(folder / "DONE")
        holder.kill()
        text, _ = run.communicate(timeout=30)
    assert run.returncode == 0 and "some (select) finished earlier" in text, text
    assert stages(home, "two") == [("done", "done", True), ("done", "done", True)]
    assert sorted(os.listdir(folder)) == sorted([*before, "DONE"])


def test_a_signal_ends_the_waiting(home):
    with held((home / "runs" / "one" / "some").resolve()):
        run = start(home, "two")
        said(run, "waiting")
        os.kill(run.pid, signal.SIGINT)
        run.communicate(timeout=30)
    assert run.returncode == 130
    assert stages(home, "two") == [("interrupted", "done", True), ("interrupted", "interrupted", False)]


def test_a_second_run_of_a_recipe_is_refused_before_anything_of_the_first_is_touched(home):
    with held((home / "runs" / "one" / "some").resolve()):
        first = start(home, "one")
        said(first, "waiting")
        assert is_running(home / "runs" / "one")
        folder = home / "runs" / "one"
        before = {path.name: os.lstat(path).st_mtime_ns for path in folder.iterdir()}
        again = togi(home, "run", str(home.parent / "one.yaml"), "stages.some.count=1", "--redo", "rows")
        assert again.returncode == 4 and f"one: a recipe of this name is running (pid {first.pid})" in again.stderr
        assert {path.name: os.lstat(path).st_mtime_ns for path in folder.iterdir()} == before
        assert json.loads((folder / "state.json").read_text())["state"] == "running"
        os.kill(first.pid, signal.SIGTERM)
        first.communicate(timeout=30)
    assert first.returncode == 130


def test_a_stage_that_is_at_work_elsewhere_is_not_forgotten(home):
    with held((home / "runs" / "one" / "some").resolve()) as holder:
        redo = togi(home, "run", str(home.parent / "two.yaml"), "--redo", "some")
    assert redo.returncode == 4 and f"another run (pid {holder.pid}) is working on this stage" in redo.stderr
