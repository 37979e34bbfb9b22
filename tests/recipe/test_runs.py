"""Runs as objects: each has an id, is found even after an override replaced it, and keeps results until forgotten."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from stored_stage import finished_stage

from togi.cli import main
from togi.core.errors import RecipeError
from togi.core.files import write_json
from togi.recipe.runs import find_run, forgettable, id_of, keep_last, known_runs, run_id
from togi.recipe.sweep import register, survey

FIRST, SECOND = "select-" + "a" * 16, "select-" + "b" * 16


def state(folder: str, mark: str, started: float) -> dict[str, object]:
    stage = {"name": "one", "type": "select", "state": "done", "folder": f"../../store/{folder}", "fingerprint": mark}
    return {"name": "tiny", "state": "done", "stages": [stage], "started": started, "seconds": 1.0, "error": None}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that was run, and then run again with an override."""
    monkeypatch.setenv("TOGI_HOME", str(tmp_path))
    run = tmp_path / "runs" / "tiny"
    for number, (folder, mark) in enumerate([(FIRST, "a"), (SECOND, "b")]):
        now = state(folder, mark, float(number))
        finished_stage(tmp_path / "store", folder)
        run.mkdir(parents=True, exist_ok=True)
        keep_last(run, id_of(now))
        register(run, [folder])
        write_json(run / "state.json", now)
    return tmp_path


def togi(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_an_id_follows_from_the_name_and_all_fingerprints():
    found = run_id("tiny", [("one", "a")])
    assert len(found) == 12 and found == run_id("tiny", [("one", "a")]) == id_of(state(FIRST, "a", 5.0))
    others = [
        run_id("tiny", [("one", "b")]),
        run_id("other", [("one", "a")]),
        run_id("tiny", [("one", "a"), ("two", "c")]),
    ]
    assert found not in others


def test_the_run_that_was_replaced_is_known_and_its_results_stay(home):
    newest, oldest = known_runs()
    assert (newest.last, oldest.last) == (True, False)
    assert Path(oldest.state["stages"][0]["folder"]) == home / "store" / FIRST
    assert survey().unused == []
    shown = json.loads(togi("status", "--run", oldest.id[:6], "--json").output)
    assert shown["id"] == oldest.id and shown["stages"][0]["folder"].endswith(FIRST)
    assert oldest.id in togi("list", "--runs").output and newest.id in togi("list", "--runs").output
    report = json.loads(togi("report", "--run", oldest.id, "--json").output)["report"]
    assert Path(report).parent == oldest.folder and "tiny" in Path(report).read_text()


def test_the_same_run_again_keeps_nothing(home):
    keep_last(home / "runs" / "tiny", known_runs()[0].id)
    assert len(list((home / "history").iterdir())) == 1


def test_a_run_goes_back_and_forth_and_is_known_once(home):
    keep_last(home / "runs" / "tiny", known_runs()[1].id)
    write_json(home / "runs" / "tiny" / "state.json", state(FIRST, "a", 2.0))
    assert [run.last for run in known_runs()] == [True, False]


def test_a_forgotten_run_lets_its_results_go(home):
    newest, oldest = known_runs()
    with pytest.raises(RecipeError, match="is the last run of tiny"):
        forgettable(newest.id)
    for words in ((), ("--yes",)):
        assert [run.id for run in known_runs()] == [newest.id, oldest.id]
        shown = json.loads(togi("clean", "--forget", oldest.id, "--json", *words).output)
        assert [Path(row["folder"]).name for row in shown["folders"]] == [FIRST]
        assert shown["forgotten"] == [oldest.id] and shown["removed"] is bool(words)
    assert [run.id for run in known_runs()] == [newest.id]


def test_a_run_that_is_not_known_names_those_that_are(home):
    with pytest.raises(RecipeError, match=known_runs()[0].id):
        find_run("ffffffffffff")
    assert "give either RECIPE or --run ID" in togi("status").output
    assert "there is no stage 'two'; there are: one" in togi("show", "--run", known_runs()[0].id, "two").output


def test_no_runs_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("TOGI_HOME", str(tmp_path))
    assert "no runs yet" in togi("list", "--runs").output and known_runs() == []
