"""Files and folders that the user names and that cannot be written: one message with the place, on every command."""

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tiny_run import tiny_model

from togi.cli import COMMANDS, main
from togi.core.errors import InputError
from togi.core.sources import ModelSource
from togi.model.packages import package_folder

READ = {"recipe", "target", "documents", "file", "scores", "preferences", "weights", "difficulty", "anchors"}
READ |= {"battles", "judgments", "answers", "leaked", "push folder"}
"""The parameters of commands that name what is read."""
WRITTEN: dict[str, Callable[[Path, str], tuple[str, ...]]] = {
    "init output": lambda here, place: (
        *("init", "--model", str(here / "model"), "--data", str(here / "rows.jsonl")),
        *("--goal", "grpo", "--output", place),
    ),
    "export folder": lambda here, place: ("export", str(here / "model"), place, "--template", "chatml"),
    "evaluate arena plot": lambda here, place: (*arena(here), "--plot", place),
    "evaluate arena save_battles": lambda here, place: (*arena(here), "--save-battles", place),
}
"""A command for each parameter that names what is written; the first argument is a folder with its input."""


def arena(here: Path) -> tuple[str, ...]:
    return ("evaluate", "arena", "--battles", str(here / "battles.jsonl"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    tiny_model(folder / "model")
    rows = [{"prompt": f"What is {n}?", "answer": str(n)} for n in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    games = [{"question_id": n, "model_a": "base", "model_b": "m", "winner": "model_b"} for n in range(3)]
    (folder / "battles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in games))
    (folder / "a-file").write_text("")
    return folder


def places(command: click.Command, words: str) -> list[str]:
    """The parameters of a command and of those below it that name files or folders."""
    below = command.commands.items() if isinstance(command, click.Group) else ()
    found = [f"{words} {each.name}" for each in command.params if isinstance(each.type, click.Path)]
    return found + [place for name, each in below for place in places(each, f"{words} {name}")]


def test_every_place_that_a_command_writes_is_tried_here():
    context = click.Context(main)
    found = [place for name in COMMANDS for place in places(main.get_command(context, name), name)]
    assert {place for place in found if not {place, place.rpartition(" ")[2]} & READ} == set(WRITTEN)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_place_that_cannot_be_written_is_told_in_one_line(here, name, monkeypatch, tmp_path):
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    place = str(here / "a-file" / "x.yaml")
    ended = CliRunner().invoke(main, WRITTEN[name](here, place))
    assert ended.exit_code == 2 and ended.stdout == "", ended.output
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith(f"togi: command line: {place}: cannot be written: ") and "; name another " in line


def test_a_home_that_cannot_be_written_is_told_when_a_packages_weights_are_converted(tmp_path, monkeypatch):
    package = tmp_path / "site" / "weights_here-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: weights-here\nVersion: 1\n")
    (package / "RECORD").write_text("weights_here.gguf,,\n")
    (tmp_path / "site" / "weights_here.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "a-file").write_text("")
    with pytest.raises(InputError, match=r"a-file/.*weights of weights-here cannot be written: Not a dir.*TOGI_HOME"):
        package_folder(ModelSource(kind="package", name="weights-here"), tmp_path / "a-file" / "store")
