"""Records as Parquet files and back: typed even when empty, and the same bytes for the same records.

The schema's metadata carries `togi.schema`: the kind of records and the version of their layout. A reader upgrades
older versions and refuses newer ones. `extra` is kept as JSON text, that of a turn too (null where it is empty).
Numbers are float64, ids int32.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from togi.core.errors import InputError, StageError
from togi.core.files import atomic_file
from togi.core.records import KINDS, Chat, Completion, Document, Message, Pair, Prompt, Provenance, Record, Sample

VERSION = 2
KEY = b"togi.schema"
ROWS_PER_GROUP = 16_384
COMPRESSION = "zstd"

UNKEEPABLE = (ValueError, TypeError, OverflowError, RecursionError, pa.ArrowException)  # when rows become a table
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError, pa.ArrowException)

Row = dict[str, Any]

_MESSAGE = [("role", pa.string()), ("content", pa.string()), ("train", pa.bool_()), ("extra", pa.string())]
_MESSAGES = pa.list_(pa.struct(_MESSAGE))
_SOURCE = pa.struct([(name, pa.string()) for name in ("dataset", "revision", "licence", "terms")])
_SHARED = [("id", pa.string()), ("parents", pa.list_(pa.string())), ("source", _SOURCE), ("extra", pa.string())]
_PROMPT = [*_SHARED, ("messages", _MESSAGES), ("answer", pa.string())]
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
_FIELDS: dict[str, list[tuple[str, pa.DataType]]] = {
    "prompts": _PROMPT,
    "samples": [
        *_SHARED,
        ("prompt", pa.struct(_PROMPT)),
        ("completion", pa.struct(_COMPLETION)),
        ("scores", _SCORES),
        ("model", pa.string()),
        ("index", pa.int64()),
    ],
    "pairs": [*_SHARED, *_PAIR, ("margin", pa.float64())],
    "chats": [*_SHARED, ("messages", _MESSAGES)],
    "documents": [*_SHARED, ("text", pa.string())],
}


def schema(kind: str) -> pa.Schema:
    """The Arrow schema of records of one kind, with the metadata that names kind and version."""
    label = json.dumps({"kind": kind, "version": VERSION}, sort_keys=True)
    return pa.schema(_FIELDS[kind], metadata={KEY: label.encode()})


def write_records(path: Path, kind: str, records: Sequence[Record]) -> None:
    """Writes records of one kind as Parquet, whole or not at all.

    Raises StageError where the file cannot be written (a full disk) and where a record holds what no file can keep
    (half a surrogate pair in a text, a number of over 4,300 digits), and TypeError on a record of another kind.
    """
    table = to_table(path, kind, records)
    try:
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary, compression=COMPRESSION, row_group_size=ROWS_PER_GROUP)
    except OSError as error:
        raise StageError(
            f"{path} cannot be written: {error.strerror or error}. Nothing half-written was left behind; "
            "make room or choose another folder with TOGI_HOME, and run the same command again"
        ) from error


def to_table(path: Path, kind: str, records: Sequence[Record]) -> pa.Table:
    """Records of one kind as a table for the file `path`. Raises StageError for a value that no file can keep, and
    TypeError on a record of another kind."""
    for record in records:
        if not isinstance(record, KINDS[kind]):
            raise TypeError(f"{path}: a record of {type(record).__name__} among {kind}")
    try:
        return pa.Table.from_pylist([to_row(record) for record in records], schema=schema(kind))
    except UNKEEPABLE as error:
        if len(records) > 1:  # which of them is it?
            for record in records:
                to_table(path, kind, [record])
        names = ", ".join(record.id for record in records[:3])
        raise StageError(
            f"{path} cannot be written: record {names} holds a value that a file of {kind} cannot keep ({error}); "
            "mend the data that it was made from"
        ) from error


def read_records(path: Path) -> tuple[str, list[Record]]:
    """(kind, records) of a file that `write_records` wrote.

    Raises InputError where the file is missing, is no Parquet, is damaged, holds no togi records, or comes from a newer
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
    """(kind, version) of the records of a file, from its metadata. Raises InputError where they are not known here."""
    if KEY not in metadata:
        raise InputError(
            f"{path}: a Parquet file that togi did not write (no togi.schema): name it under data: to import it"
        )
    try:
        label = json.loads(metadata[KEY])
        kind, version = str(label["kind"]), int(label["version"])
    except UNREADABLE as error:
        raise InputError(f"{path}: a damaged file: its togi.schema does not say what it holds ({error})") from error
    if version < 1:
        raise InputError(f"{path}: a damaged file: its togi.schema names version {version}")
    if version > VERSION or kind not in KINDS:
        raise InputError(
            f"{path}: records of kind {kind!r}, version {version}, written by a newer togi than this one, "
            f"which reads {', '.join(KINDS)} up to version {VERSION}: update togi"
        )
    return kind, version


