"""Hashes of files, and whether files are what they were.

Size, times and inode spare only a second reading by the processes of one run: nothing of this is kept on the disk.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from togi.core.errors import InputError

CLOCK = 2 * 10**9  # nanoseconds within which two writes may leave the same times, on the coarsest of file systems
Stamp = tuple[int, int, int, int, int]

_known: dict[str, tuple[Stamp, str]] = {}


def file_hash(path: Path) -> str:
    """sha256 (hex) of a file's content. A file that this process has hashed before, and whose size, times and inode are
    as they were, is not read again. Raises OSError."""
    name, before = os.path.realpath(path), _stamp(path)
    if name in _known and _known[name][0] == before:
        return _known[name][1]
    began = time.time_ns()
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if before == _stamp(path) and before[2] < began - CLOCK:
        _known[name] = (before, found)
    return found


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


def known(paths: Iterable[str]) -> dict[str, tuple[Stamp, str]]:
    """What this process knows of `paths`, for another process of the same run (`learn`)."""
    names = {os.path.realpath(path) for path in paths}
    return {name: entry for name, entry in _known.items() if name in names}


def learn(entries: Mapping[str, tuple[Stamp, str]]) -> None:
    """Takes over what another process of the same run hashed."""
    for name, (stamp, found) in entries.items():
        size, changed, status, inode, device = stamp
        _known[name] = ((size, changed, status, inode, device), found)


@dataclass(frozen=True, slots=True)
class HashedFiles:
    """Files that work is made from, each with the hash that it was begun with. In a `tree` a file more is a change
    too."""

    path: str
    kind: str
    files: dict[str, str]


def tree(path: Path) -> list[Path]:
    """The file itself, or all files of a folder, in the order of their names. Raises InputError where there is
    neither, or a folder of it cannot be read."""
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            return sorted(Path(folder, name) for folder, _, names in os.walk(path, onerror=_raise) for name in names)
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise unreadable(path, error) from None
    raise InputError(f"{path}: there is no such file or folder; paths start at the file that names them")


def _raise(error: OSError) -> None:
    raise error


def unreadable(path: Path, error: Exception) -> InputError:
    """The error of a file that cannot be read."""
    why = error.strerror if isinstance(error, OSError) else str(error)
    where = getattr(error, "filename", None) or path
    return InputError(f"{where}: cannot be read: {why}")


def take(path: Path, kind: str, files: Iterable[Path]) -> HashedFiles:
    """A source as it is now. Raises InputError for a file that cannot be read."""
    found = {}
    for file in files:
        if not file.is_file():  # a link that leads nowhere, a pipe
            continue
        try:
            found[str(file)] = file_hash(file)
        except OSError as error:
            raise unreadable(file, error) from None
    return HashedFiles(str(path), kind, found)


def change(source: HashedFiles) -> str | None:
    """Which file of `source` is no longer what it was, and how; None where all are."""
    for name, wanted in source.files.items():
        try:
            if file_hash(Path(name)) != wanted:
                return f"{name} was changed"
        except OSError as error:
            return f"{name} cannot be read any more ({error.strerror})"
    now = tree(Path(source.path)) if source.kind == "tree" else []
    more = [str(path) for path in now if str(path) not in source.files and path.is_file()]
    return f"{more[0]} was added" if more else None
