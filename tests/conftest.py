"""Fixtures that several files share. They import late: the process that hands out tests needs no torch."""

import gc
import importlib
import os
import shutil
from pathlib import Path

import pytest
from order import HEAVIEST

MEMORY = Path("/dev/shm")
ROOM = 4 * 1024**3  # bytes; a whole run of the tests leaves less than 1 GB behind while it lasts


def pytest_configure() -> None:
    """Temporary folders lie in memory where there is room: togi syncs every file, which a busy disk takes 20 ms for."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The heaviest files come first, in their order."""
    rank = {Path(__file__).parent / name: place for place, name in enumerate(HEAVIEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: a stage that frees memory need not look through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny recipe that was run once, undisturbed; its work lies in home/. The run was started plainly:
    what forked ones end with is held against it."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_run = importlib.import_module("tiny_run")
    ended = tiny_run.togi_plainly(folder / "home", "run", str(tiny_run.write_recipe(folder)), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    return folder
