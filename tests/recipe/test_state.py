"""The state of a run: moved with its home, or damaged, and how the commands report it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from stored_stage import finished_stage

from togi.cli import main
from togi.core.errors import DamagedFile
from togi.core.files import write_json
from togi.core.records import Message, Prompt
from togi.recipe.graph import build
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.recipe.state import read_state, settle
from togi.recipe.store import store_folder

RECIPE = "name: tiny\ndata: {rows: {path: rows.jsonl}}\nstages: {some: {type: select, input: $rows}}\n"
DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    '{"name": "tiny"}',
    '{"name": "tiny", "state": "done", "stages": [{"name": 1}]}',
    "\x00",
]


def state(folder: str, what: str = "done") -> dict:
    stage = {"name": "rows", "type": "import", "state": what, "folder": folder, "seconds": 1.5}
    return {"name": "tiny", "state": what, "stages": [stage], "error": None}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose rows were imported, in its home."""
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    (tmp_path / "rows.jsonl").write_text('{"question": "Why?"}\n')
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    graph = build(validate(read_tree(tmp_path / "tiny.yaml")))
    prompts = [Prompt(id="0", messages=(Message("user", "Why?"),))]
    folder = finished_stage(store_folder(), graph.nodes["rows"].folder_name, prompts=prompts)
    run = tmp_path / "home" / "runs" / "tiny"
    write_json(run / "state.json", state(f"../../store/{folder.name}"))
    (run / "rows").symlink_to(Path("../../store") / folder.name)
    return tmp_path / "tiny.yaml"


@pytest.mark.parametrize("written", ["../../store/import-1", "/somewhere/else/store/import-1"])
def test_stages_lie_in_the_store_beside_the_runs_wherever_that_is(tmp_path, written):
    write_json(tmp_path / "home" / "runs" / "tiny" / "state.json", state(written))
    (tmp_path / "home").rename(tmp_path / "moved")
    (stage,) = read_state(tmp_path / "moved" / "runs" / "tiny")["stages"]
    assert stage["folder"] == str(tmp_path / "moved" / "store" / "import-1")


def test_a_killed_run_is_written_as_interrupted_and_its_folders_stay_relative(tmp_path):
    write_json(tmp_path / "state.json", state("../../store/import-1", "running"))
    settle(tmp_path)
    found = json.loads((tmp_path / "state.json").read_text())
    assert (found["state"], found["stages"][0]["state"]) == ("interrupted", "interrupted")
    assert found["stages"][0]["folder"] == "../../store/import-1"


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_state_says_what_to_do(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(DamagedFile, match=r"state\.json: damaged: .*; run the recipe again"):
        read_state(tmp_path)


@pytest.mark.parametrize("command", ["status", "report", "show", "plan", "clean"])
@pytest.mark.parametrize("name", ["state.json", "uses.json", "DONE", "settings.json", "summary.json", "numerics.json"])
@pytest.mark.parametrize("text", ["", '{"a": ', "[3]"])
def test_no_command_ends_in_a_traceback_of_damaged_bookkeeping(recipe, command, name, text):
    run = recipe.parent / "home" / "runs" / "tiny"
    (run / name if name in ("state.json", "uses.json") else run / "rows" / name).write_text(text)
    words = {"clean": [command], "show": [command, str(recipe), "rows", "-n", "0"]}.get(command, [command, str(recipe)])
    ended = CliRunner().invoke(main, words)
    assert isinstance(ended.exception, SystemExit | None), ended.exception
    assert ended.exit_code in (0, 3), ended.output
    if ended.exit_code == 3:
        assert name in ended.output


def test_a_damaged_stage_is_told_by_plan(recipe):
    done = recipe.parent / "home" / "runs" / "tiny" / "rows" / "DONE"
    done.write_text(done.read_text().replace("1.5", "2.5"))
    ended = CliRunner().invoke(main, ["plan", str(recipe)])
    assert (
        ended.exit_code == 0
        and f"{done.resolve()}: damaged: it has changed since togi wrote it; it is done again" in ended.output
    )


def test_show_refuses_what_changed_and_says_how_to_do_it_again(recipe):
    folder = recipe.parent / "home" / "runs" / "tiny" / "rows"
    (folder / "output" / "records.parquet").write_text("something else")
    ended = CliRunner().invoke(main, ["show", str(recipe), "rows"])
    assert ended.exit_code == 3 and f"togi run {recipe} --redo rows" in ended.output
