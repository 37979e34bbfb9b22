"""The border: rows from outside become records, each with its source, licence and the columns togi never reads."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, time
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from togi.core.errors import InputError, RecipeError
from togi.core.records import KINDS, Chat, Document, Drop, Pair, Prompt, Record, Source
from togi.core.seeds import content_id, digest
from togi.data.hub import download
from togi.data.rows import BadRow, Row, find_files, read_rows
from togi.data.shapes import NEEDS, SPOKEN, Shape, understand

STAGE = "import"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """What to read: a file or folder (`path`), or a data set on the hub ("owner/name", or "owner/name/folder").

    `columns` maps our name of a column to the file's. `split` chooses among files whose names tell their split.
    `takers` are the stages that take each kind of records, for the message on rows of another kind.
    """

    path: Path | str | None = None
    hub: str | None = None
    revision: str = "main"
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    on_bad_row: Literal["error", "drop"] = "error"
    takers: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Imported:
    """The records of a data set, in the order of its rows, and the rows that did not fit."""

    records: list[Record]
    drops: list[Drop]


def load_records(spec: DataSpec, kind: str) -> Imported:
    """Reads rows and makes records of `kind` (prompts, chats, pairs, documents).

    Raises RecipeError where the spec cannot be used, InputError with file, line and column where a row does not fit
    (with `on_bad_row: drop` the row is dropped under its reason), and where there is no row or none fits.
    """
    if kind not in NEEDS:
        close = get_close_matches(kind, NEEDS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"rows cannot become {kind!r}; allowed are {', '.join(NEEDS)}{hint}")
    folder, source = _locate(spec)
    files = find_files(folder, spec.split)
    imported = Imported([], [])
    seen: dict[str, int] = {}
    for file in files:
        for row in read_rows(file):
            _take(row, spec, kind, source, seen, imported)
    _refuse_empty(files, imported)
    return imported


def _locate(spec: DataSpec) -> tuple[Path, Source]:
    if (spec.path is None) == (spec.hub is None):
        raise RecipeError("data: give either `path` or `hub`, not both and not neither")
    if spec.path is not None:
        path = Path(spec.path)
        return path, Source(dataset=path.name, licence=spec.licence)
    assert spec.hub is not None
    folder, revision = download(spec.hub, spec.revision)
    return folder, Source(dataset=spec.hub, revision=revision, licence=spec.licence)


def _take(row: Row, spec: DataSpec, kind: str, source: Source, seen: dict[str, int], imported: Imported) -> None:
    try:
        if isinstance(row.values, BadRow):
            raise row.values
        values = _renamed(row.values, spec.columns)
        shape = understand(values)
        _check_kind(shape, kind, values, spec.takers)
        content = _content(shape, kind)
        key = digest([kind, content])
        ordinal = seen.get(key, 0)
        extra = {name: plain(value) for name, value in values.items() if name not in shape.columns}
        imported.records.append(_record(kind, shape, content_id([kind, content], ordinal), source, extra))
        seen[key] = ordinal + 1
    except BadRow as bad:
        if spec.on_bad_row == "error":
            raise InputError(
                f"{row.where}: {bad}. To leave such rows out and count them, set on_bad_row: drop"
            ) from None
        imported.drops.append(Drop(id=row.where, stage=STAGE, reason=bad.reason))


def _renamed(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under our names; a column that has been given one of our names loses its own."""
    for ours, theirs in columns.items():
        if theirs not in values:
            raise BadRow(
                "missing_column", f"no column {theirs!r} (columns: {ours}: {theirs}); the row has {', '.join(values)}"
            )
    taken = list(columns.values())
    named = {ours: values[theirs] for ours, theirs in columns.items()}
    return named | {name: value for name, value in values.items() if name not in taken and name not in named}


def _check_kind(shape: Shape, kind: str, values: Mapping[str, Any], takers: Mapping[str, Sequence[str]]) -> None:
    fits = shape.kinds()
    if kind in fits:
        return
    empty = [name for name, value in values.items() if value is None and name in SPOKEN]
    if empty and not fits:
        raise BadRow("empty_text", f"column {empty[0]!r} holds nothing")
    found = (
        f"the row has the columns {', '.join(values) or '(none)'}, which do not make {kind}: that needs {NEEDS[kind]}"
    )
    if fits:
        others = [f"{other} (for {', '.join(takers[other])})" if takers.get(other) else other for other in fits]
        raise BadRow("wrong_shape", f"{found}. Such rows would fit {' or '.join(others)}")
    raise BadRow("wrong_shape", f"{found}. Say which column is which with `columns: {{our name: the file's name}}`")


def _content(shape: Shape, kind: str) -> Any:
    """What names a record: all that it says, and nothing of where it came from."""
    parts = {
        "prompts": (shape.prompt, shape.answer),
        "chats": (shape.prompt, shape.answer),
        "pairs": (shape.prompt, shape.chosen, shape.rejected, shape.margin),
        "documents": (shape.text,),
    }[kind]
    return [[asdict(m) for m in part] if isinstance(part, tuple) else part for part in parts]


def _record(kind: str, shape: Shape, name: str, source: Source, extra: Mapping[str, Any]) -> Record:
    shared: dict[str, Any] = {"id": name, "source": source, "extra": extra}
    if kind == "prompts":
        answer = "\n\n".join(m.content for m in shape.answer) if shape.answer else None
        return Prompt(**shared, messages=shape.prompt, answer=answer)
    if kind == "chats":
        return Chat(**shared, messages=shape.prompt + (shape.answer or ()))
    if kind == "pairs":
        assert shape.chosen is not None and shape.rejected is not None
        return Pair(**shared, prompt=shape.prompt, chosen=shape.chosen, rejected=shape.rejected, margin=shape.margin)
    assert kind in KINDS and shape.text is not None
    return Document(**shared, text=shape.text)


def plain(value: Any) -> Any:
    """A column that togi does not read, as JSON can keep it: times as ISO text, bytes as base64, the rest as text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def _refuse_empty(files: Sequence[Path], imported: Imported) -> None:
    if imported.records:
        return
    where = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    if not imported.drops:
        raise InputError(f"{where}: the data set is empty: it holds no row")
    reasons: dict[str, int] = {}
    for drop in imported.drops:
        reasons[drop.reason] = reasons.get(drop.reason, 0) + 1
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    raise InputError(
        f"{where}: none of the {len(imported.drops)} rows fits ({counts}); set on_bad_row: error to see why"
    )
