"""Hashes of files, and checks that files have not changed.

Size, times and inode only save a second read within one run. They are never stored on disk.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from togi.core.errors import InputError

CLOCK = 2 * 10**9  # nanoseconds: the coarsest time resolution of file systems
Stamp = tuple[int, int, int, int, int]

_known: dict[str, tuple[Stamp, str]] = {}


def file_hash(path: Path) -> str:
    """sha256 (hex) of a file's content. A file is not read again while its size, times and inode are those of an
    earlier hash in this process. Raises OSError."""
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
    """The hashes of `paths` that this process knows, for another process of the same run (`learn`)."""
    names = {os.path.realpath(path) for path in paths}
    return {name: entry for name, entry in _known.items() if name in names}


def learn(entries: Mapping[str, tuple[Stamp, str]]) -> None:
    """Adds the hashes that another process of the same run computed."""
    for name, (stamp, found) in entries.items():
        size, changed, status, inode, device = stamp
        _known[name] = ((size, changed, status, inode, device), found)


@dataclass(frozen=True, slots=True)
class HashedFiles:
    """The input files of a stage, each with its hash at the start. In a `tree`, an added file is also a change."""

    path: str
    kind: str
    files: dict[str, str]


def tree(path: Path) -> list[Path]:
    """The file itself, or all files of a folder, sorted by name. Raises InputError if the path does not exist or a
    folder cannot be read."""
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            return sorted(Path(folder, name) for folder, _, names in os.walk(path, onerror=_raise) for name in names)
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise unreadable(path, error) from None
    raise InputError(f"{path}: there is no such file or folder; a path is relative to the file that names it")


def _raise(error: OSError) -> None:
    raise error


def unreadable(path: Path, error: Exception) -> InputError:
    """The error for a file that cannot be read."""
    why = error.strerror if isinstance(error, OSError) else str(error)
    where = getattr(error, "filename", None) or path
    return InputError(f"{where}: cannot be read: {why}")


def take(path: Path, kind: str, files: Iterable[Path]) -> HashedFiles:
    """The current hashes of a source. Raises InputError for a file that cannot be read."""
    found = {}
    for file in files:
        if not file.is_file():  # a broken link, a pipe
            continue
        try:
            found[str(file)] = file_hash(file)
        except OSError as error:
            raise unreadable(file, error) from None
    return HashedFiles(str(path), kind, found)


def change(source: HashedFiles) -> str | None:
    """The first change of a file in `source`, in words; None if nothing has changed."""
    for name, wanted in source.files.items():
        try:
            if file_hash(Path(name)) != wanted:
                return f"{name} was changed"
        except OSError as error:
            return f"{name} cannot be read any more ({error.strerror})"
    now = tree(Path(source.path)) if source.kind == "tree" else []
    more = [str(path) for path in now if str(path) not in source.files and path.is_file()]
    return f"{more[0]} was added" if more else None
