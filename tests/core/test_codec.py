import errno
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from togi.cli.show import READABLE
from togi.commands.plan_texts import READ
from togi.core import codec
from togi.core.codec import KEY, VERSION, read_records, schema, write_records
from togi.core.errors import InputError, StageError
from togi.core.records import (
    KINDS,
    Chat,
    Completion,
    Document,
    Figure,
    Match,
    Message,
    Pair,
    Prompt,
    Provenance,
    Record,
    Sample,
    Verdict,
)
from togi.data.filters import text_of

ASK, REPLY = Message("user", "質問🙂"), Message("assistant", "はい", train=False)
SOURCE = Provenance(dataset="seeds", revision="abc", licence="Apache-2.0")
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
    "verdicts": [
        Verdict(id="v", prompt="p", answers=("s", "t"), judge="strict", text="[[A]]", winner="s", parents=("s", "t")),
        Verdict(id="w", prompt="p", answers=("t",), judge="strict", text="7", order=1, score=7.0, probability=0.25),
    ],
    "tables": [
        Figure(id="f", benchmark="arena", metric="win rate", subject="a", against="b", value=0.5, low=0.4, high=0.6),
        Figure(id="g", benchmark="arena", metric="length", subject="a", count=3, higher_is_better=False, note="mean"),
    ],
    "matches": [Match(id="m", record="p", other="q", where="$tests", how="ngrams", similarity=0.75, text="質問")],
}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_and_same_bytes(tmp_path: Path, kind: str) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_records(first, kind, RECORDS[kind])
    write_records(second, kind, RECORDS[kind])
    assert read_records(first) == (kind, RECORDS[kind])
    assert first.read_bytes() == second.read_bytes()


def test_every_kind_has_one_place_in_each_table() -> None:
    assert list(codec.LAYOUTS) == list(KINDS)
    for table in (READABLE, READ):
        assert [known for known in KINDS.values() if known not in table] == []
    assert [kind for kind, records in RECORDS.items() if not all(isinstance(text_of(r), str) for r in records)] == []


def test_an_unknown_kind_is_an_error_and_never_a_document() -> None:
    row = codec.to_row(RECORDS["documents"][0])
    with pytest.raises(TypeError, match="unknown kind of records: 'dreams'; kinds of records: prompts, samples"):
        codec.from_row("dreams", row)
    with pytest.raises(TypeError, match="cannot store a Record"):
        codec.to_row(Record(id="x"))


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
    with pytest.raises(InputError, match="not written by togi"):
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


# --- turns with keys of their own, and version 1 ----------------------------------------------------------------------


def test_keys_of_a_turn_survive_in_their_order(tmp_path: Path) -> None:
    call = Message(
        "assistant", "", extra={"tool_calls": [{"name": "w", "arguments": {"z": 1, "a": None}}], "n": 10**40}
    )
    asked = Message("user", "Weather?", extra={"tools": [{"type": "function"}]})
    source = Provenance(dataset="d", terms="share alike")
    chat = Chat(id="c", messages=(asked, call), source=source, extra={"half": "\ud800", "much": float("inf")})
    prompt = Prompt(id="p", messages=(asked,))
    sample = Sample(id="s", prompt=prompt, completion=COMPLETION, scores={"r": float("nan")}, model="base", index=3)
    write_records(tmp_path / "chats.parquet", "chats", [chat])
    write_records(tmp_path / "samples.parquet", "samples", [sample])
    (read,) = read_records(tmp_path / "chats.parquet")[1]
    assert read == chat and isinstance(read, Chat) and json.dumps(read.messages[1].extra) == json.dumps(call.extra)
    (again,) = read_records(tmp_path / "samples.parquet")[1]
    assert isinstance(again, Sample) and (again.model, again.index, again.prompt) == ("base", 3, prompt)


