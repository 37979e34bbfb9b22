"""Locks on folders: taking one, saying who holds it, and waiting for it aloud.

A lock is a file that its holder has locked (flock) and written its run's process id into. The kernel lets the lock go
however the process ends, so a file that lies there says nothing by itself.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from togi.core.errors import StageError

LOCK = "lock"
PAUSE = 0.2  # seconds between two attempts
TOLD_EVERY = 60.0  # seconds


class Busy(StageError):
    """Another process works in the folder."""


def take(folder: Path, pid: int | None = None) -> TextIO | None:
    """Locks `folder`, which is made if it is not there, until the file that is returned is closed; None where another
    process holds it. `pid` is the run's own, told to those who wait; this process where it is absent."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        handle = (folder / LOCK).open("a+", encoding="utf-8")
    except FileNotFoundError:  # whoever held it removed it meanwhile
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(handle, folder / LOCK):  # the folder was renamed or removed meanwhile
            raise BlockingIOError
    except BlockingIOError:
        handle.close()
        return None
    with suppress(OSError):  # a lock without a name is a lock
        handle.truncate(0)
        handle.write(str(pid or os.getpid()))
        handle.flush()
    return handle


def _is_at(handle: TextIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat())


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock of `folder`."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def holder(folder: Path) -> str:
    """ " (pid N)" of the run that holds a folder, or nothing where that is not written."""
    try:
        text = (folder / LOCK).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return f" (pid {text})" if text.isdigit() else ""


def wait(folder: Path, what: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Comes back once a pause, for ever, while another run holds `folder`; tells so at first and once a minute."""
    start = time.monotonic()
    told = 0
    while True:
        seconds = time.monotonic() - start
        if seconds >= told * TOLD_EVERY:
            since = f" (for {seconds / 60:.0f} min so far)" if told else ""
            tell(f"{what} is being done by another run{holder(folder)}; waiting{since}")
            told += 1
        time.sleep(PAUSE)
        yield
