"""A run that cannot write its own files reports where and why, and never hides the result of the work; a run that is
stopped before it has processes stops."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from notes import Notes
from tiny_run import tiny_model, togi

from togi.cli import main
from togi.core.errors import InputError, Interrupted, WorkerDied
from togi.recipe import workers
from togi.recipe.graph import build
from togi.recipe.options import Options
from togi.recipe.run import Run
from togi.recipe.schema import validate
from togi.recipe.source import read_tree

RECIPE = "name: tiny\ndata: {rows: {path: rows.jsonl}}\nstages: {some: {type: select, input: $rows}}\n"


def run_in(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> Run:
    monkeypatch.setenv("TOGI_HOME", str(home))
    (folder / "tiny.yaml").write_text(RECIPE + more)
    (folder / "rows.jsonl").write_text('{"nothing": 1}\n')
    return Run(build(validate(read_tree(folder / "tiny.yaml"))), Options(threads=1), Notes())


def test_a_home_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    run = run_in(tmp_path / "file" / "home", tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"file/home \(\$TOGI_HOME\): cannot store runs there: Not a directory"):
        run.run()


def test_a_state_that_cannot_be_written_does_not_hide_what_the_worker_said(tmp_path, monkeypatch):
    run = run_in(tmp_path / "home", tmp_path, monkeypatch)
    (run.folder / "state.json").mkdir(parents=True)  # no file can replace a folder
    with pytest.raises(InputError, match=r"rows\.jsonl:1.*do not make"):
        run.run()
    assert isinstance(run.display, Notes) and "the state and the report" in run.display.notes[-1]


@pytest.mark.parametrize(("signals", "said"), [(1, "stopped; everything"), (2, "stage rows: stopped at once")])
def test_signals_that_come_before_there_are_processes_stop_the_run(tmp_path, monkeypatch, signals, said):
    run = run_in(tmp_path / "home", tmp_path, monkeypatch)
    run.display = Notes(signals)
    with pytest.raises(Interrupted, match=said):
        run.run()
    assert run.workers is not None and all(worker.process.poll() is not None for worker in run.workers.workers.values())
    assert json.loads((run.folder / "state.json").read_text())["state"] == "interrupted"


def test_a_stage_whose_worker_died_is_failed(tmp_path, monkeypatch):
    code = "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(workers, "COMMAND", (sys.executable, "-c", code))
    run = run_in(tmp_path / "home", tmp_path, monkeypatch)
    with pytest.raises(WorkerDied, match="stage rows: the worker was killed"):
        run.run()
    state = json.loads((run.folder / "state.json").read_text())
    assert state["state"] == "failed"
    assert [stage["state"] for stage in state["stages"]] == ["failed", "waiting"]
    assert "the worker was killed (SIGKILL)" in state["stages"][0]["error"]


def test_a_worker_that_is_asked_to_stop_interrupts_the_run_even_while_it_starts(tmp_path, monkeypatch):
    """SIGTERM goes to the worker alone; the signal stays pending until the worker is ready for it."""
    run = run_in(tmp_path / "home", tmp_path, monkeypatch)
    (tmp_path / "rows.jsonl").write_text('{"question": "Why?"}\n')
    started = workers.Worker.send

    def send(worker: workers.Worker, command: dict[str, Any]) -> None:
        worker.process.terminate()
        started(worker, command)

    monkeypatch.setattr(workers.Worker, "send", send)
    with pytest.raises(Interrupted, match="stage rows: stopped"):
        run.run()
    state = json.loads((run.folder / "state.json").read_text())
    assert state["state"] == "interrupted"
    assert [stage["state"] for stage in state["stages"]] == ["interrupted", "waiting"]


def test_what_may_change_upstream_is_noted_once_by_run_and_check(tmp_path, monkeypatch):
    pinned = "{hub: some/pinned, revision: " + 10 * "0a1f" + "}"
    run = run_in(tmp_path / "home", tmp_path, monkeypatch, f"models: {{base: {{hub: some/model}}, other: {pinned}}}\n")
    with pytest.raises(InputError, match="do not make"):
        run.run()
    assert isinstance(run.display, Notes)
    (noted,) = run.display.notes
    assert noted.startswith("models.base: some/model at revision main may change upstream")
    (tmp_path / "rows.jsonl").write_text('{"question": "Why?"}\n')
    checked = CliRunner().invoke(main, ["check", str(tmp_path / "tiny.yaml")])
    assert checked.exit_code == 0 and checked.output.count("may change upstream") == 1, checked.output
    as_json = CliRunner().invoke(main, ["check", str(tmp_path / "tiny.yaml"), "--json"])
    notes = json.loads(as_json.output)["notes"]
    assert [note for note in notes if "no stage uses it" not in note] == [noted]


def test_bad_rows_end_a_run_before_any_other_stage_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    (tmp_path / "good.jsonl").write_text('{"question": "Why?"}\n')
    (tmp_path / "bad.jsonl").write_text('{"nothing": 1}\n')
    (tmp_path / "two.yaml").write_text(
        "name: two\ndata: {good: {path: good.jsonl}, bad: {path: bad.jsonl}}\n"
        "stages: {some: {type: select, input: $good}, more: {type: select, input: $bad}}\n"
    )
    graph = build(validate(read_tree(tmp_path / "two.yaml")))
    assert list(graph.nodes) == ["good", "some", "bad", "more"]
    run = Run(graph, Options(threads=1), Notes())
    with pytest.raises(InputError, match="do not make prompts"):
        run.run()
    state = json.loads((run.folder / "state.json").read_text())
    assert [stage["state"] for stage in state["stages"]] == ["done", "waiting", "failed", "waiting"]
    Run(graph, Options(threads=1, until="some"), Notes()).run()  # this part does not need the bad rows


def test_a_run_that_does_not_begin_names_no_report_of_an_earlier_one(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="do not make"):
        run_in(tmp_path / "home", tmp_path, monkeypatch).run()
    ended = CliRunner().invoke(main, ["run", str(tmp_path / "tiny.yaml"), "--until", "nope"])
    assert ended.exit_code == 2 and "there is no stage 'nope'" in ended.output and "report" not in ended.output


@pytest.mark.parametrize(("said", "asked", "expected"), [("3", 0, 3), ("3,2", 0, 3), ("3", 2, 2)])
def test_threads_are_those_asked_for_else_those_of_the_environment(monkeypatch, said, asked, expected):
    """The number recorded with a stage, used again on resume, is the number that its worker gets."""
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert Options(threads=asked).worker_threads == expected


def test_a_row_that_a_template_cannot_render_ends_a_run_as_check_says(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": "Hello"}], "tools": tools},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tools.yaml").write_text(
        "name: tools\nmodels: {base: {path: model, template: chatml}}\ndata: {asked: {path: rows.jsonl}}\n"
        "stages: {answers: {type: respond, prompts: $asked, models: [$base], max_tokens: 4}}\n"
    )
    for command in ("check", "run"):
        ended = togi(tmp_path / "home", command, str(tmp_path / "tools.yaml"))
        words = " ".join((ended.stdout + ended.stderr).split())
        assert ended.returncode == 3 and "stage answers: prompt " in words and "tools" in words, words
