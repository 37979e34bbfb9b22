"""A stage reads the same files as the run did: files edited during a run are refused, and damaged work of earlier
stages is redone."""

from pathlib import Path
from typing import Any

import pytest
from notes import Notes
from stored_stage import begun_stage, finished_stage

from togi.core.errors import InputError, Interrupted
from togi.core.hashing import change, file_hash, take, tree
from togi.core.ranks import ALONE
from togi.recipe import worker
from togi.recipe.graph import build
from togi.recipe.mend import mend
from togi.recipe.options import Options
from togi.recipe.run import Run
from togi.recipe.schema import validate
from togi.recipe.source import read_tree
from togi.recipe.store import is_done, outputs_digests
from togi.stages.context import Context, Control
from togi.stages.data import importing_work

RECIPE = """\
name: tiny
data: {rows: {path: rows}}
stages:
  some: {type: select, input: $rows, count: 2}
  few: {type: select, input: $some, count: 1}
"""
WORK = importing_work.run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TOGI_HOME", str(tmp_path / "home"))
    (tmp_path / "rows").mkdir()
    for name in "ab":
        (tmp_path / "rows" / f"{name}.jsonl").write_text(f'{{"question": "{name}?"}}\n')
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return Run(build(validate(read_tree(tmp_path / "tiny.yaml"))), Options(threads=1), Notes())


def import_rows(run: Run, monkeypatch: pytest.MonkeyPatch, during: Any = None) -> Path:
    """Runs the stage that reads the rows, in this process, as a worker does; calls `during` midway."""
    node = run.graph.nodes["rows"]
    folder = run.store / node.folder_name

    def work(settings: Any, context: Context) -> None:
        WORK(settings, context)
        if during is not None:
            during()

    monkeypatch.setattr(importing_work, "run", work)
    worker.do_stage(run.command_for(node, folder), Control(send=lambda event: None), ALONE)
    return folder


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("?", "!"))


def test_a_file_that_changed_before_its_stage_began_is_refused(run, tmp_path, monkeypatch):
    edit(tmp_path / "rows" / "b.jsonl")
    with pytest.raises(InputError, match=r"stage rows: .*rows/b\.jsonl was changed during the run"):
        import_rows(run, monkeypatch)
    assert not is_done(run.store / run.graph.nodes["rows"].folder_name)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (lambda rows: edit(rows / "a.jsonl"), r"a\.jsonl was changed"),
        (lambda rows: (rows / "a.jsonl").unlink(), r"a\.jsonl cannot be read any more \(No such file"),
        (lambda rows: (rows / "c.jsonl").write_text("{}"), r"c\.jsonl was added"),
    ],
)
def test_a_file_that_changed_while_its_stage_worked_is_refused_and_the_work_forgotten(
    run, tmp_path, monkeypatch, how, told
):
    with pytest.raises(InputError, match=told):
        import_rows(run, monkeypatch, lambda: how(tmp_path / "rows"))
    assert not (run.store / run.graph.nodes["rows"].folder_name).exists()


def test_a_stage_that_was_stopped_after_its_file_changed_is_forgotten_too(run, tmp_path, monkeypatch):
    def stop() -> None:
        edit(tmp_path / "rows" / "a.jsonl")
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        import_rows(run, monkeypatch, stop)
    assert not (run.store / run.graph.nodes["rows"].folder_name).exists()


def test_files_that_stay_are_read_once(run, monkeypatch):
    folder = import_rows(run, monkeypatch)
    assert is_done(folder)
    assert import_rows(run, monkeypatch) == folder


