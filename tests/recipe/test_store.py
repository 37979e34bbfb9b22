"""The status of a stage's folder: finished, started, damaged, from an older togi; and valid locations of the home."""

import json
import os
from pathlib import Path

import pytest
from stored_stage import begun_stage, finished_stage

from togi.core.errors import DamagedFile, InputError
from togi.core.files import read_sealed, write_json, write_sealed
from togi.recipe.store import (
    clear_leftovers,
    damage,
    deep_damage,
    hold_whole,
    home,
    is_done,
    is_older,
    made_from,
    manifest,
    outputs_digests,
    set_aside,
)


def test_a_finished_stage_is_whole_and_says_what_it_was_made_from(tmp_path):
    parent = finished_stage(tmp_path, "import-0000000000000000")
    read = outputs_digests([(parent, "main")])
    assert list(read) == ["import-0000000000000000/output"]
    folder = finished_stage(tmp_path, made_from=read)
    assert is_done(folder) and damage(folder) is None and deep_damage(folder) is None
    assert made_from(folder) == read
    assert manifest(folder)["format"] == 2 and list(manifest(folder)["files"]) == ["output/records.parquet"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:40],
        lambda text: "[]",
        lambda text: '{"files": 3}',
        lambda text: text.replace('"seconds": 1.5', '"seconds": 2.5'),
        lambda text: text.replace("records.parquet", "records.parquer"),
        lambda text: text + "\xff",
    ],
)
def test_a_done_that_is_not_as_it_was_written_is_damage(tmp_path, change):
    folder = finished_stage(tmp_path)
    text = (folder / "DONE").read_text()
    (folder / "DONE").write_bytes(change(text).encode("latin-1"))
    assert (folder / "DONE").read_text(encoding="latin-1") != text
    assert not is_done(folder)
    assert str(folder / "DONE") in (damage(folder) or "")


@pytest.mark.parametrize("name", ["output/records.parquet", "summary.json"])
def test_a_file_that_is_gone_is_seen_at_once_and_a_changed_one_when_it_is_read(tmp_path, name):
    folder = finished_stage(tmp_path)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + b"?")
    assert is_done(folder)
    assert "it has changed since it was made" in (deep_damage(folder) or "")
    with pytest.raises(DamagedFile, match="redo the stage with `togi run x --redo y`"):
        hold_whole(folder, "togi run x --redo y")
    (folder / name).unlink()
    assert not is_done(folder) and damage(folder) == f"{folder / name}: it is missing"


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path):
    folder = finished_stage(tmp_path)
    path = folder / "output" / "records.parquet"
    assert deep_damage(folder) is None
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert deep_damage(folder) is not None


@pytest.mark.parametrize("name", ["made_from.json", "numerics.json", "memory.json"])
@pytest.mark.parametrize("content", ["", '{"a": ', "[]", "\x00"])
def test_what_an_unfinished_stage_was_begun_with_must_be_whole(tmp_path, name, content):
    folder = begun_stage(tmp_path)
    assert damage(folder) is None
    (folder / name).write_text(content)
    assert str(folder / name) in (damage(folder) or "")


def test_work_that_does_not_say_what_it_was_begun_from_is_damage(tmp_path):
    folder = begun_stage(tmp_path)
    (folder / "made_from.json").unlink()
    assert damage(folder) == f"{folder / 'made_from.json'}: it is missing"


def test_what_is_set_aside_is_kept_and_no_stage_any_more(tmp_path):
    folder = finished_stage(tmp_path)
    kept = set_aside(folder)
    assert not folder.exists() and (kept / "output" / "records.parquet").exists()
    assert not list(tmp_path.glob("*/DONE"))


def test_folders_of_an_older_togi_are_told_apart(tmp_path):
    done, begun = tmp_path / "select-0000000000000001", tmp_path / "select-0000000000000002"
    write_json(done / "DONE", {"fingerprint": "ab", "seconds": 1.0, "made_from": ["cd"], "files": {}})
    write_json(begun / "made_from.json", ["cd"])
    assert is_older(done) and is_older(begun) and not is_done(done)
    assert not is_older(finished_stage(tmp_path)) and not is_older(tmp_path / "nothing")


def test_leftovers_of_writes_are_removed_and_nothing_else(tmp_path):
    folder = finished_stage(tmp_path)
    before = sorted(folder.rglob("*"))
    (folder / ".DONE.tmp").touch()
    (folder / "output" / ".model.old").mkdir()
    (folder / "output" / ".model.old" / "a").touch()
    clear_leftovers(folder)
    assert sorted(folder.rglob("*")) == before


def test_a_seal_holds_a_file_to_what_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, {"a": [1, 2.5], "b": {"ä": None}})
    assert read_sealed(path, {"a": list}) == {"a": [1, 2.5], "b": {"ä": None}}
    with pytest.raises(DamagedFile, match=r"a\.json: damaged: c: it is missing"):
        read_sealed(path, {"c": int})
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "a": [1, 2]}))
    with pytest.raises(DamagedFile, match=r"a\.json: damaged: it has changed since togi wrote it"):
        read_sealed(path)


def test_the_home_may_begin_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TOGI_HOME", "~/x")
    assert home() == tmp_path / "x"
    monkeypatch.setenv("TOGI_HOME", "")
    assert home() == Path("runs").resolve()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("a-file", "it is a file"),
        ("~nosuchuser/x", "Could not determine home directory"),
        ("bytes-\udcff", "its name is not UTF-8"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_home_that_cannot_be_one_is_an_error_that_says_so(monkeypatch, tmp_path, given, told):
    (tmp_path / "a-file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOGI_HOME", given)
    with pytest.raises(InputError, match=told) as raised:
        home()
    assert "choose a folder with TOGI_HOME=FOLDER" in str(raised.value)
    str(raised.value).encode()
