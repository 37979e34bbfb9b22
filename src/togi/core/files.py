"""Atomic files: written under a temporary name, synced, then renamed. A torn last line of an append is cut off.

Every file is checked when it is read: one that is empty, truncated or of another shape raises `DamagedFile`. A file
that decides what work is done (`write_sealed`) contains a hash of itself, so that an edited one counts as damaged too.

`crash_point` marks the worst moments for a power cut. It does nothing unless the kill tests install a fault
(`install_fault`, through TOGI_CRASH_AT).
"""

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any

from togi.core.errors import DamagedFile
from togi.core.seeds import digest

Shape = Mapping[str, type | UnionType]
SEAL = "seal"

log = logging.getLogger(__name__)
_fault: Callable[[str, Path], None] | None = None


def install_fault(spec: str) -> None:
    """Arms a crash: "POINT:N" kills this process with SIGKILL when POINT is reached for the N-th time (from 1).

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
    """Marks a moment at which a kill must not lose data."""
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
    """Yields a temporary path next to `path`, and renames it to `path` at the end of the block.

    Raises OSError (disk full, permissions), after removing the temporary file.
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


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object with a hash of itself, which `read_sealed` checks."""
    write_json(path, {**value, SEAL: digest(value)})


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises DamagedFile if it is empty, truncated, not JSON or unreadable."""
    return _parse(_content(path), str(path))


def read_object(path: Path, shape: Shape | None = None) -> dict[str, Any]:
    """The object in a JSON file, with at least the keys of `shape`, each of the given type.

    Raises DamagedFile for anything else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedFile(f"{path}: damaged: expected an object, found {str(value)[:40]!r}")
    for key, kind in (shape or {}).items():
        if not isinstance(value.get(key), kind):
            found = f"found {str(value[key])[:40]!r}" if key in value else "it is missing"
            raise DamagedFile(f"{path}: damaged: {key}: {found}")
    return value


def read_sealed(path: Path, shape: Shape | None = None) -> dict[str, Any]:
    """The object that `write_sealed` wrote. Raises DamagedFile if the file has changed since."""
    value = read_object(path, shape)
    seal = value.pop(SEAL, None)
    if seal != digest(value):
        raise DamagedFile(f"{path}: damaged: it has changed since togi wrote it")
    return value


def read_cache(path: Path, shape: Shape | None = None) -> dict[str, Any] | None:
    """The object of an optional file; None if it is absent or damaged. Damage is logged."""
    try:
        return read_object(path, shape) if path.exists() else None
    except DamagedFile as error:
        log.warning("%s; the file is ignored", error)
        return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path}: cannot be read: {error.strerror or error}") from None


def _parse(content: bytes, where: str) -> Any:
    if not content.strip():
        raise DamagedFile(f"{where}: damaged: it is empty")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{where}: damaged: not JSON ({error})") from None


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
    """Removes an unfinished last line, left by a kill in the middle of an append."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)


def read_lines(path: Path, told: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; empty if the file is absent.

    A torn last line counts as not written. A damaged line is skipped and reported: to `told`, or to the log.
    """
    found = []
    lines = _content(path).split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            value = _parse(line, f"{path}:{number}")
            if not isinstance(value, dict):
                raise DamagedFile(f"{path}:{number}: damaged: expected an object, found {str(value)[:40]!r}")
            found.append(value)
        except DamagedFile as error:
            (told or log.warning)(f"{error}; the line is skipped")
    return found
