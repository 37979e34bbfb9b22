"""What of the store nobody uses, and what kills left in it.

A run says what it uses before it begins, and `clean` renames what nobody uses, one of them at a time (`registering`):
so `clean` can go beside any run. A folder that somebody works in is locked, and left alone.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from togi.core.errors import DamagedFile, StageError
from togi.core.files import read_object, read_sealed, write_sealed
from togi.core.locks import is_held
from togi.recipe.runs import HISTORY
from togi.recipe.state import STATE, is_running
from togi.recipe.store import (
    DAMAGED,
    TRASH,
    home,
    is_done,
    is_older,
    locked,
    remove,
    rename_away,
    store_folder,
    writing_home,
)

USES = "uses.json"
CONVERTED = "converted.json"
TOKENS = "tokens.json"
GONE = {DAMAGED: "damaged, set aside", TRASH: "left by a kill"}
STAGE = re.compile(r"[a-z][a-z_.]*-[0-9a-f]{16}")
LEFT = re.compile(r"\..+-[0-9a-f]{16}\.(?:(?P<pid>\d+)\.tmp|old)")  # of weights that were being converted
MAKING = re.compile(r"\.tokens-[0-9a-f]{16}\.making")  # tokens that are being made, by whoever holds the lock


@contextmanager
def registering() -> Iterator[None]:
    """One process at a time says what it uses, or renames what nobody uses. Raises InputError where the home cannot be
    written."""
    with writing_home():
        store_folder().mkdir(parents=True, exist_ok=True)
        handle = (store_folder() / ".lock").open("a")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def register(run: Path, folders: Iterable[str]) -> None:
    """Says that the run of a recipe uses these folders of the store, by their names, until its next run says
    otherwise."""
    with registering():
        write_sealed(run / USES, {"folders": list(folders)})


@dataclass(frozen=True, slots=True)
class Unused:
    """A folder that may go. `why` is empty where the reason is that no recipe refers to it."""

    folder: Path
    why: str = ""


@dataclass(slots=True)
class Survey:
    """What of a store may go; `notes` say what is kept because it is not known whether it is used."""

    unused: list[Unused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def survey() -> Survey:
    """Looks through the whole store. Folders that vanish meanwhile, or cannot be looked into, are no trouble."""
    found = Survey()
    used, at_work = _used(found.notes), any(map(is_running, _runs()))
    for path in (*_folders(), *_folders(DAMAGED), *_folders(TRASH)):
        try:
            why = _why(path, used, at_work)
        except OSError as error:
            found.notes.append(f"{path}: cannot be looked into ({error.strerror}); it is kept")
            continue
        if why is not None:
            found.unused.append(Unused(path, why))
    return found


def older_folders() -> list[Path]:
    """The folders of the store that an older togi made."""
    return [path for path in _folders() if STAGE.fullmatch(path.name) and is_older(path)]


def older_note() -> list[str]:
    """A note on what an older togi made, if anything."""
    count = len(older_folders())
    what = "1 folder of an older togi is" if count == 1 else f"{count} folders of an older togi are"
    return [f"{what} not used any more; `togi clean` removes what it shows"] if count else []


def _folders(*inside: str) -> list[Path]:
    """The folders of the store, or of a folder in it; none where it cannot be looked into."""
    try:
        found = sorted(store_folder().joinpath(*inside).iterdir())
    except OSError:
        return []
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _why(path: Path, used: dict[str, bool], at_work: bool) -> str | None:
    """Why a folder may go; None where it may not. `used` tells of each used folder whether its run is at work,
    `at_work` whether any run is."""
    name = path.name
    if path.parent.name in GONE:
        return GONE[path.parent.name]
    if _is_left(name):
        return "left by a kill"
    if (path / CONVERTED).exists():
        return _outdated(path)
    if MAKING.fullmatch(name):
        return None if is_held(path) else "left by a kill"
    if (path / TOKENS).exists():  # no run says which tokens it reads
        return None if at_work else "tokenised data, made again where a training needs it"
    if not STAGE.fullmatch(name) or used.get(name):
        return None
    if is_older(path):
        return "of an older togi"
    return None if name in used else ""


def _is_left(name: str) -> bool:
    found = LEFT.fullmatch(name)
    return found is not None and not (found["pid"] and Path("/proc", found["pid"]).exists())


def _outdated(path: Path) -> str | None:
    """Why converted weights may go: the package that they come from is not installed in that version."""
    try:
        source = read_object(path / CONVERTED, {"source": str})["source"]
        package, _, version = source.partition(":")[0].partition("==")
        here = metadata.version(package)
    except (DamagedFile, ValueError):
        return "converted weights whose note is damaged"
    except metadata.PackageNotFoundError:
        here = ""
    return None if here == version else f"weights of {package} {version}, which is not installed"


def _used(notes: list[str]) -> dict[str, bool]:
    """The folders that recipes refer to, by name, and whether a run of theirs is at work."""
    found: dict[str, bool] = {}
    for run in _runs():
        at_work = is_running(run)
        for name in _uses(run, notes):
            found[name] = found.get(name, False) or at_work
    return found


def _runs() -> list[Path]:
    """The folders of all runs: of each recipe's last one, and of earlier ones."""
    return [run for where in ("runs", HISTORY) for run in sorted((home() / where).glob("*/"))]


