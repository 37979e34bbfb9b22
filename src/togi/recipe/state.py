"""The state of a run on disk, and whether the process that wrote it is still there.

A run holds a lock on its folder, shared with other runs of the same recipe; the kernel lets it go however the process
ends. So a state that says "running" under a lock that nobody holds is that of a run that was killed.
"""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from togi.core.errors import DamagedFile
from togi.core.files import read_object, write_json

STATE = "state.json"
STAGE_KEYS = ("name", "type", "state", "folder")  # what each stage of a state has, as text
LOCK = "lock"


@contextmanager
def running(folder: Path, clear: Callable[[Path], None]) -> Iterator[None]:
    """Holds the run's lock: what `is_running` sees. Where no other run is at work, `clear` may first remove from
    `folder` what killed runs left."""
    with (folder / LOCK).open("a") as handle:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            clear(folder)
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def is_running(folder: Path) -> bool:
    """Whether a process is at work on a run."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


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
