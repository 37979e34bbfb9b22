"""Tables and values for people: aligned, without Python syntax or terminal control codes; warnings go to a file."""

import logging
import re
import warnings

import pytest
from rich.cells import cell_len

from togi.core.library_log import NAME, library_warnings_kept
from togi.core.tables import plain, rendered, say_table, table

ROWS = [("a", "1", "研ぎ"), ("longer", "20,000", "\x1b[31mred[/]")]


def test_columns_line_up_and_cells_are_text(capsys):
    say_table(("name", "count", "note"), ROWS, right=(1,))
    head, line, first, second = capsys.readouterr().out.splitlines()
    assert set(line.strip()) == {"─"} and head.split() == ["name", "count", "note"]
    assert cell_len(first.partition("1")[0]) + 1 == cell_len(second.partition("20,000")[0]) + 6
    assert first.index("研") == second.index("\\x1b[31mred[/]")


def test_a_long_cell_without_a_terminal_lengthens_its_own_line_alone(capsys):
    rows = [("a", "1.0", "first"), ("b", "x" * 300, "second\nline"), ("c" * 40, "2.0", "z" * 500)]
    say_table(("setting", "default", "meaning"), rows)
    head, rule, first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"{'a':<42}{'1.0':<9}first" and second == f"{'b':<42}{'x' * 300}  second line"
    assert third == f"{'c' * 40}  {'2.0':<9}{'z' * 500}"
    assert head == f"{'setting':<42}{'default':<9}meaning" and set(rule) == {"─"} and len(rule) < 70


def test_a_terminal_wraps_and_colours(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = rendered(table(("state", "words"), [("done", "word " * 20)]), colour=True)
    assert all(cell_len(line) < 60 for line in text.splitlines()) and len(text.splitlines()) > 4 and "\x1b[32m" in text


RUNS = [
    ("df6d0735d520", "2026-11-30 06:39 UTC", "0.0002667", "+0.917 (+0.774 to +0.986)", "better", "many words " * 9),
    ("a1330247d2f2", "2026-11-29 16:25 UTC", "6.667e-05", "", "worse", "研ぎ" * 30),
]
TITLES = ("run", "started", "learning rate", "difference", "", "what it is")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_no_number_date_or_id_is_broken_and_no_column_hidden_in_a_narrow_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = re.sub("\x1b\\[[0-9;]*m", "", rendered(table(TITLES, RUNS, right=(2, 3)), colour=True))
    assert all(cell_len(line) <= width for line in text.splitlines())
    for whole in ("df6d0735d520", "2026-11-30 06:39 UTC", "0.0002667", "6.667e-05", "better", "worse"):
        assert whole in text
    assert "+0.917 (+0.774 to +0.986)" in text and "+0.774 to +0.986" in text and text.count("研") == 30
    assert text.count("many") == text.count("words") == 9


def test_rows_that_do_not_fit_are_blocks_without_their_empty_cells(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = re.sub("\x1b\\[[0-9;]*m", "", rendered(table(TITLES, RUNS), colour=True)).splitlines()
    assert lines[:3] == ["run: df6d0735d520", "  started: 2026-11-30 06:39 UTC", "  learning rate: 0.0002667"]
    second = lines[lines.index("run: a1330247d2f2") :]
    assert second[3] == "  worse" and not any("difference" in line for line in second)


def test_prose_and_titles_are_wrapped_first(monkeypatch):
    monkeypatch.setenv("COLUMNS", "36")
    rows = [("df6d0735d520", "1", "many words " * 9)]
    head, more, line, first, *rest = rendered(
        table(("run", "stages done", "words"), rows, right=(1,)), True
    ).splitlines()
    assert set(line) == {"─"} and "df6d0735d520" in first and rest and "stages" in head and "done" in more


def test_no_rows_no_table(capsys):
    say_table(("a",), [])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"in": 6000, "out": 0.25}, "in 6,000, out 0.25"),
        ({}, "none"),
        (None, "none"),
        ([], "none"),
        (True, "yes"),
        (["a", "b"], "a, b"),
        ({"a": {"b": 1}}, "a b 1"),
    ],
)
def test_values_are_told_without_words_of_python(value, text):
    assert plain(value) == text


def test_warnings_of_libraries_go_to_a_file_for_the_time_being(tmp_path, capsys):
    library = logging.getLogger("transformers")
    before = library.handlers, library.propagate, warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with library_warnings_kept(tmp_path):
            assert not (tmp_path / NAME).exists()
            library.warning("odd labels")
            warnings.warn("old call", UserWarning, stacklevel=1)
        with library_warnings_kept(tmp_path / "gone"):
            library.warning("nowhere")
    assert (library.handlers, library.propagate, warnings.showwarning) == before
    told = (tmp_path / NAME).read_text()
    assert "odd labels" in told and "old call" in told and "nowhere" not in told
    assert capsys.readouterr().err == ""
