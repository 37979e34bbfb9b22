"""Folders that several runs and ranks may need at the same time, such as tokenised data in the store: one process makes
the folder, the others wait and read it.

Its maker fills a locked folder, which is renamed when complete. A kill leaves the folder unlocked: the next maker
begins again, and `togi clean --yes` removes it.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from togi.core.errors import Interrupted
from togi.core.files import crash_point, sync_folder
from togi.core.locks import take, wait
from togi.model.folders import sync_tree
from togi.stages.context import Context

Value = TypeVar("Value")
Tell = Callable[[str], None]


def made_once(
    context: Context,
    folder: Path,
    what: str,
    read: Callable[[Tell], Value | None],
    make: Callable[[Path], None],
) -> Value:
    """Returns what `read` finds in `folder`. If it finds None, `make` first fills a folder that replaces `folder`.

    `read` logs why it finds nothing usable. `what` describes the work in messages to waiting processes. Raises
    Interrupted when asked to stop while waiting, and OSError (disk full, permissions).
    """
    found = read(lambda message: None)
    if found is not None:
        return found
    with _held(context, folder.with_name(f".{folder.name}.making"), what) as place:
        found = read(context.log)  # another process may have made it since
        if found is None:
            _replace(folder, place, make)
            found = read(context.log)
    assert found is not None, f"{folder} is not readable right after it was made"
    return found


@contextmanager
def _held(context: Context, place: Path, what: str) -> Iterator[Path]:
    """Locks `place` against other processes, and removes it at the end. Waits with messages while another process holds
    it."""
    handle = take(place)
    if handle is None:
        for _ in wait(place, what, context.log):
            context.ranks.still_here()
            if context.control.stop:
                raise Interrupted(f"stage {context.name}: stopped while it waited for another run")
            if (handle := take(place)) is not None:
                break
    assert handle is not None
    with handle:
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _replace(folder: Path, place: Path, make: Callable[[Path], None]) -> None:
    """Fills a new folder in `place`, then renames it to `folder`, replacing the old one."""
    new, old = place / "new", place / "old"
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir()
    make(new)
    crash_point("before_sync", folder)
    sync_tree(new)
    crash_point("before_rename", folder)
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    crash_point("after_rename", folder)
    sync_folder(folder.parent)
