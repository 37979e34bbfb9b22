"""The store: one folder per finished or unfinished stage, named by its fingerprint, shared by all recipes.

A stage is finished when DONE is undamaged and every file that it names exists. Damaged work is never used: it is set
aside, with a message, and done again. Removing a folder renames it first, so that a kill leaves it whole or removed;
the trash is emptied later (`recipe.sweep`).
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from togi.core.errors import DamagedFile, InputError
from togi.core.files import crash_point, read_json, read_object, read_sealed, sync_folder, write_sealed
from togi.core.hashing import file_hash
from togi.core.locks import Busy, holder, take
from togi.core.seeds import digest
from togi.core.settings import MAIN
from togi.stages.base import is_part_of

VERSION = 2  # in every fingerprint; raising it reruns everything that older versions of togi made
DONE = "DONE"
BEGUN = "made_from.json"
OUTPUT = "output"  # the folder of a stage's outputs, and the name of the main one in `made_from`
BESIDE = ("learnt.json", "summary.json")  # files that other stages read in addition to the output
FIXED = ("numerics.json", "memory.json")  # what an unfinished stage began with, and must continue with
WORK = ("units", "checkpoints", "journal.jsonl")  # files that show that a stage has begun
DONE_SHAPE = {"format": int, "fingerprint": str, "seconds": int | float, "made_from": dict, "files": dict}
Read = tuple[Path, str]  # the folder of a stage, and the name of the output that is read
TRASH, DAMAGED = ".trash", ".damaged"  # folders in the store for folders being removed, and set aside


def home() -> Path:
    """$TOGI_HOME, or ./runs. Raises InputError if it cannot be used as a folder."""
    given = os.environ.get("TOGI_HOME") or "runs"
    try:
        given.encode()
        path = Path(given).expanduser().resolve()
        wrong = None if not path.exists() else "it is a file" if not path.is_dir() else None
        if wrong is None and path.exists() and not os.access(path, os.R_OK | os.X_OK):
            wrong = "it may not be read"
    except UnicodeEncodeError:
        wrong = "its name is not UTF-8"
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~ of an unknown user
        wrong = (isinstance(error, OSError) and error.strerror) or str(error).rstrip(".")
    if wrong is not None:
        raise InputError(f"TOGI_HOME={given!r} cannot be used for runs: {wrong}; choose a folder with TOGI_HOME=FOLDER")
    return path


@contextmanager
def writing_home() -> Iterator[None]:
    """Raises InputError, naming the home folder, if the block cannot write into it."""
    try:
        yield
    except OSError as error:
        where = f"{home()} ({'$TOGI_HOME' if 'TOGI_HOME' in os.environ else 'the default; $TOGI_HOME chooses another'})"
        raise InputError(
            f"{where}: cannot store runs there: {error.strerror} ({error.filename}); choose another folder with "
            "TOGI_HOME=FOLDER, or free some space"
        ) from None


def store_folder() -> Path:
    return home() / "store"


def run_folder(recipe: str) -> Path:
    return home() / "runs" / recipe


# --- finished and unfinished work -------------------------------------------------------------------------------------


def is_done(folder: Path) -> bool:
    """Whether a stage is finished: its manifest is undamaged, and the files that it names exist."""
    return (folder / DONE).exists() and _finished_damage(folder) is None


def mark_done(folder: Path, fingerprint: str, seconds: float, made_from: Mapping[str, str]) -> None:
    """Writes the manifest with the hashes of everything under output/, as the last step. `made_from` are the digests of
    the outputs that were read (`outputs_digests`)."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_result(path, folder)]
    value = {
        "format": VERSION,
        "fingerprint": fingerprint,
        "seconds": seconds,
        "made_from": dict(made_from),
        "files": {str(path.relative_to(folder)): file_hash(path) for path in files},
        "beside": {name: file_hash(folder / name) for name in BESIDE if (folder / name).exists()},
    }
    write_sealed(folder / DONE, value)


def manifest(folder: Path) -> dict[str, Any]:
    """The DONE manifest of a finished stage. Raises DamagedFile if it is damaged."""
    found = read_sealed(folder / DONE, DONE_SHAPE)
    if found["format"] != VERSION:
        raise DamagedFile(f"{folder / DONE}: of another version of togi (format {found['format']}, this is {VERSION})")
    return found


def contents(folder: Path) -> dict[str, str]:
    """The files of a finished stage that others may read: path in the folder -> hash."""
    found = manifest(folder)
    return {**found["files"], **found.get("beside", {})}


def begin(folder: Path, made_from: Mapping[str, str]) -> None:
    """Records the inputs of a stage before its work begins."""
    write_sealed(folder / BEGUN, {"format": VERSION, "made_from": dict(made_from)})


def made_from(folder: Path) -> dict[str, str] | None:
    """The digests of the outputs that a finished or unfinished stage was made from; None if it has not begun.

    Raises DamagedFile.
    """
    if is_done(folder):
        return manifest(folder)["made_from"]
    path = folder / BEGUN
    return read_sealed(path, {"made_from": dict})["made_from"] if path.exists() else None


