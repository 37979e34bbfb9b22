"""The state of a run on disk, and whether the process that wrote it is still there.

A run holds a lock on its folder, shared with other runs of the same recipe; the kernel lets it go however the process
ends. So a state that says "running" under a lock that nobody holds is that of a run that was killed.
"""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from togi.core.files import read_json, write_json

STATE = "state.json"
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
    """The state of a run; one that was killed is interrupted, and so is the stage that it was at."""
    state = read_json(folder / STATE)
    if state["state"] != "running" or is_running(folder):
        return state
    for stage in state["stages"]:
        stage["state"] = "interrupted" if stage["state"] == "running" else stage["state"]
    error = "its process is gone without a word; run the same command again: it goes on"
    return {**state, "state": "interrupted", "error": error}


def settle(folder: Path) -> None:
    """Writes the state of a run that was killed as what it is, for those who read the file itself."""
    state = read_state(folder)
    if state != read_json(folder / STATE):
        write_json(folder / STATE, state)
