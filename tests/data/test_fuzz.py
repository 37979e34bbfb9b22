"""Rows of any content: an unreadable one raises togi's own error, a readable one can be written and read again."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from togi.core.codec import from_row, schema, to_row
from togi.core.errors import InputError
from togi.data.importing import DataSpec, load_records
from togi.data.shapes import ANSWERS, CONVERSATIONS, NEEDS, QUESTIONS

FUZZ = settings(
    max_examples=200, derandomize=True, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KIND = st.sampled_from(list(NEEDS))
WORDS = st.sampled_from(
    ["Hi", "", " ", "\n\nHuman: a\n\nAssistant: b", "[{", '[{"role": "user", "content": "x"}]', "🙂"]
)
TEXT = WORDS | st.text(max_size=8)  # includes lone surrogates
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROLE = st.sampled_from(["user", "assistant", "System", "human", "gpt", "tool", "function_call", "x"]) | JSON
KEYS = ["train", "weight", "loss", "mask", "tool_calls", "function_call", "thinking", "name"]
CALL = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXT, "arguments": JSON})})
TURN = st.fixed_dictionaries(
    {}, optional={"role": ROLE, "content": TEXT | JSON, **dict.fromkeys(KEYS, JSON), "tool_calls": st.lists(CALL)}
) | st.fixed_dictionaries({"from": ROLE, "value": TEXT | JSON})
VALUE = TEXT | st.lists(TURN | JSON, max_size=4) | JSON
SIDES = ("chosen", "rejected", "margin", "label", "tools", "mask", "system", "input", "text")
COLUMNS = (*CONVERSATIONS, *QUESTIONS, *ANSWERS, *SIDES)
ROW = st.dictionaries(st.sampled_from(COLUMNS) | TEXT, VALUE, max_size=6)
LINE = st.builds(json.dumps, ROW | JSON).map(str.encode) | st.binary(max_size=20)


def holds(path: Path, kind: str) -> None:
    """Reads a file strictly and leniently: errors are togi's own and name the file, records survive a round trip."""
    for on_bad_row in ("error", "drop"):
        try:
            records = load_records(DataSpec(path=path, on_bad_row=on_bad_row), kind).records
        except InputError as error:
            assert str(error).startswith(str(path))
            continue
        rows = [to_row(record) for record in records]
        kept = pa.Table.from_pylist(rows, schema=schema(kind)).to_pylist()
        assert [to_row(from_row(kind, row)) for row in kept] == rows


@FUZZ
@given(kind=KIND, lines=st.lists(LINE, min_size=1, max_size=4))
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_json_of_any_content(tmp_path: Path, name: str, kind: str, lines: list[bytes]) -> None:
    path = tmp_path / name
    path.write_bytes(b"\n".join(lines))
    holds(path, kind)


@FUZZ
@given(kind=KIND, rows=st.lists(ROW, min_size=1, max_size=3))
def test_a_list_of_any_content(tmp_path: Path, kind: str, rows: list[Any]) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    holds(path, kind)


CELL = WORDS | VALUE.map(json.dumps) | st.text(st.characters(codec="utf-8"), max_size=8)


def table(header: list[str], rows: list[list[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows([header, *rows])
    return out.getvalue().encode()


TABLE = st.builds(
    table, st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=4), st.lists(st.lists(CELL, max_size=4), max_size=3)
)


@FUZZ
@given(kind=KIND, data=TABLE | st.binary(max_size=40))
def test_csv_of_any_content(tmp_path: Path, kind: str, data: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(data)
    holds(path, kind)
