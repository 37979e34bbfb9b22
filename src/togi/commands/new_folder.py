"""The folder that an export makes: it must be new, and in a place that may be written. It is filled elsewhere, and
moved there when it is complete."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from togi.core.errors import RecipeError, StageError
from togi.core.files import sync_folder
from togi.core.locks import LOCK, is_held, take
from togi.model.folders import disk_errors, sync_tree

ROOM = ".togi-export-"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
YOUNG = 60.0  # seconds in which a new temporary folder may still lack its lock


def refuse_place(folder: Path) -> None:
    """Raises RecipeError for a folder that exists and is not empty, or that cannot be made or replaced."""
    with writable(folder):
        place = folder.resolve()
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise RecipeError(f"command line: {folder} exists already; name a new folder")
        what = (
            "the folder that you are in" if place == Path.cwd() else "a mounted disk" if os.path.ismount(place) else ""
        )
        if what:
            raise RecipeError(
                f"command line: {folder} is {what}, which cannot be replaced; name a new folder inside it"
            )
        above = next(each for each in place.parents if each.exists())
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            why = f"{above} is not a folder in which you may write"
            raise RecipeError(f"command line: {folder}: cannot be written: {why}; name another folder")


@contextmanager
def writable(where: Path, what: str = "folder") -> Iterator[None]:
    """Raises RecipeError for a folder, or a file if `what` says so, that the system does not allow: one inside a file,
    or on a disk that is read-only."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        why = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"command line: {where}: cannot be written: {why or error}; name another {what}") from None


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder on the same disk, for an export that is not complete or not compared yet. First removes
    those that kills left there.

    Raises RecipeError for a folder that the system does not allow, StageError if the disk becomes full.
    """
    with writable(folder):
        parent = folder.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        made = tempfile.TemporaryDirectory(prefix=ROOM, dir=parent)
    with made as room, _full_disk(folder), disk_errors(folder):
        held = take(Path(room))
        assert held is not None  # no other process touches a folder younger than YOUNG
        with held:
            yield Path(room)


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        why = f"the disk is full ({error.strerror}); free some space, and run the command again"
        raise StageError(f"{folder}: cannot be written: {why}") from None


def _sweep(parent: Path) -> None:
    """Removes what killed exports left in a folder. Their locks are free."""
    for room in parent.glob(f"{ROOM}*"):
        lock = room / LOCK
        if lock.is_file() and time.time() - lock.stat().st_mtime > YOUNG and not is_held(room):
            shutil.rmtree(room, ignore_errors=True)


def place(written: Path, folder: Path) -> None:
    """Moves a complete folder to its place. Makes its files as readable as the user's other files: some libraries
    restrict theirs. Raises RecipeError if something else has appeared there."""
    mode = written.stat().st_mode & 0o666
    for path in written.rglob("*"):
        if path.is_file():
            path.chmod(mode)
    sync_tree(written)
    with writable(folder):
        os.rename(written, folder.resolve())
        sync_folder(folder.resolve().parent)