def test_a_link_that_leads_nowhere_and_a_name_with_a_nul_are_no_faults(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    source = take(tmp_path, "tree", tree(tmp_path))
    assert list(source.files) == [str(tmp_path / "a")] and change(source) is None
    for path in (Path("nul\0"), tmp_path / ("x" * 300), tmp_path / "loop"):
        with pytest.raises(InputError):
            tree(path)


def test_a_hash_is_taken_from_memory_only_for_a_file_at_rest(tmp_path):
    path = tmp_path / "a"
    found = []
    for text in ("one", "two", "six"):  # within one tick of the file system's clock
        path.write_text(text)
        found.append(file_hash(path))
    assert len(dict.fromkeys(found)) == 3


# --- before a run begins ----------------------------------------------------------------------------------------------


def stored(run: Run, *done: str) -> dict[str, Path]:
    """Writes the named stages of the recipe as finished ones; returns the folders of all stages."""
    folders = {name: run.store / node.folder_name for name, node in run.graph.nodes.items()}
    for name in done:
        read = outputs_digests([(folders[parent], "main") for parent in run.graph.nodes[name].parents])
        finished_stage(run.store, folders[name].name, read)
    return folders


def mended(run: Run) -> list[str]:
    told: list[str] = []
    mend(run.graph, list(run.graph.nodes), run.store, told.append)
    return told


def test_what_is_read_by_a_stage_that_is_to_be_done_is_read_whole(run):
    folders = stored(run, "rows", "some")
    assert mended(run) == []
    (folders["some"] / "output" / "records.parquet").write_text("made by somebody else")
    (told,) = mended(run)
    assert told.startswith(f"some: {folders['some'] / 'output' / 'records.parquet'}: it has changed since it was made")
    assert not folders["some"].exists() and is_done(folders["rows"])


def test_what_a_damaged_stage_was_made_from_is_read_whole_too(run):
    folders = stored(run, "rows", "some")
    for name in ("rows", "some"):
        (folders[name] / "output" / "records.parquet").write_text("made by somebody else")
    assert [line.partition(":")[0] for line in mended(run)] == ["some", "rows"]


def test_what_nobody_reads_is_not_read(run):
    folders = stored(run, "rows", "some", "few")
    (folders["rows"] / "output" / "records.parquet").write_text("made by somebody else")
    assert mended(run) == [] and all(is_done(folder) for folder in folders.values())


@pytest.mark.parametrize("name", ["DONE", "summary.json", "output/records.parquet"])
def test_a_finished_stage_without_a_file_is_done_again(run, name):
    folders = stored(run, "rows", "some", "few")
    (folders["few"] / name).unlink()
    if name == "DONE":
        (folders["few"] / name).write_text("")
    (told,) = mended(run)
    assert told.startswith("few: ") and not folders["few"].exists()


def test_an_unfinished_stage_that_does_not_know_how_it_was_begun_begins_again(run):
    folders = stored(run, "rows", "some")
    folder = begun_stage(run.store, folders["few"].name)
    assert mended(run) == [] and folder.exists()
    (folder / "numerics.json").write_text("")
    (told,) = mended(run)
    assert "numerics.json: damaged: it is empty, so it is done again; the old files are in" in told
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "content"), [("settings.json", ""), ("spent.json", "[]"), ("spent.json", ""), ("tracked.json", "{")]
)
def test_what_can_be_done_without_is_passed_over(run, monkeypatch, name, content):
    folder = run.store / run.graph.nodes["rows"].folder_name
    folder.mkdir(parents=True)
    (folder / name).write_text(content)
    import_rows(run, monkeypatch)
    assert is_done(folder) and (folder / "settings.json").read_text().startswith("{")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("batch-000001", "batch-000002"),
        lambda text: text[: len(text) // 2] + "\n",
        lambda text: "\n\x00\n[]\n",
        lambda text: "",
    ],
)
def test_a_journal_that_was_edited_skips_no_unit(tmp_path, change):
    def context() -> Context:
        return Context("some", tmp_path, tmp_path, 1, {}, Control(send=lambda event: None))

    made: list[int] = []
    context().units(3, lambda number: made.append(number) or number * number)
    journal = tmp_path / "journal.jsonl"
    journal.write_text(change(journal.read_text()))
    (tmp_path / "units" / "batch-000002.json").write_bytes((tmp_path / "units" / "batch-000001.json").read_bytes())
    assert context().units(3, lambda number: made.append(number) or number * number) == [0, 1, 4]
    assert 2 in made[3:]
    del made[:]
    assert context().units(3, lambda number: made.append(number) or number) == [0, 1, 4] and made == []