def output_digest(folder: Path, name: str = MAIN) -> str:
    """A digest of a named output of a finished stage. Raises InputError if the output was removed."""
    files = {path: found for path, found in manifest(folder)["files"].items() if is_part_of(path, name)}
    if not files and name != MAIN:
        raise InputError(
            f"{folder}: the output {name!r} is gone: `togi clean --samples` removes stored samples that nothing reads. "
            "Redo the stage with `togi run RECIPE --redo STAGE`"
        )
    return digest(files)


def forget_output(folder: Path, name: str) -> None:
    """Removes a named output from a finished stage, whose lock is held; the others stay unchanged.

    A kill during the removal leaves files that the manifest does not name; the next call removes them.
    """
    found = manifest(folder)
    files = {path: known for path, known in found["files"].items() if not is_part_of(path, name)}
    write_sealed(folder / DONE, {**found, "files": files})
    crash_point("forgotten", folder)
    for path in sorted((folder / OUTPUT).rglob("*")):
        if path.is_file() and is_part_of(str(path.relative_to(folder)), name):
            path.unlink()


def outputs_digests(reads: Sequence[Read]) -> dict[str, str]:
    """The digests of the outputs that a stage reads, by "FOLDER/OUTPUT", because recipes share stages but not names."""
    return {f"{folder.name}/{OUTPUT if name == MAIN else name}": output_digest(folder, name) for folder, name in reads}


def _is_result(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return parts[0] == OUTPUT and not any(part.startswith(".") for part in parts)


def is_older(folder: Path) -> bool:
    """Whether a folder contains work of an older togi, which is never read: stage folders have other names now."""
    for name in (DONE, BEGUN):
        try:
            found = read_json(folder / name)
        except DamagedFile:
            continue
        if isinstance(found, list) or (isinstance(found, dict) and "files" in found and "format" not in found):
            return True
    return False


# --- damage -----------------------------------------------------------------------------------------------------------


def damage(folder: Path) -> str | None:
    """The damage of a stage's folder that is visible without reading its outputs; None if there is none."""
    return _finished_damage(folder) if (folder / DONE).exists() else _begun_damage(folder)


def _finished_damage(folder: Path) -> str | None:
    try:
        found = contents(folder)
    except DamagedFile as error:
        return str(error)
    gone = [name for name in found if not (folder / name).is_file()]
    return f"{folder / gone[0]}: it is missing" if gone else None


def _begun_damage(folder: Path) -> str | None:
    try:
        if made_from(folder) is None and any((folder / name).exists() for name in WORK):
            return f"{folder / BEGUN}: it is missing"
        for path in (folder / name for name in FIXED):
            if path.exists():
                read_object(path)
    except DamagedFile as error:
        return str(error)
    return None


def deep_damage(folder: Path, only: str = "") -> str | None:
    """The damage of a finished stage's folder, after hashing every file (once a run); None if there is none. Checks
    only paths that begin with `only`."""
    wrong = _finished_damage(folder)
    if wrong is not None:
        return wrong
    for name, wanted in contents(folder).items():
        if not name.startswith(only):
            continue
        try:
            if file_hash(folder / name) != wanted:
                return f"{folder / name}: it has changed since it was made"
        except OSError as error:
            return f"{folder / name}: it cannot be read ({error.strerror})"
    return None


def hold_whole(folder: Path, again: str, only: str = "") -> None:
    """Raises DamagedFile if the files of a finished stage have changed. `again` is the command that redoes the stage;
    checks only paths that begin with `only`."""
    wrong = deep_damage(folder, only)
    if wrong is not None:
        raise DamagedFile(f"{wrong}, so it is not used; redo the stage with `{again}`")


# --- removing folders -------------------------------------------------------------------------------------------------


def clear_leftovers(folder: Path) -> None:
    """Removes leftovers of a kill during a write: temporary and old files and folders."""
    for path in sorted((*folder.rglob(".*.tmp"), *folder.rglob(".*.old"))):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def clear_stage(folder: Path) -> None:
    """Removes a stage's work, so that it is done again from the beginning. Raises Busy if another process works
    there."""
    with locked(folder):
        gone = rename_away(folder, TRASH)
        remove(gone)


def set_aside(folder: Path) -> Path:
    """Renames a damaged folder, to keep its files until `togi clean`; returns the new path. Raises Busy if another
    process works there."""
    with locked(folder):
        return rename_away(folder, DAMAGED)


def rename_away(folder: Path, where: str) -> Path:
    """Moves a folder, whose lock is held, out of the store to TRASH or DAMAGED; returns the new path."""
    target = folder.parent / where / f"{folder.name}-{os.urandom(4).hex()}"
    target.parent.mkdir(exist_ok=True)
    crash_point("before_forgetting", folder)
    os.rename(folder, target)
    crash_point("forgotten", folder)
    sync_folder(folder.parent)
    sync_folder(target.parent)
    return target


def remove(gone: Path) -> None:
    """Removes a renamed folder, as far as permissions allow; a kill during the removal leaves part of it."""
    for path in sorted(gone.glob("*")):
        crash_point("removing", path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a stage's folder against other runs. Raises Busy, a StageError, if another process works there."""
    held = take(folder)
    if held is None:
        raise Busy(f"{folder.name}: another run{holder(folder)} is working on this stage; wait for it, or stop it")
    with held:
        yield
