"""Finds and removes unused folders of the store, and leftovers of kills.

A run registers the folders that it uses before it begins, and `clean` renames unused folders, one process at a time
(`registering`), so `clean` is safe while runs work. A folder in use by a process is locked, and left alone.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from togi.core.errors import DamagedFile, InputError, StageError
from togi.core.files import read_object, read_sealed, write_sealed
from togi.core.locks import is_held
from togi.recipe.runs import HISTORY, folders_of_runs
from togi.recipe.state import STATE, is_running
from togi.recipe.store import (
    DAMAGED,
    TRASH,
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
LEFT = re.compile(r"\..+-[0-9a-f]{16}\.(?:(?P<pid>\d+)\.tmp|old)")  # leftovers of weight conversions
MAKING = re.compile(r"\.tokens-[0-9a-f]{16}\.making")  # tokens in the making, by the holder of the lock


@contextmanager
def registering() -> Iterator[None]:
    """Lets one process at a time register what it uses, or rename unused folders. Raises InputError if the home cannot
    be written."""
    with writing_home():
        store_folder().mkdir(parents=True, exist_ok=True)
        handle = (store_folder() / ".lock").open("a")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def register(run: Path, folders: Iterable[str]) -> None:
    """Records that the run of a recipe uses these folders of the store, by name, until its next run replaces the
    record."""
    with registering():
        write_sealed(run / USES, {"folders": list(folders)})


@dataclass(frozen=True, slots=True)
class Unused:
    """A folder that may be removed. `why` is empty if the reason is that no recipe refers to it."""

    folder: Path
    why: str = ""


@dataclass(slots=True)
class Survey:
    """The removable folders of a store; `notes` name what is kept because its use is unknown."""

    unused: list[Unused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def survey(forgotten: Collection[Path] = ()) -> Survey:
    """Examines the whole store, as if the runs in the folders `forgotten` were not known. Tolerates stages that vanish
    meanwhile or cannot be read. Raises InputError if a run cannot be read: the results that it uses would count as
    unused."""
    found = Survey()
    used, at_work = _used(found.notes, forgotten), bool(runs_at_work())
    for path in (*_folders(), *_folders(DAMAGED), *_folders(TRASH)):
        try:
            why = _why(path, used, at_work)
        except OSError as error:
            found.notes.append(f"{path}: cannot be read ({error.strerror}); it is kept")
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
    return [f"{what} no longer used; `togi clean` lists unused folders, and removes them with --yes"] if count else []


def _folders(*inside: str) -> list[Path]:
    """The folders of the store, or of a folder in it; empty if it cannot be read."""
    try:
        found = sorted(store_folder().joinpath(*inside).iterdir())
    except OSError:
        return []
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _why(path: Path, used: dict[str, bool], at_work: bool) -> str | None:
    """Why a folder may be removed; None if it may not. `used` maps each used folder to whether its run is at work;
    `at_work` is whether any run is."""
    name = path.name
    if path.parent.name in GONE:
        return GONE[path.parent.name]
    if _is_left(path):
        return "left by a kill"
    if (path / CONVERTED).exists():
        return _outdated(path)
    if MAKING.fullmatch(name):
        return None if is_held(path) else "left by a kill"
    if (path / TOKENS).exists():  # runs do not register the tokens that they read
        return None if at_work else "tokenised data, made again when a training stage needs it"
    if not STAGE.fullmatch(name) or used.get(name):
        return None
    if is_older(path):
        return "of an older togi"
    return None if name in used else ""


def _is_left(path: Path) -> bool:
    """Whether a folder is what a killed conversion left. The process may be on another machine or in another
    container, where only its lock shows that it works."""
    found = LEFT.fullmatch(path.name)
    alive = found is not None and found["pid"] and Path("/proc", found["pid"]).exists()
    return found is not None and not alive and not is_held(path)


def _outdated(path: Path) -> str | None:
    """Why converted weights may be removed: their package is not installed in that version; None if it is."""
    try:
        source = read_object(path / CONVERTED, {"source": str})["source"]
        package, _, version = source.partition(":")[0].partition("==")
        here = metadata.version(package)
    except (DamagedFile, ValueError):
        return "converted weights whose note is damaged"
    except metadata.PackageNotFoundError:
        here = ""
    return None if here == version else f"weights of {package} {version}, which is not installed"


def _used(notes: list[str], forgotten: Collection[Path] = ()) -> dict[str, bool]:
    """The folders that recipes refer to, by name, and whether a run of theirs is at work."""
    found: dict[str, bool] = {}
    for run in (each for each in _runs() if each not in forgotten):
        with _readable(run):
            at_work, uses = is_running(run), _uses(run, notes)
        for name in uses:
            found[name] = found.get(name, False) or at_work
    return found


def _runs() -> list[Path]:
    """The folders of all runs: each recipe's last one, and earlier ones. Raises InputError if they cannot be listed."""
    return [run for where in ("runs", HISTORY) for run in folders_of_runs(where)]


