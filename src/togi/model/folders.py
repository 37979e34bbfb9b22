"""Model folders that are written completely or not at all."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from togi.core.files import crash_point, sync_folder
from togi.core.seeds import digest
from togi.core.sources import ModelSource, fingerprint


def sync_tree(folder: Path) -> None:
    """Syncs a folder and everything in it to disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as handle:
                os.fsync(handle.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


class disk_errors:
    """A context for writing through safetensors and tokenizers, which do not raise OSError when a disk is full (a bare
    Exception in tokenizers): converts errors of the system back to OSError.
    """

    def __init__(self, where: Path) -> None:
        self.where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        told = re.search(r"os error (\d+)", str(error)) if kind in (SafetensorError, Exception) else None
        if told is not None:
            raise OSError(int(told[1]), os.strerror(int(told[1])), str(self.where)) from error


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder next to `folder`; at the end it replaces `folder`, or nothing changes.

    An older `folder` is moved aside first and removed last, so a kill leaves one complete folder under one of the two
    names. Raises OSError (disk full, permissions), whichever library wrote.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with disk_errors(folder):
            yield temporary
        crash_point("before_sync", folder)
        sync_tree(temporary)
        crash_point("before_rename", folder)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(temporary, folder)
        crash_point("after_rename", folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def converted_folder(source: ModelSource, cache: Path) -> Path:
    """The folder for the converted weights of a package, which may not exist yet."""
    return cache / f"{source.name}-{digest(fingerprint(source))[:16]}"
