"""The store: one folder per finished or unfinished stage, named by its fingerprint, shared by all recipes."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from togi.core.errors import InputError, StageError
from togi.core.files import read_json, write_json
from togi.core.seeds import digest
from togi.stages.base import file_hash


def home() -> Path:
    """$TOGI_HOME, or ./runs."""
    return Path(os.environ.get("TOGI_HOME", "runs")).resolve()


@contextmanager
def writing_home() -> Iterator[None]:
    """Raises InputError, which names the home folder, where the block cannot write into it."""
    try:
        yield
    except OSError as error:
        where = f"{home()} ({'$TOGI_HOME' if 'TOGI_HOME' in os.environ else 'the default; $TOGI_HOME chooses another'})"
        raise InputError(
            f"{where}: runs cannot be kept there: {error.strerror} ({error.filename}); choose another folder with "
            "TOGI_HOME=FOLDER, or make room in it"
        ) from None


def store_folder() -> Path:
    return home() / "store"


def run_folder(recipe: str) -> Path:
    return home() / "runs" / recipe


def is_done(folder: Path) -> bool:
    """Whether a stage's folder holds finished work."""
    return (folder / "DONE").exists()


def mark_done(folder: Path, fingerprint: str, seconds: float, made_from: list[str]) -> None:
    """Writes the manifest with the hashes of everything under output/; it comes last. `made_from` are the digests of
    the inputs' own results."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_result(path, folder)]
    hashes = {str(path.relative_to(folder)): file_hash(path) for path in files}
    value = {"fingerprint": fingerprint, "seconds": seconds, "made_from": made_from, "files": hashes}
    write_json(folder / "DONE", value)


def manifest(folder: Path) -> dict[str, Any]:
    """The DONE manifest of a finished stage."""
    return read_json(folder / "DONE")


def begin(folder: Path, made_from: list[str]) -> None:
    """Notes what a stage is being made from, before anything is made of it."""
    write_json(folder / "made_from.json", made_from)


def made_from(folder: Path) -> list[str] | None:
    """The digests of the inputs that a stage was made or begun from; None where there is nothing yet."""
    if is_done(folder):
        return manifest(folder)["made_from"]
    path = folder / "made_from.json"
    return read_json(path) if path.exists() else None


def results_digest(folder: Path) -> str:
    """A digest of the results of a finished stage."""
    return digest(manifest(folder)["files"])


def _is_result(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return parts[0] == "output" and not any(part.startswith(".") for part in parts)


def clear_leftovers(folder: Path) -> None:
    """Removes what a kill in the middle of a write left behind: temporary files and folders."""
    for path in sorted(folder.rglob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def clear_stage(folder: Path) -> None:
    """Forgets a stage's work, so that it is done again from its beginning; the lock stays.

    Raises StageError if another process works there.
    """
    with locked(folder):
        (folder / "DONE").unlink(missing_ok=True)
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.name == "lock":
                continue
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            else:
                path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a stage's folder against other runs. Raises StageError if another process works there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"{folder.name}: another run is working on this stage; wait for it, or stop it") from None
        yield
