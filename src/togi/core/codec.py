"""Writes records as Parquet files and reads them back: typed even when empty; equal records give equal bytes.

The schema's metadata contains `togi.schema`: the kind of records and the version of their layout. The reader upgrades
older versions and refuses newer ones. `extra` is stored as JSON text; that of a turn is null if it is empty. Real
numbers are float64, token ids int32, counts and indices int64.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from togi.core.errors import InputError, StageError
from togi.core.files import atomic_file
from togi.core.records import KINDS, Completion, Message, Provenance, Record, Sample

VERSION = 3
KEY = b"togi.schema"
ROWS_PER_GROUP = 16_384
COMPRESSION = "zstd"

UNKEEPABLE = (ValueError, TypeError, OverflowError, RecursionError, pa.ArrowException)  # raised as rows become a table
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError, pa.ArrowException)

Row = dict[str, Any]

_MESSAGE = [("role", pa.string()), ("content", pa.string()), ("train", pa.bool_()), ("extra", pa.string())]
_MESSAGES = pa.list_(pa.struct(_MESSAGE))
_SOURCE = pa.struct(
    [
        *((name, pa.string()) for name in ("dataset", "revision", "licence", "terms")),
        ("inherit", pa.bool_()),
        ("kind", pa.string()),
    ]
)
_SHARED = [
    ("id", pa.string()),
    ("parents", pa.list_(pa.string())),
    ("source", _SOURCE),
    ("inherited", pa.list_(_SOURCE)),
    ("extra", pa.string()),
]
_PROMPT = [("messages", _MESSAGES), ("answer", pa.string())]
_COMPLETION = [
    ("text", pa.string()),
    ("stop", pa.string()),
    ("token_ids", pa.list_(pa.int32())),
    ("logprobs", pa.list_(pa.float64())),
    ("sampled_logprobs", pa.list_(pa.float64())),
]
_SCORES = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))
_SIDES = ("prompt", "chosen", "rejected")
_PAIR = [(side, _MESSAGES) for side in _SIDES]


def schema(kind: str) -> pa.Schema:
    """The Arrow schema for one kind of records, with kind and version in its metadata."""
    label = json.dumps({"kind": kind, "version": VERSION}, sort_keys=True)
    return pa.schema([*_SHARED, *LAYOUTS[kind].columns], metadata={KEY: label.encode()})


def write_records(path: Path, kind: str, records: Sequence[Record]) -> None:
    """Writes records of one kind as Parquet, whole or not at all.

    Raises StageError if the file cannot be written (a full disk), and if a record contains a value that cannot be
    stored: half a surrogate pair in a text, a number of over 4,300 digits. Raises TypeError for a record of another
    kind.
    """
    table = to_table(path, kind, records)
    try:
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary, compression=COMPRESSION, row_group_size=ROWS_PER_GROUP)
    except OSError as error:
        raise StageError(
            f"{path} cannot be written: {error.strerror or error}. No partial file was left behind; free "
            "some space or choose another folder with TOGI_HOME, and run the same command again"
        ) from error


def to_table(path: Path, kind: str, records: Sequence[Record]) -> pa.Table:
    """Records of one kind as a table for the file `path`. Raises StageError for a value that cannot be stored, and
    TypeError for a record of another kind."""
    for record in records:
        if not isinstance(record, KINDS[kind]):
            raise TypeError(f"{path}: a record of {type(record).__name__} among {kind}")
    try:
        return pa.Table.from_pylist([to_row(record) for record in records], schema=schema(kind))
    except UNKEEPABLE as error:
        if len(records) > 1:  # find the bad record
            for record in records:
                to_table(path, kind, [record])
        names = ", ".join(record.id for record in records[:3])
        raise StageError(
            f"{path} cannot be written: record {names} has a value that a file of {kind} cannot store ({error}); "
            "fix the data that it was made from"
        ) from error


def read_records(path: Path) -> tuple[str, list[Record]]:
    """Returns (kind, records) of a file that `write_records` wrote.

    Raises InputError if the file is missing, damaged, not a Parquet file, not written by togi, or written by a newer
    togi.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, *UNREADABLE) as error:
        raise InputError(f"{path}: not a Parquet file, or a damaged one ({error})") from error
    kind, version = read_label(path, table.schema.metadata or {})
    try:
        rows = table.to_pylist()
        for old in range(version, VERSION):
            rows = [UPGRADES[old](kind, row) for row in rows]
        return kind, [from_row(kind, row) for row in rows]
    except UNREADABLE as error:
        raise InputError(f"{path}: a damaged file of {kind} ({type(error).__name__}: {error})") from error


