import errno
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from togi.core import codec
from togi.core.codec import KEY, VERSION, read_records, schema, write_records
from togi.core.errors import InputError, StageError
from togi.core.records import KINDS, Chat, Completion, Document, Message, Pair, Prompt, Record, Sample, Source

ASK, REPLY = Message("user", "質問🙂"), Message("assistant", "はい", train=False)
SOURCE = Source(dataset="seeds", revision="abc", licence="Apache-2.0")
EXTRA = {"tags": ["a", None], "score": 0.1, "nested": {"x": 1}}
PROMPT = Prompt(id="p", messages=(ASK,), answer="答え", source=SOURCE, extra=EXTRA)
COMPLETION = Completion(
    text="はい<|im_end|>",
    stop="terminator",
    token_ids=(3, 70_000),
    logprobs=(-0.1, -1e-9),
    sampled_logprobs=(-0.3, 0.0),
)
RECORDS: dict[str, list[Record]] = {
    "prompts": [PROMPT, Prompt(id="q", messages=(ASK, REPLY, ASK), parents=("p", "r"))],
    "samples": [
        Sample(id="s", prompt=PROMPT, completion=COMPLETION, scores={"reward": 1.5, "gate": None}, parents=("p",)),
        Sample(id="t", prompt=PROMPT, completion=Completion(text="", stop="error")),
    ],
    "pairs": [
        Pair(id="a", prompt=(ASK,), chosen=(REPLY,), rejected=(REPLY, ASK, REPLY), margin=0.25),
        Pair(id="b", prompt=(), chosen=(REPLY,), rejected=(REPLY,)),
    ],
    "chats": [Chat(id="c", messages=(ASK, REPLY), source=SOURCE)],
    "documents": [Document(id="d", text="лес\n")],
}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_and_same_bytes(tmp_path: Path, kind: str) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_records(first, kind, RECORDS[kind])
    write_records(second, kind, RECORDS[kind])
    assert read_records(first) == (kind, RECORDS[kind])
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_typed_even_when_empty(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "empty.parquet"
    write_records(path, kind, [])
    assert read_records(path) == (kind, [])
    assert pq.read_schema(path).equals(schema(kind))


def labelled(path: Path, kind: str, version: int) -> Path:
    table = pa.Table.from_pylist([codec.to_row(r) for r in RECORDS["documents"]], schema=schema("documents"))
    label = json.dumps({"kind": kind, "version": version}).encode()
    pq.write_table(table.replace_schema_metadata({KEY: label}), path)
    return path


def test_refuses_newer_versions_and_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="newer togi"):
        read_records(labelled(tmp_path / "new.parquet", "documents", VERSION + 1))
    with pytest.raises(InputError, match="of kind 'dreams'"):
        read_records(labelled(tmp_path / "odd.parquet", "dreams", VERSION))


def test_upgrades_older_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codec.UPGRADES, VERSION - 1, lambda kind, row: row | {"text": f"{kind}: {row['text']}"})
    _, records = read_records(labelled(tmp_path / "old.parquet", "documents", VERSION - 1))
    assert records == [Document(id="d", text="documents: лес\n")]


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_records(tmp_path / "missing.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(InputError, match="not a Parquet file"):
        read_records(tmp_path / "text.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(InputError, match="togi did not write"):
        read_records(tmp_path / "foreign.parquet")


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.parquet"
    write_records(path, "documents", RECORDS["documents"])

    def full(table: pa.Table, where: Path, **kwargs: object) -> None:
        where.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StageError, match="No space left on device"):
        write_records(path, "documents", [])
    monkeypatch.undo()
    assert read_records(path) == ("documents", RECORDS["documents"])
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


def test_a_record_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Chat among prompts"):
        write_records(tmp_path / "x.parquet", "prompts", RECORDS["chats"])
