"""Files are whole or absent, and lines torn by a kill are handled."""

import errno
import subprocess
import sys

import pytest

from togi.core import files


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(OSError, match="full"), files.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "disk full")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_torn_lines_are_left_out_and_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    files.append_line(path, {"n": 1})
    with path.open("ab") as handle:
        handle.write(b'{"n": 2')
    assert files.read_lines(path) == [{"n": 1}]
    files.cut_torn_line(path)
    files.append_line(path, {"n": 3})
    assert files.read_lines(path) == [{"n": 1}, {"n": 3}]
    assert files.read_lines(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("point", "left"),
    [("before_sync", "old"), ("before_rename", "old"), ("after_rename", "new"), ("mid_append", "old")],
)
def test_a_kill_at_a_write_point_leaves_old_or_new(tmp_path, point, left):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import sys; from pathlib import Path; from togi.core import files\n"
        f"files.install_fault('{point}:1')\n"
        "files.append_line(Path(sys.argv[1]).with_suffix('.jsonl'), {'n': 1})\n"
        "files.write_text(Path(sys.argv[1]), 'new')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert ended.returncode == -9
    assert path.read_text() == left
    assert files.read_lines(path.with_suffix(".jsonl")) == ([] if point == "mid_append" else [{"n": 1}])