@contextmanager
def _readable(run: Path) -> Iterator[None]:
    """Raises InputError if the block may not read a run's folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{run}: it cannot be read ({error.strerror}), so it is unknown which results this run uses, and nothing "
            "is removed; check who owns it"
        ) from None


def runs_at_work() -> list[str]:
    """The names of the recipes whose runs are at work. Raises InputError if a run cannot be read."""
    found = []
    for run in _runs():
        with _readable(run):
            found += [run.name] if is_running(run) else []
    return found


def used_folders() -> dict[str, bool]:
    """The folders that recipes refer to, by name, and whether a run of theirs is at work."""
    return _used([])


def _uses(run: Path, notes: list[str]) -> list[str]:
    """The folders that the last run of a recipe used; if its record is missing or damaged, all that it links to."""
    try:
        if (run / USES).exists():
            return list(map(str, read_sealed(run / USES, {"folders": list})["folders"]))
        if (run / STATE).exists():
            stages = read_object(run / STATE, {"stages": list})["stages"]
            return [Path(stage["folder"]).name for stage in stages]
    except (DamagedFile, KeyError, TypeError) as error:
        notes.append(f"{run}: unknown which folders its last run used ({error}); all folders that it links to are kept")
    try:
        return [Path(os.readlink(path)).name for path in sorted(run.iterdir()) if path.is_symlink()]
    except OSError:
        return []


def take_away(unused: list[Unused]) -> tuple[list[Path], list[Path]]:
    """Renames removable folders, except those that have come into use or been locked, then removes them. Returns those
    that were in use, and those that could not be removed, or not completely."""
    gone, busy, stuck = [], [], []
    with registering():
        now = {entry.folder for entry in survey().unused}
        for entry in unused:
            if entry.folder.parent.name in GONE or _is_left(entry.folder):
                gone.append(entry.folder)
            elif entry.folder not in now:
                busy.append(entry.folder)
            else:
                _rename(entry.folder, gone, busy, stuck)
    for folder in gone:
        remove(folder)
    return busy, [*stuck, *(folder for folder in gone if folder.exists())]


def _rename(folder: Path, gone: list[Path], busy: list[Path], stuck: list[Path]) -> None:
    """Renames a folder and appends its new path to `gone`; or itself to `busy` if a process works in it, to `stuck` if
    the system does not allow it."""
    try:
        with locked(folder):
            gone.append(rename_away(folder, TRASH))
    except StageError:
        busy.append(folder)
    except OSError:
        stuck.append(folder)


def sweep() -> None:
    """Removes leftovers of kills: folders in removal, weights in conversion, and checkpoints of finished stages. What
    cannot be removed stays for the next time."""
    for path in _folders(TRASH):
        shutil.rmtree(path, ignore_errors=True)
    for path in _folders():
        if _is_left(path):
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
        return  # a process works there


def _sweep_making(folder: Path) -> None:
    """Removes unfinished tokens that a kill left."""
    with suppress(StageError, OSError), locked(folder):
        shutil.rmtree(folder, ignore_errors=True)


def tokens() -> int:
    """The size in bytes of the tokenised data in the store."""
    return sum(size(path) for path in _folders() if (path / TOKENS).exists())


def size(folder: Path) -> int:
    """The size in bytes of the readable files below a folder."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(here, name)).st_size
            except OSError:
                continue  # it vanished
    return total
