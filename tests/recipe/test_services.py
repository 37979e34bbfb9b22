"""Services: started before the first stage that needs them, stopped after the last, and never left behind."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from notes import Notes

from togi.core.errors import Interrupted, StageError
from togi.recipe import run as run_module
from togi.recipe import service_guard, services
from togi.recipe.graph import build
from togi.recipe.options import Options
from togi.recipe.run import Run
from togi.recipe.schema import validate
from togi.recipe.services import Services, ServiceSpec
from togi.recipe.source import read_tree

TOY = Path(__file__).parents[1] / "toy_service.py"
RECIPE = """\
name: served
data:
  seeds: {path: seeds.jsonl}
stages:
  one: {type: select, input: $seeds, count: 2}
"""


def spec(folder: Path, *more: str, stages: tuple[str, ...] = ("two",), ready: float = 60) -> ServiceSpec:
    command = (sys.executable, str(TOY), "{port}", str(folder), *more)
    return ServiceSpec(name="toy", command=command, stages=stages, ready_seconds=ready)


def pids(folder: Path) -> list[int]:
    return [int(number) for number in (folder / "pids").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def gone(found: list[int], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while any(map(is_alive, found)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_alive, found))


def no_stop() -> None: ...


def test_a_service_answers_before_its_stage_and_is_gone_with_its_children_after_it(tmp_path: Path) -> None:
    died: list[str] = []
    notes: list[str] = []
    found = Services([spec(tmp_path, "0.5", stages=("one", "two"))], tmp_path, died.append)
    found.before("zero", notes.append, no_stop)
    assert not notes and found.urls("zero") == {}
    found.before("one", notes.append, no_stop)
    url = found.urls("one")["toy"]
    assert urllib.request.urlopen(f"{url}/health").status == 200
    found.after(["two", "three"])
    found.before("two", notes.append, no_stop)
    assert found.urls("two")["toy"] == url and len(notes) == 1 and all(map(is_alive, pids(tmp_path)))
    found.after(["three"])
    assert gone(pids(tmp_path)) and died == [] and found.death("two") is None


def test_a_service_that_does_not_heed_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Services([spec(tmp_path, "0", "--deaf")], tmp_path, lambda name: None)
    found.before("two", lambda note: None, no_stop)
    started = time.monotonic()
    found.close()
    assert gone(pids(tmp_path)) and time.monotonic() - started < service_guard.STOP_SECONDS + services.CLOSING


def test_what_never_answers_or_ends_early_is_an_error_with_its_log(tmp_path: Path) -> None:
    slow = Services([spec(tmp_path, "1000", ready=1)], tmp_path, lambda name: None)
    with pytest.raises(StageError, match=r"service toy did not answer at .*/health within 1 s"):
        slow.before("two", lambda note: None, no_stop)
    slow.close()
    assert gone(pids(tmp_path))
    broken = ServiceSpec(name="toy", command=(sys.executable, "-c", "raise SystemExit('no GPU')"), stages=("two",))
    found = Services([broken], tmp_path, lambda name: None)
    with pytest.raises(StageError, match=r"service toy ended with exit code 1 .*no GPU\) before it was ready"):
        found.before("two", lambda note: None, no_stop)
    found.close()


def test_a_wish_to_stop_ends_the_waiting(tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    found = Services([spec(tmp_path, "1000")], tmp_path, lambda name: None)
    with pytest.raises(Interrupted):
        found.before("two", lambda note: None, stop)
    found.close()


@pytest.mark.parametrize("victim", ["service", "guard"])
def test_no_service_survives_a_kill_of_itself_or_of_what_guards_it(tmp_path: Path, victim: str) -> None:
    died: list[str] = []
    found = Services([spec(tmp_path)], tmp_path, died.append)
    found.before("two", lambda note: None, no_stop)
    service = pids(tmp_path)[0]
    os.kill(service if victim == "service" else found.running["toy"].process.pid, signal.SIGKILL)
    assert gone([service] if victim == "guard" else pids(tmp_path))
    end = time.monotonic() + 30
    while not died and time.monotonic() < end:
        time.sleep(0.05)
    assert died == ["toy"]
    assert (found.death("two") or "").startswith("service toy ")
    found.close()
    if victim == "guard":
        os.kill(pids(tmp_path)[1], signal.SIGKILL)  # a grandchild, which only the guard could find


def test_no_service_survives_the_kill_of_its_run(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom togi.recipe.services import Services, ServiceSpec\n"
        "folder = Path(sys.argv[1])\n"
        "command = (sys.executable, sys.argv[2], '{port}', sys.argv[1])\n"
        "found = Services([ServiceSpec(name='toy', command=command, stages=('a',))], folder, print)\n"
        "found.before('a', print, lambda: None)\nprint('ready', flush=True)\ntime.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(TOY)], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        while run.stdout.readline().strip() != b"ready":
            assert run.poll() is None
        run.kill()
    assert gone(pids(tmp_path))


# --- in a run ---------------------------------------------------------------------------------------------------------


class Patient:
    """An executor whose stage lets the service die, then waits to be told to stop, like a stage that keeps calling a
    dead server."""

    size = 1

    def __init__(self, deaf: bool) -> None:
        self.deaf = deaf
        self.told: list[str] = []

    def do(self, command: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with pytest.raises(OSError):
            urllib.request.urlopen(command["services"]["toy"] + "/die", data=b"")
        end = time.monotonic() + 60
        while not self.told and time.monotonic() < end:
            time.sleep(0.02)
        yield {"event": "failed", "kind": "Interrupted", "message": f"told to {self.told}"}

    def stop(self) -> None:
        if not self.deaf:
            self.told.append("stop")

    def kill(self) -> None:
        self.told.append("kill")

    def close(self) -> None: ...


@pytest.mark.parametrize("deaf", [False, True])
def test_the_death_of_a_service_ends_the_stage_that_needs_it_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    (tmp_path / "seeds.jsonl").write_text('{"question": "Why?"}\n{"question": "How?"}\n')
    (tmp_path / "r.yaml").write_text(RECIPE)
    executor = Patient(deaf)
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(run_module, "DEATH_SECONDS", 0.5)
    monkeypatch.setattr(run_module, "Workers", lambda log, threads, size: executor)
    graph = build(validate(read_tree(tmp_path / "r.yaml", ())))
    made = Run(graph, Options(threads=1), Notes(), [spec(tmp_path, stages=("seeds",))])
    what = r"service toy ended with exit code 7 .*out of memory, says the toy\) while stage seeds needed it"
    with pytest.raises(StageError, match=what):
        made.run()
    assert executor.told[0] == ("kill" if deaf else "stop") and gone(pids(tmp_path))
    assert made.ended["seeds"][0] == "failed"