TURNS_1 = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("train", pa.bool_())]))
SOURCE_1 = pa.struct([("dataset", pa.string()), ("revision", pa.string()), ("licence", pa.string())])
SHARED_1 = [("id", pa.string()), ("parents", pa.list_(pa.string())), ("source", SOURCE_1), ("extra", pa.string())]
PROMPT_1 = [*SHARED_1, ("messages", TURNS_1), ("answer", pa.string())]
COMPLETION_1 = [
    ("text", pa.string()),
    ("stop", pa.string()),
    ("token_ids", pa.list_(pa.int32())),
    ("logprobs", pa.list_(pa.float64())),
    ("sampled_logprobs", pa.list_(pa.float64())),
]
SCORES_1 = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))
SAMPLE_1 = [*SHARED_1, ("prompt", pa.struct(PROMPT_1)), ("completion", pa.struct(COMPLETION_1)), ("scores", SCORES_1)]
PAIR_1 = [*SHARED_1, ("prompt", TURNS_1), ("chosen", TURNS_1), ("rejected", TURNS_1), ("margin", pa.float64())]
FIELDS_1 = {
    "prompts": PROMPT_1,
    "samples": SAMPLE_1,
    "pairs": PAIR_1,
    "chats": [*SHARED_1, ("messages", TURNS_1)],
    "documents": [*SHARED_1, ("text", pa.string())],
}
SHARED_ROW: dict[str, Any] = {
    "parents": ["q"],
    "source": {"dataset": "d", "revision": "", "licence": "MIT"},
    "extra": '{"n": 1}',
}
TURN_ROW = {"role": "user", "content": "Hi", "train": True}
PROMPT_ROW = {"id": "p", **SHARED_ROW, "messages": [TURN_ROW], "answer": None}
COMPLETION_ROW = {"text": "Yes", "stop": "length", "token_ids": [1], "logprobs": [-1.0], "sampled_logprobs": []}
SAMPLE_ROW = {"prompt": PROMPT_ROW, "completion": COMPLETION_ROW, "scores": [{"name": "r", "value": None}]}
ROWS_1: dict[str, dict[str, Any]] = {
    "prompts": PROMPT_ROW,
    "samples": {"id": "s", **SHARED_ROW, **SAMPLE_ROW},
    "pairs": {"id": "a", **SHARED_ROW, "source": None, "prompt": [TURN_ROW], "chosen": [TURN_ROW], "rejected": []},
    "chats": {"id": "c", **SHARED_ROW, "messages": [TURN_ROW]},
    "documents": {"id": "d", **SHARED_ROW, "text": "лес"},
}
SHARED_2: dict[str, Any] = {"parents": ("q",), "source": Provenance(dataset="d", licence="MIT"), "extra": {"n": 1}}
HI = Message("user", "Hi")
PROMPT_2 = Prompt(id="p", messages=(HI,), **SHARED_2)
YES = Completion(text="Yes", stop="length", token_ids=(1,), logprobs=(-1.0,))
RECORDS_2: dict[str, Record] = {
    "prompts": PROMPT_2,
    "samples": Sample(id="s", prompt=PROMPT_2, completion=YES, scores={"r": None}, **SHARED_2),
    "pairs": Pair(id="a", prompt=(HI,), chosen=(HI,), rejected=(), **{**SHARED_2, "source": None}),
    "chats": Chat(id="c", messages=(HI,), **SHARED_2),
    "documents": Document(id="d", text="лес", **SHARED_2),
}


@pytest.mark.parametrize("kind", ROWS_1)
def test_reads_files_of_version_1(tmp_path: Path, kind: str) -> None:
    label = {KEY: json.dumps({"kind": kind, "version": 1}).encode()}
    table = pa.Table.from_pylist([ROWS_1[kind]], schema=pa.schema(FIELDS_1[kind], metadata=label))
    pq.write_table(table, tmp_path / "old.parquet")
    assert read_records(tmp_path / "old.parquet") == (kind, [RECORDS_2[kind]])


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [b"{", b"[]", b'{"kind": "documents"}', b'{"kind": "documents", "version": "x"}'])
def test_a_label_that_says_nothing(tmp_path: Path, label: bytes) -> None:
    table = pa.Table.from_pylist([codec.to_row(r) for r in RECORDS["documents"]], schema=schema("documents"))
    pq.write_table(table.replace_schema_metadata({KEY: label}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="schema cannot be read"):
        read_records(tmp_path / "x.parquet")


def test_columns_of_another_kind_under_our_label(tmp_path: Path) -> None:
    label = {KEY: json.dumps({"kind": "chats", "version": VERSION}).encode()}
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata(label), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="a damaged file of chats"):
        read_records(tmp_path / "x.parquet")


def test_damaged_files_are_input_errors(tmp_path: Path) -> None:
    path, bad = tmp_path / "whole.parquet", tmp_path / "bad.parquet"
    write_records(path, "samples", RECORDS["samples"])
    whole = path.read_bytes()
    dice = random.Random(7)
    cuts = [whole[:length] for length in (0, 3, 4, 12, len(whole) // 2, len(whole) - 4)]
    flips = []
    for _ in range(300):
        flipped = bytearray(whole)
        for _ in range(dice.choice((1, 3, 40))):
            flipped[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        flips.append(bytes(flipped))
    refused = 0
    for data in (*cuts, *flips):
        bad.write_bytes(data)
        try:
            read_records(bad)
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{bad}: ")
    assert refused > 100


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"x": found}
    return found


@pytest.mark.parametrize(
    "record",
    [
        Document(id="bad", text="\ud800"),
        Document(id="bad", text="x", extra={"n": 10**5000}),
        Document(id="bad", text="x", extra={"f": object()}),
        Document(id="bad", text="x", extra=nested(100_000)),
    ],
)
def test_what_no_file_can_keep_is_refused_with_its_record(tmp_path: Path, record: Document) -> None:
    with pytest.raises(StageError, match="record bad has a value that a file of documents cannot store"):
        write_records(tmp_path / "x.parquet", "documents", [Document(id="good", text="x"), record])
    assert not list(tmp_path.iterdir())