def used_folders() -> dict[str, bool]:
    """The folders that recipes refer to, by name, and whether a run of theirs is at work."""
    return _used([])


def _uses(run: Path, notes: list[str]) -> list[str]:
    """The folders that the last run of a recipe used. Where its own files do not say, all that it links to."""
    try:
        if (run / USES).exists():
            return list(map(str, read_sealed(run / USES, {"folders": list})["folders"]))
        if (run / STATE).exists():
            stages = read_object(run / STATE, {"stages": list})["stages"]
            return [Path(stage["folder"]).name for stage in stages]
    except (DamagedFile, KeyError, TypeError) as error:
        notes.append(f"{run}: what its last run used is not known ({error}); all that it links to is kept")
    try:
        return [Path(os.readlink(path)).name for path in sorted(run.iterdir()) if path.is_symlink()]
    except OSError:
        return []


def take_away(unused: list[Unused]) -> tuple[list[Path], list[Path]]:
    """Renames folders that may go, unless they are used or locked by now, then removes them. Returns those that were
    in use, and those of which something is left because it may not be removed."""
    gone, busy = [], []
    with registering():
        now = {entry.folder for entry in survey().unused}
        for entry in unused:
            if entry.folder.parent.name in GONE or _is_left(entry.folder.name):
                gone.append(entry.folder)
            elif entry.folder not in now or not _rename(entry.folder, gone):
                busy.append(entry.folder)
    for folder in gone:
        remove(folder)
    return busy, [folder for folder in gone if folder.exists()]


def _rename(folder: Path, gone: list[Path]) -> bool:
    """Renames a folder and notes where it is now, unless somebody works in it."""
    try:
        with locked(folder):
            gone.append(rename_away(folder, TRASH))
    except (StageError, OSError):
        return False
    return True


def sweep() -> None:
    """Removes what kills left: folders that were being removed, weights that were being converted, and checkpoints of
    finished stages. What cannot be removed stays for the next time."""
    for path in _folders(TRASH):
        shutil.rmtree(path, ignore_errors=True)
    for path in _folders():
        if _is_left(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif MAKING.fullmatch(path.name):
            _sweep_making(path)
        elif (path / "checkpoints").exists() and is_done(path):
            _sweep_checkpoints(path)


def _sweep_checkpoints(folder: Path) -> None:
    try:
        with locked(folder):
            if is_done(folder):
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    except (StageError, OSError):
        return  # somebody works there


def _sweep_making(folder: Path) -> None:
    """Removes tokens that a kill left half made."""
    with suppress(StageError, OSError), locked(folder):
        shutil.rmtree(folder, ignore_errors=True)


def tokens() -> int:
    """Bytes of the tokenised data in the store."""
    return sum(size(path) for path in _folders() if (path / TOKENS).exists())


def size(folder: Path) -> int:
    """Bytes of the files below a folder, as far as they can be seen."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(here, name)).st_size
            except OSError:
                continue  # it vanished
    return total
