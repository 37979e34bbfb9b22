"""Files that are whole or absent: written to a temporary name, synced, then renamed; appended lines are cut when torn.

`crash_point` names the moments at which a power cut is worst. It does nothing unless a fault is installed
(`install_fault`), which the kill tests do through TOGI_CRASH_AT.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_fault: Callable[[str, Path], None] | None = None


def install_fault(spec: str) -> None:
    """Arms a crash: "POINT:N" kills this process with SIGKILL at the N-th time (from 1) that POINT is reached.

    Points: before_sync, before_rename, after_rename, mid_append.
    """
    point, count = spec.split(":")
    left = [int(count)]

    def fault(reached: str, path: Path) -> None:
        if reached == point:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    global _fault
    _fault = fault


def crash_point(name: str, path: Path) -> None:
    """Marks a moment at which a kill must lose nothing."""
    if _fault is not None:
        _fault(name, path)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there becomes `path` at the end, or nothing does.

    Raises OSError (disk full, permissions); the temporary file is removed then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        crash_point("before_sync", path)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        crash_point("before_rename", path)
        os.replace(temporary, path)
        crash_point("after_rename", path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as readable JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file that togi wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, value: Any) -> None:
    """Appends `value` as one JSON line and syncs it."""
    line = (json.dumps(value, ensure_ascii=False, sort_keys=True) + "\n").encode()
    with path.open("ab") as handle:
        if _fault is not None:  # the middle of the line exists only for the kill tests
            half = len(line) // 2
            handle.write(line[:half])
            handle.flush()
            crash_point("mid_append", path)
            line = line[half:]
        handle.write(line)
        handle.flush()
        os.fsync(handle.fileno())


def cut_torn_line(path: Path) -> None:
    """Removes an unfinished last line, which a kill in the middle of an append leaves."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)


def read_lines(path: Path) -> list[Any]:
    """The JSON lines of a file, a torn last line left out; empty if the file is absent."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]
