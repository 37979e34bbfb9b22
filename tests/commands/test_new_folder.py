"""The place of an export: what is there is never lost, and what kills left there goes."""

import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from togi.commands.new_folder import ROOM, beside, place, refuse_place
from togi.core.errors import RecipeError, StageError
from togi.core.locks import take


def export(folder: Path) -> None:
    """What every export does with its folder."""
    refuse_place(folder)
    with beside(folder) as room:
        (room / "out").mkdir()
        (room / "out" / "weights").write_text("new")
        place(room / "out", folder)


@pytest.mark.parametrize("target", ["real", "missing"])
def test_a_link_stays_a_link_to_the_export(tmp_path, target):
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / target)
    export(tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / target / "weights").read_text() == "new"
    assert not list(tmp_path.rglob(f"{ROOM}*"))


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RecipeError, match=r"command line: \. is the folder that you are in.*name a new folder inside it"
    ):
        export(Path("."))


def test_a_mounted_disk_is_not_replaced():
    mounted = next(
        (path for path in map(Path, ("/dev/pts", "/dev/shm", "/sys/fs/cgroup")) if _is_empty_mount(path)), None
    )
    if mounted is None:
        pytest.skip("no empty mounted folder here")
    with pytest.raises(RecipeError, match="is a mounted disk, which cannot be replaced"):
        refuse_place(mounted)


def _is_empty_mount(path: Path) -> bool:
    return path.is_dir() and os.path.ismount(path) and not any(path.iterdir())


def test_what_appears_there_meanwhile_is_not_lost(tmp_path):
    with pytest.raises(RecipeError, match="cannot be written: Directory not empty"), beside(tmp_path / "out") as room:
        (room / "out").mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
        place(room / "out", tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_killed_exports_left_goes_and_what_works_or_is_a_strangers_stays(tmp_path):
    left, at_work, young, strange = (tmp_path / f"{ROOM}{name}" for name in ("left", "work", "young", "strange"))
    for room in (left, at_work, young):
        (room / "out").mkdir(parents=True)
        (room / "lock").write_text("123")
    (strange / "out").mkdir(parents=True)
    for room in (left, at_work, strange):
        os.utime(room / "lock" if room != strange else strange, times=(time.time() - 3600,) * 2)
    held = take(at_work)
    assert held is not None
    os.utime(at_work / "lock", times=(time.time() - 3600,) * 2)
    with held:
        export(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out", at_work.name, young.name, strange.name])


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_told_in_one_line_and_nothing_is_left(tmp_path):
    (tmp_path / "a").write_bytes(bytes(10_000))
    with (
        pytest.raises(StageError, match=r"out: cannot be written: the disk is full .* free some space"),
        files_no_larger_than(3_000),
        beside(tmp_path / "out") as room,
    ):
        shutil.copyfile(tmp_path / "a", room / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
