"""Locks on folders: takes one, names its holder, and waits for it with messages.

A lock is a file that its holder has locked (flock) and that contains the process id of its run. The kernel releases the
lock however the process ends, so the mere existence of the file means nothing.
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
    """Another process is working in the folder."""


def take(folder: Path, pid: int | None = None) -> TextIO | None:
    """Locks `folder`, creating it if needed, until the returned file is closed; returns None if another process holds
    it. Waiting processes report `pid`, the run's process id; by default this process."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        handle = (folder / LOCK).open("a+", encoding="utf-8")
    except FileNotFoundError:  # its holder removed the folder meanwhile
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(handle, folder / LOCK):  # the folder was renamed or removed meanwhile
            raise BlockingIOError
    except BlockingIOError:
        handle.close()
        return None
    with suppress(OSError):  # a lock without a process id still locks
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
    """ " (pid N)" of the run that holds a folder; empty if the file does not contain it."""
    try:
        text = (folder / LOCK).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return f" (pid {text})" if text.isdigit() else ""


def wait(folder: Path, what: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Yields after each pause, without end, while another run holds `folder`; reports this first and once a minute."""
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
