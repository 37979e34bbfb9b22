"""Fixtures that several files share."""

from pathlib import Path

import pytest
from tiny_run import togi, write_recipe


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny recipe that was run once, undisturbed; its work lies in home/."""
    folder = tmp_path_factory.mktemp("finished")
    ended = togi(folder / "home", "run", str(write_recipe(folder)), "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    return folder
