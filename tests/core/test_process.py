"""Signals at any time after a command's start, and a run whose reader closes the pipe, in real processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import environment

RECIPE = "name: tiny\ndata: {rows: {path: rows.jsonl}}\nstages: {some: {type: select, input: $rows}}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text('{"question": "Why?"}\n')
    return tmp_path


@pytest.mark.parametrize(("module", "number"), [("click", 15), ("togi.cli.run", 2), ("ruamel.yaml", 15), ("rich", 2)])
def test_a_signal_before_the_work_has_begun_ends_the_command_plainly(folder, module, number):
    """A signal during import; here it comes when a certain module is imported."""
    code = "import os, sys\nfrom togi import __main__\n"
    code += "class Find:\n    def find_spec(self, name, *_):\n"
    code += f"        if name == {module!r}: os.kill(os.getpid(), {number})\n"
    code += "sys.meta_path.insert(0, Find())\nsys.argv = ['togi', 'run', 'tiny.yaml']\n__main__.main()\n"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=folder)
    assert ended.returncode == 130 and ended.stderr.strip() == "togi: interrupted"
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("words", ["run tiny.yaml --json | true", "run tiny.yaml 2>&1 | true"])
def test_a_run_whose_reader_has_left_stops_in_good_order(folder, words):
    command = f"{sys.executable} -m togi {words}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(folder / "home"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (141, "", "")
    state = json.loads((folder / "home" / "runs" / "tiny" / "state.json").read_text())
    assert state["state"] == "interrupted"


def test_a_run_without_streams_does_its_work(folder):
    command = f"{sys.executable} -m togi run tiny.yaml <&- >&- 2>&-"
    ended = subprocess.run(["bash", "-c", command], cwd=folder, env=environment(folder / "home"), timeout=60)
    assert ended.returncode == 0 and (folder / "home" / "runs" / "tiny" / "some" / "DONE").exists()
