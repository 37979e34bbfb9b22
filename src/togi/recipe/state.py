"""The state of a run on disk, and whether the process that wrote it is still there.

A run holds a lock on its folder; the kernel lets it go however the process ends. So a state that says "running" under a
lock that nobody holds is that of a run that was killed.
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
STAGE_KEYS = ("name", "type", "state", "folder")  # what each stage of a state has, as text
PATIENCE = 1.0  # seconds in which others may be looking whether a run is at work


@contextmanager
def running(folder: Path, clear: Callable[[Path], None]) -> Iterator[None]:
    """Holds the run's lock: what `is_running` sees. `clear` first removes from `folder` what killed runs left.

    Raises Busy where another run of the same name is at work, and leaves everything of it alone.
    """
    with _held(folder):
        clear(folder)
        yield


def _held(folder: Path) -> TextIO:
    """The run's lock. Those who only look hold it for a moment, which is waited for."""
    end = time.monotonic() + PATIENCE
    while (held := take(folder)) is None:
        if time.monotonic() > end:
            raise Busy(
                f"{folder.name}: a recipe of this name is being run{holder(folder)}; wait for it or stop it, or run "
                "this one under another name (name=...)"
            )
        time.sleep(0.02)
    return held


def is_running(folder: Path) -> bool:
    """Whether a process is at work on a run."""
    return is_held(folder)


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a run, with the stages' folders where they are now; one that was killed is interrupted, and so is
    the stage that it was at. Raises DamagedFile, which says what to do."""
    state = _settled(folder)
    return {**state, "stages": [{**stage, "folder": str(stage_folder(folder, stage))} for stage in state["stages"]]}


def stage_folder(run: Path, stage: Mapping[str, Any]) -> Path:
    """Where a stage of a run lies: in the store beside the runs, wherever both were moved to."""
    return run.parent.parent / "store" / Path(stage["folder"]).name


def _settled(folder: Path) -> dict[str, Any]:
    state = _stored(folder)
    if state["state"] != "running" or is_running(folder):
        return state
    for stage in state["stages"]:
        stage["state"] = "interrupted" if stage["state"] == "running" else stage["state"]
    error = "its process is gone without a word; run the same command again: it goes on"
    return {**state, "state": "interrupted", "error": error}


def _stored(folder: Path) -> dict[str, Any]:
    again = "; run the recipe again: what is finished is found, and the file is written anew"
    try:
        state = read_object(folder / STATE, {"name": str, "state": str, "stages": list})
    except DamagedFile as error:
        raise DamagedFile(f"{error}{again}") from None
    for stage in state["stages"]:
        if not isinstance(stage, dict) or not all(isinstance(stage.get(key), str) for key in STAGE_KEYS):
            raise DamagedFile(f"{folder / STATE}: damaged: stages: found {str(stage)[:40]!r}{again}")
    return {"error": None, **state}


def settle(folder: Path) -> None:
    """Writes the state of a run that was killed as what it is, for those who read the file itself."""
    state = _settled(folder)
    if state != _stored(folder):
        write_json(folder / STATE, state)
