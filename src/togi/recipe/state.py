"""The state of a run on disk, and whether the process that wrote it is still running.

A run holds a lock on its folder, which the kernel releases however the process ends. So a state of "running" without a
held lock means that the run was killed.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from togi.core.errors import DamagedFile
from togi.core.files import read_object, write_json
from togi.core.locks import Busy, holder, is_held, take

STATE = "state.json"
STAGE_KEYS = ("name", "type", "state", "folder")  # text values that each stage of a state has
PATIENCE = 1.0  # seconds to wait while other processes check whether a run is at work


@contextmanager
def running(folder: Path, clear: Callable[[Path], None]) -> Iterator[None]:
    """Holds the run's lock, which `is_running` checks. First calls `clear` to remove leftovers of killed runs.

    Raises Busy if another run of the same name is at work, and then changes nothing.
    """
    with _held(folder):
        clear(folder)
        yield


def _held(folder: Path) -> TextIO:
    """Takes the run's lock. Waits for processes that hold it for a moment only to check it."""
    end = time.monotonic() + PATIENCE
    while (held := take(folder)) is None:
        if time.monotonic() > end:
            raise Busy(
                f"{folder.name}: a recipe of this name is running{holder(folder)}; wait for it or stop it, or "
                "run this one under another name (name=...)"
            )
        time.sleep(0.02)
    return held


def is_running(folder: Path) -> bool:
    """Whether a process is at work on a run."""
    return is_held(folder)


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a run, with the current folders of its stages. A killed run, and the stage that it was doing, count
    as interrupted. Raises DamagedFile, whose message gives advice."""
    state = _settled(folder)
    return {**state, "stages": [{**stage, "folder": str(stage_folder(folder, stage))} for stage in state["stages"]]}


def stage_folder(run: Path, stage: Mapping[str, Any]) -> Path:
    """The folder of a run's stage: in the store next to the runs, wherever both were moved."""
    return run.parent.parent / "store" / Path(stage["folder"]).name


def _settled(folder: Path) -> dict[str, Any]:
    state = _stored(folder)
    if state["state"] != "running" or is_running(folder):
        return state
    for stage in state["stages"]:
        stage["state"] = "interrupted" if stage["state"] == "running" else stage["state"]
    error = "its process ended without a message; run the same command again to continue"
    return {**state, "state": "interrupted", "error": error}


def _stored(folder: Path) -> dict[str, Any]:
    again = "; run the recipe again: it finds the finished work and writes the file again"
    try:
        state = read_object(folder / STATE, {"name": str, "state": str, "stages": list})
    except DamagedFile as error:
        raise DamagedFile(f"{error}{again}") from None
    for stage in state["stages"]:
        if not isinstance(stage, dict) or not all(isinstance(stage.get(key), str) for key in STAGE_KEYS):
            raise DamagedFile(f"{folder / STATE}: damaged: stages: found {str(stage)[:40]!r}{again}")
    return {"error": None, **state}


def settle(folder: Path) -> None:
    """Rewrites the state of a killed run as interrupted, for readers of the file itself."""
    state = _settled(folder)
    if state != _stored(folder):
        write_json(folder / STATE, state)