def read_label(path: Path, metadata: Mapping[bytes, bytes]) -> tuple[str, int]:
    """Returns (kind, version) of the records in a file, from its metadata. Raises InputError if this togi does not
    know them."""
    if KEY not in metadata:
        raise InputError(
            f"{path}: this Parquet file was not written by togi (no togi.schema): declare it under data: to import it"
        )
    try:
        label = json.loads(metadata[KEY])
        kind, version = str(label["kind"]), int(label["version"])
    except UNREADABLE as error:
        raise InputError(f"{path}: a damaged file: its togi.schema cannot be read ({error})") from error
    if version < 1:
        raise InputError(f"{path}: a damaged file: its togi.schema has version {version}")
    if version > VERSION or kind not in KINDS:
        raise InputError(
            f"{path}: records of kind {kind!r}, version {version}, were written by a newer togi; this one "
            f"reads {', '.join(KINDS)} up to version {VERSION}: update togi"
        )
    return kind, version


EMPTY = "{}"
"""The JSON of an empty `extra`."""


def to_row(record: Record) -> Row:
    """A record as a row of plain values, in the layout of its kind's schema."""
    row: Row = {
        "id": record.id,
        "parents": list(record.parents),
        "source": None if record.source is None else _source_row(record.source),
        "inherited": [_source_row(source) for source in record.inherited],
        "extra": _json(record.extra, sort_keys=True) if record.extra else EMPTY,
    }
    return row | LAYOUTS[kind_of(record)].pack(record)


def kind_of(record: Record) -> str:
    """The kind of a record. Raises TypeError for a type that cannot be stored."""
    for kind, known in KINDS.items():
        if type(record) is known:
            return kind
    raise TypeError(f"cannot store a {type(record).__name__}; kinds of records: {', '.join(KINDS)}")


def from_row(kind: str, row: Row) -> Record:
    """The record of a row that `to_row` made. Raises TypeError for an unknown kind."""
    if kind not in KINDS:
        raise TypeError(f"unknown kind of records: {kind!r}; kinds of records: {', '.join(KINDS)}")
    source = row["source"]
    return KINDS[kind](
        id=row["id"],
        parents=tuple(row["parents"]),
        source=None if source is None else _source(**source),
        inherited=tuple(_source(**each) for each in row["inherited"]),
        extra=json.loads(row["extra"]) if row["extra"] != EMPTY else {},
        **LAYOUTS[kind].unpack(row),
    )


def _json(extra: Mapping[str, Any], *, sort_keys: bool = False) -> str:
    """Columns as JSON text. Half a surrogate pair, which UTF-8 cannot encode, is escaped. Keys that a chat template
    reads keep their order, because the template renders them in that order."""
    text = json.dumps(dict(extra), ensure_ascii=False, sort_keys=sort_keys)
    return "".join(f"\\u{ord(char):04x}" if "\ud800" <= char <= "\udfff" else char for char in text)


def _source_row(source: Provenance) -> Row:
    row: Row = {"dataset": source.dataset, "revision": source.revision, "licence": source.licence}
    return row | {"terms": source.terms, "inherit": source.inherit, "kind": source.kind}


def sources_of(row: Row) -> tuple[Provenance, ...]:
    """`Record.sources` of a row, which may be of an older version and may lack other columns."""
    own = [] if row["source"] is None else [row["source"]]
    return tuple(_source(**each) for each in (*own, *row.get("inherited", ())))


@lru_cache(maxsize=4096)
def _source(**values: Any) -> Provenance:
    """The same object for equal sources: a file of a million rows has few of them."""
    return Provenance(**values)


def _message_rows(messages: Sequence[Message]) -> list[Row]:
    return [
        {"role": m.role, "content": m.content, "train": m.train, "extra": _json(m.extra) if m.extra else None}
        for m in messages
    ]


def _messages(rows: Sequence[Row]) -> tuple[Message, ...]:
    return tuple(Message(row["role"], row["content"], row["train"], _loaded(row["extra"])) for row in rows)


def _loaded(extra: str | None) -> dict[str, Any]:
    return {} if extra is None else json.loads(extra)


def _completion_row(c: Completion) -> Row:
    row: Row = {"text": c.text, "stop": c.stop, "token_ids": list(c.token_ids)}
    return row | {"logprobs": list(c.logprobs), "sampled_logprobs": list(c.sampled_logprobs)}