def to_row(record: Record) -> Row:
    """A record as a row of plain values, in the layout of its kind's schema."""
    row: Row = {
        "id": record.id,
        "parents": list(record.parents),
        "source": None if record.source is None else _source_row(record.source),
        "extra": _json(record.extra, sort_keys=True),
    }
    match record:
        case Prompt():
            row |= {"messages": _message_rows(record.messages), "answer": record.answer}
        case Sample():
            scores = [{"name": name, "value": value} for name, value in record.scores.items()]
            row |= {"prompt": to_row(record.prompt), "completion": _completion_row(record.completion), "scores": scores}
            row |= {"model": record.model, "index": record.index}
        case Pair():
            row |= {"prompt": _message_rows(record.prompt), "chosen": _message_rows(record.chosen)}
            row |= {"rejected": _message_rows(record.rejected), "margin": record.margin}
        case Chat():
            row["messages"] = _message_rows(record.messages)
        case Document():
            row["text"] = record.text
    return row


def from_row(kind: str, row: Row) -> Record:
    """The record that `to_row` made the row of."""
    source = row["source"]
    shared: Row = {
        "id": row["id"],
        "parents": tuple(row["parents"]),
        "source": None if source is None else Provenance(**source),
        "extra": json.loads(row["extra"]),
    }
    match kind:
        case "prompts":
            return Prompt(**shared, messages=_messages(row["messages"]), answer=row["answer"])
        case "samples":
            asked = from_row("prompts", row["prompt"])
            assert isinstance(asked, Prompt)
            scores = {score["name"]: score["value"] for score in row["scores"]}
            shared |= {"model": row["model"], "index": row["index"]}
            return Sample(**shared, prompt=asked, completion=_completion(row["completion"]), scores=scores)
        case "pairs":
            prompt, chosen, rejected = (_messages(row[side]) for side in _SIDES)
            return Pair(**shared, prompt=prompt, chosen=chosen, rejected=rejected, margin=row["margin"])
        case "chats":
            return Chat(**shared, messages=_messages(row["messages"]))
        case _:
            return Document(**shared, text=row["text"])


def _json(extra: Mapping[str, Any], *, sort_keys: bool = False) -> str:
    """Columns as JSON text; half a surrogate pair, which UTF-8 cannot hold, is escaped. What a turn says to a template
    keeps its order, in which the template writes it."""
    text = json.dumps(dict(extra), ensure_ascii=False, sort_keys=sort_keys)
    return "".join(f"\\u{ord(char):04x}" if "\ud800" <= char <= "\udfff" else char for char in text)


def _source_row(source: Provenance) -> Row:
    row: Row = {"dataset": source.dataset, "revision": source.revision, "licence": source.licence}
    return row | {"terms": source.terms}


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
    numbers = {name: tuple(row[name]) for name in ("token_ids", "logprobs", "sampled_logprobs")}
    return Completion(text=row["text"], stop=row["stop"], **numbers)


# --- older versions ---------------------------------------------------------------------------------------------------


def _second(kind: str, row: Row) -> Row:
    """Version 1 knew no terms, no keys of a turn beside role, content and train, and not whose answer a sample is."""
    if row["source"] is not None:
        row["source"]["terms"] = None
    if kind == "samples":
        row |= {"model": None, "index": None, "prompt": _second("prompts", row["prompt"])}
        return row
    for column in ("messages", *_SIDES):
        for turn in row.get(column, ()):
            turn["extra"] = None
    return row


UPGRADES: dict[int, Callable[[str, Row], Row]] = {1: _second}
"""Version: how its rows of a kind become rows of the next version."""
