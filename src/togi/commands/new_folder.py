"""The folder that an export makes: it must be new, and in a place that may be written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from togi.core.errors import RecipeError


def refuse_place(folder: Path) -> None:
    """Raises RecipeError for a folder that exists and is not empty, or that cannot be made."""
    with writable(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RecipeError(f"command line: {folder} exists already; name a new folder")
        above = next(each for each in folder.resolve().parents if each.exists())
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            why = f"{above} is not a folder in which you may write"
            raise RecipeError(f"command line: {folder}: cannot be written: {why}; name another folder")


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Raises RecipeError for a folder that the system does not allow, such as one inside a file."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        why = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"command line: {folder}: cannot be written: {why or error}; name another folder") from None