def _completion(row: Row) -> Completion:
    numbers: dict[str, Any] = {name: tuple(row[name]) for name in ("token_ids", "logprobs", "sampled_logprobs")}
    return Completion(text=row["text"], stop=row["stop"], **numbers)


# --- kinds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """How a kind of records is stored, besides the shared columns: its own columns, and the conversion of a record's
    fields to column values and back."""

    columns: list[tuple[str, pa.DataType]]
    pack: Callable[[Any], Row]
    unpack: Callable[[Row], Row]


def _plain(columns: list[tuple[str, pa.DataType]]) -> Layout:
    """The layout of records whose fields are stored unchanged as columns; tuples become lists."""

    def pack(record: Record) -> Row:
        values = {name: getattr(record, name) for name, _ in columns}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def unpack(row: Row) -> Row:
        return {name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name, _ in columns}

    return Layout(columns, pack, unpack)


def _pack_sample(sample: Sample) -> Row:
    scores = [{"name": name, "value": value} for name, value in sample.scores.items()]
    row: Row = {"prompt": to_row(sample.prompt), "completion": _completion_row(sample.completion), "scores": scores}
    return row | {"model": sample.model, "index": sample.index}


def _unpack_sample(row: Row) -> Row:
    scores = {score["name"]: score["value"] for score in row["scores"]}
    values: Row = {"prompt": from_row("prompts", row["prompt"]), "completion": _completion(row["completion"])}
    return values | {"scores": scores, "model": row["model"], "index": row["index"]}


LAYOUTS: dict[str, Layout] = {
    "prompts": Layout(
        _PROMPT,
        lambda prompt: {"messages": _message_rows(prompt.messages), "answer": prompt.answer},
        lambda row: {"messages": _messages(row["messages"]), "answer": row["answer"]},
    ),
    "samples": Layout(
        [
            ("prompt", pa.struct([*_SHARED, *_PROMPT])),
            ("completion", pa.struct(_COMPLETION)),
            ("scores", _SCORES),
            ("model", pa.string()),
            ("index", pa.int64()),
        ],
        _pack_sample,
        _unpack_sample,
    ),
    "pairs": Layout(
        [*_PAIR, ("margin", pa.float64())],
        lambda pair: {**{side: _message_rows(getattr(pair, side)) for side in _SIDES}, "margin": pair.margin},
        lambda row: {**{side: _messages(row[side]) for side in _SIDES}, "margin": row["margin"]},
    ),
    "chats": Layout(
        [("messages", _MESSAGES)],
        lambda chat: {"messages": _message_rows(chat.messages)},
        lambda row: {"messages": _messages(row["messages"])},
    ),
    "documents": _plain([("text", pa.string())]),
    "verdicts": _plain(
        [
            ("prompt", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("judge", pa.string()),
            ("text", pa.string()),
            ("order", pa.int64()),
            ("winner", pa.string()),
            ("score", pa.float64()),
            ("probability", pa.float64()),
            ("outcome", pa.string()),
            ("attempt", pa.int64()),
        ]
    ),
    "tables": _plain(
        [
            *((name, pa.string()) for name in ("benchmark", "metric", "subject", "against")),
            *((name, pa.float64()) for name in ("value", "low", "high")),
            ("count", pa.int64()),
            ("higher_is_better", pa.bool_()),
            ("note", pa.string()),
        ]
    ),
    "matches": _plain(
        [
            *((name, pa.string()) for name in ("record", "other", "where", "how")),
            ("similarity", pa.float64()),
            ("text", pa.string()),
        ]
    ),
}
"""The row form of each kind of `KINDS`."""


# --- older versions ---------------------------------------------------------------------------------------------------


def _second(kind: str, row: Row) -> Row:
    """Version 1 had no terms, no keys of a turn besides role, content and train, and no model and index of a sample."""
    if row["source"] is not None:
        row["source"]["terms"] = None
    if kind == "samples":
        row |= {"model": None, "index": None, "prompt": _second("prompts", row["prompt"])}
        return row
    for column in ("messages", *_SIDES):
        for turn in row.get(column, ()):
            turn["extra"] = None
    return row


def _third(kind: str, row: Row) -> Row:
    """Version 2 had one source per record, a data set, whose terms were never inherited."""
    if row["source"] is not None:
        row["source"] |= {"inherit": False, "kind": "data"}
    if kind == "samples":
        row["prompt"] = _third("prompts", row["prompt"])
    return row | {"inherited": []}


UPGRADES: dict[int, Callable[[str, Row], Row]] = {1: _second, 2: _third}
"""By version: the function that upgrades its rows of a kind to the next version."""
