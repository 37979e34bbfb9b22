"""Fixtures that several files share."""

import os
import shutil
from pathlib import Path

import pytest
from tiny_run import togi, write_recipe

MEMORY = Path("/dev/shm")
ROOM = 4 * 1024**3  # bytes; a whole run of the tests leaves less than 1 GB behind while it lasts


def pytest_configure() -> None:
    """Temporary folders lie in memory where there is room: togi syncs every file, which a busy disk takes 20 ms for."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny recipe that was run once, undisturbed; its work lies in home/."""
    folder = tmp_path_factory.mktemp("finished")
    ended = togi(folder / "home", "run", str(write_recipe(folder)), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    return folder
