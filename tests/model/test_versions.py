"""Untested versions of the library are reported once, when models are first imported."""

import logging
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from togi.model.versions import TESTED, warn_if_untested

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.parametrize("version", ["5.20.0", "5.23.9", "5.21.1rc1"])
def test_tested_versions_pass_in_silence(version, caplog):
    warn_if_untested(version)
    assert caplog.text == ""


@pytest.mark.parametrize("version", ["4.51.3", "5.19.4", "5.24.0", "6.0.0.dev0"])
def test_another_version_is_mentioned_with_what_to_install(version, caplog):
    with caplog.at_level(logging.WARNING):
        warn_if_untested(version)
    assert f"transformers {version} is installed" in caplog.text
    assert "pip install 'transformers>=5.20,<5.24'" in caplog.text


def test_the_project_asks_for_these_versions():
    needs = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]["train"]
    (oldest, newest) = TESTED
    assert f"transformers>={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}" in needs


def test_importing_models_says_it_once():
    code = (
        "from importlib import metadata; real = metadata.version;"
        "metadata.version = lambda name: '7.1.0' if name == 'transformers' else real(name);"
        "import togi.model.inspect, togi.model.folders"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr.count("transformers 7.1.0 is installed") == 1
