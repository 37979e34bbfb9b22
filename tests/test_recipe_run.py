"""A run whose own files cannot be written: it says where and why, and never instead of what the work came to."""

from pathlib import Path
from typing import Any

import pytest

from togi.core.errors import InputError
from togi.recipe.graph import build
from togi.recipe.run import Options, Run
from togi.recipe.schema import validate
from togi.recipe.source import read_tree

RECIPE = "name: tiny\ndata: {rows: {path: rows.jsonl}}\nstages: {some: {type: select, input: $rows}}\n"


class Notes:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, stage: str, kind: str) -> None: ...
    def cached(self, stage: str, kind: str) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def done(self, stage: str, seconds: float) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)


def run_in(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TOGI_HOME", str(home))
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "rows.jsonl").write_text('{"nothing": 1}\n')
    return Run(build(validate(read_tree(folder / "tiny.yaml"))), Options(threads=1), Notes())


def test_a_home_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    run = run_in(tmp_path / "file" / "home", tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"file/home \(\$TOGI_HOME\): runs cannot be kept there: Not a directory"):
        run.run()


def test_a_state_that_cannot_be_written_does_not_hide_what_the_worker_said(tmp_path, monkeypatch):
    run = run_in(tmp_path / "home", tmp_path, monkeypatch)
    (run.folder / "state.json").mkdir(parents=True)  # no file can take its place
    with pytest.raises(InputError, match=r"rows\.jsonl:1.*do not make"):
        run.run()
    assert isinstance(run.display, Notes) and "the state and the report" in run.display.notes[-1]


@pytest.mark.parametrize(("said", "asked", "expected"), [("3", 0, 3), ("3,2", 0, 3), ("3", 2, 2)])
def test_threads_are_those_asked_for_else_those_of_the_environment(monkeypatch, said, asked, expected):
    """What is recorded with a stage, so that it goes on with as many, is what its worker gets."""
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert Options(threads=asked).worker_threads == expected
