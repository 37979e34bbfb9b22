"""Fixtures shared by several files. They import late: the process that distributes the tests needs no torch."""

import gc
import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from order import HEAVIEST

MEMORY = Path("/dev/shm")
ROOM = 4 * 1024**3  # bytes; the files of a full test run take less than 1 GB


def pytest_configure() -> None:
    """Puts temporary folders in memory if there is room: togi syncs every file, which takes 20 ms on a busy disk."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the heaviest files first, in their order."""
    rank = {Path(__file__).parent / name: place for place, name in enumerate(HEAVIEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """Freezes the imported and collected objects: a stage that frees memory need not scan them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny recipe that was run once, undisturbed; its home is home/. The run was a started process, not
    a forked one, because the results of forked ones are compared with it."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_run = importlib.import_module("tiny_run")
    ended = tiny_run.togi_plainly(folder / "home", "run", str(tiny_run.write_recipe(folder)), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def shell(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command on a copy of the finished run, in this process."""
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "copy" / "home"))
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("TOGI_COMPUTE", "float32")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    main = importlib.import_module("togi.cli").main

    def run(*words: str) -> Any:
        return CliRunner().invoke(main, list(words))

    return run
