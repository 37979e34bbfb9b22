"""Stored samples of finished training stages: their size, and how they are removed."""

from dataclasses import dataclass
from pathlib import Path

from togi.core.errors import DamagedFile, StageError
from togi.recipe.store import forget_output, is_done, locked, made_from, store_folder
from togi.recipe.sweep import registering, used_folders

SAMPLES = "samples"


@dataclass(frozen=True, slots=True)
class Stored:
    """The samples of one finished stage: their bytes on disk, and why they are kept (empty if they may be removed)."""

    folder: Path
    bytes: int
    kept: str = ""


def bytes_of(folder: Path) -> int:
    """The size in bytes of the samples in a stage's folder, finished or not."""
    files = (*folder.glob(f"output/{SAMPLES}*"), *folder.glob(f"checkpoints/{SAMPLES}/*"))
    return sum(path.stat().st_size for path in files if path.is_file())


def stored() -> list[Stored]:
    """The samples of all finished stages of the store."""
    readers, at_work = _readers(), used_folders()
    return [
        Stored(folder, bytes_of(folder), _why_kept(folder.name, readers, at_work))
        for folder in _finished()
        if bytes_of(folder)
    ]


def forget(entries: list[Stored]) -> list[Stored]:
    """Removes the samples that nothing needs; returns those that are kept because something has come to need or use
    them."""
    with registering():
        now = {entry.folder: entry for entry in stored()}
        return [now.get(entry.folder, entry) for entry in entries if not _forgotten(now.get(entry.folder))]


def _forgotten(entry: Stored | None) -> bool:
    if entry is None or entry.kept:
        return entry is None
    try:
        with locked(entry.folder):
            forget_output(entry.folder, SAMPLES)
    except (StageError, OSError):
        return False
    return True


def _why_kept(name: str, readers: dict[str, str], at_work: dict[str, bool]) -> str:
    if at_work.get(name):
        return "its run is at work"
    return f"{readers[name]} was made from them" if name in readers else ""


def _finished() -> list[Path]:
    folders = sorted(store_folder().glob("*-*")) if store_folder().exists() else []
    return [folder for folder in folders if is_done(folder)]


def _readers() -> dict[str, str]:
    """Stages whose samples another stage has used, each with the name of that other stage's folder."""
    found: dict[str, str] = {}
    for folder in sorted(store_folder().glob("*-*")):
        try:
            read = made_from(folder) or {}
        except DamagedFile:
            continue
        for name, _, output in (key.partition("/") for key in read):
            if output == SAMPLES:
                found[name] = folder.name
    return found
