"""Records as Parquet files and back: typed even when empty, and the same bytes for the same records.

The schema's metadata carries `togi.schema`: the kind of records and the version of their layout. A reader upgrades
older versions and refuses newer ones. `extra` is kept as JSON text. Numbers are float64, ids int32.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from togi.core.errors import InputError, StageError
from togi.core.files import atomic_file
from togi.core.records import KINDS, Chat, Completion, Document, Message, Pair, Prompt, Record, Sample, Source

VERSION = 1
KEY = b"togi.schema"
ROWS_PER_GROUP = 16_384

Row = dict[str, Any]
UPGRADES: dict[int, Callable[[str, Row], Row]] = {}  # version: how its rows of a kind become rows of the next version

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("train", pa.bool_())]))
_SOURCE = pa.struct([("dataset", pa.string()), ("revision", pa.string()), ("licence", pa.string())])
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
_PAIR = [(side, _MESSAGES) for side in ("prompt", "chosen", "rejected")]
_FIELDS: dict[str, list[tuple[str, pa.DataType]]] = {
    "prompts": _PROMPT,
    "samples": [*_SHARED, ("prompt", pa.struct(_PROMPT)), ("completion", pa.struct(_COMPLETION)), ("scores", _SCORES)],
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

    Raises StageError where the file cannot be written (a full disk), and TypeError on a record of another kind.
    """
    for record in records:
        if not isinstance(record, KINDS[kind]):
            raise TypeError(f"{path}: a record of {type(record).__name__} among {kind}")
    table = pa.Table.from_pylist([to_row(record) for record in records], schema=schema(kind))
    try:
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", row_group_size=ROWS_PER_GROUP)
    except OSError as error:
        raise StageError(
            f"{path} cannot be written: {error.strerror or error}. Nothing half-written was left behind; "
            "make room or choose another folder with TOGI_HOME, and run the same command again"
        ) from error


def read_records(path: Path) -> tuple[str, list[Record]]:
    """(kind, records) of a file that `write_records` wrote.

    Raises InputError where the file is missing, is no Parquet, holds no togi records, or comes from a newer togi.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a Parquet file, or a damaged one ({error})") from error
    kind, version = _label(path, table.schema.metadata or {})
    rows = table.to_pylist()
    for old in range(version, VERSION):
        rows = [UPGRADES[old](kind, row) for row in rows]
    return kind, [from_row(kind, row) for row in rows]


def _label(path: Path, metadata: Mapping[bytes, bytes]) -> tuple[str, int]:
    if KEY not in metadata:
        raise InputError(
            f"{path}: a Parquet file that togi did not write (no togi.schema): name it under data: to import it"
        )
    label = json.loads(metadata[KEY])
    kind, version = label["kind"], label["version"]
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
        "extra": json.dumps(dict(record.extra), ensure_ascii=False, sort_keys=True),
    }
    match record:
        case Prompt():
            row |= {"messages": _message_rows(record.messages), "answer": record.answer}
        case Sample():
            scores = [{"name": name, "value": value} for name, value in record.scores.items()]
            row |= {"prompt": to_row(record.prompt), "completion": _completion_row(record.completion), "scores": scores}
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
        "source": None if source is None else Source(**source),
        "extra": json.loads(row["extra"]),
    }
    match kind:
        case "prompts":
            return Prompt(**shared, messages=_messages(row["messages"]), answer=row["answer"])
        case "samples":
            asked = from_row("prompts", row["prompt"])
            assert isinstance(asked, Prompt)
            scores = {score["name"]: score["value"] for score in row["scores"]}
            return Sample(**shared, prompt=asked, completion=_completion(row["completion"]), scores=scores)
        case "pairs":
            prompt, chosen, rejected = (_messages(row[side]) for side in ("prompt", "chosen", "rejected"))
            return Pair(**shared, prompt=prompt, chosen=chosen, rejected=rejected, margin=row["margin"])
        case "chats":
            return Chat(**shared, messages=_messages(row["messages"]))
        case _:
            return Document(**shared, text=row["text"])


def _source_row(source: Source) -> Row:
    return {"dataset": source.dataset, "revision": source.revision, "licence": source.licence}


def _message_rows(messages: Sequence[Message]) -> list[Row]:
    return [{"role": m.role, "content": m.content, "train": m.train} for m in messages]


def _messages(rows: Sequence[Row]) -> tuple[Message, ...]:
    return tuple(Message(row["role"], row["content"], row["train"]) for row in rows)


def _completion_row(c: Completion) -> Row:
    row: Row = {"text": c.text, "stop": c.stop, "token_ids": list(c.token_ids)}
    return row | {"logprobs": list(c.logprobs), "sampled_logprobs": list(c.sampled_logprobs)}


def _completion(row: Row) -> Completion:
    numbers = {name: tuple(row[name]) for name in ("token_ids", "logprobs", "sampled_logprobs")}
    return Completion(text=row["text"], stop=row["stop"], **numbers)
